//! OpenMetrics as the text format that came before it (version 0.0.4), for
//! `curl` and older collectors.

/// The same samples: only what is said about them differs. A counter's name
/// includes `_total` there and an info's `_info`, which is a gauge; units are
/// not known, and there is no end mark.
pub(super) fn older(open: &str) -> String {
    let mut out = String::with_capacity(open.len());
    let mut help = "";
    for line in open.lines() {
        if line.starts_with("# UNIT ") || line == "# EOF" {
            continue;
        }
        // The help comes first, and does not say the type.
        if line.starts_with("# HELP ") {
            help = line;
            continue;
        }
        let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|l| l.split_once(' '))
        else {
            out.push_str(line);
            out.push('\n');
            continue;
        };
        let (suffix, kind) = match kind {
            "counter" => ("_total", "counter"),
            "info" => ("_info", "gauge"),
            kind => ("", kind),
        };
        if let Some((_, text)) = help["# HELP ".len()..].split_once(' ') {
            out.push_str(&format!("# HELP {name}{suffix} {text}\n"));
        }
        out.push_str(&format!("# TYPE {name}{suffix} {kind}\n"));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::older;

    #[test]
    fn names_include_their_suffix() {
        let open = "# HELP a_bytes Some bytes.\n# TYPE a_bytes counter\n# UNIT a_bytes bytes\na_bytes_total 1\n\
                    # HELP b About it.\n# TYPE b info\nb_info{x=\"# UNIT \"} 1\n# HELP c C.\n# TYPE c gauge\nc 1\n# EOF\n";
        let expected = "# HELP a_bytes_total Some bytes.\n# TYPE a_bytes_total counter\na_bytes_total 1\n\
                        # HELP b_info About it.\n# TYPE b_info gauge\nb_info{x=\"# UNIT \"} 1\n# HELP c C.\n# TYPE c gauge\nc 1\n";
        assert_eq!(older(open), expected);
    }
}
