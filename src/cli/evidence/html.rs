//! The report as one HTML page that needs nothing else: no script, no font,
//! no network. It reads on a phone, on paper, in light and in dark.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::charts;
use crate::api::{
    Answer, Evidence, EvidenceKey, EvidenceToken, EvidenceVerification, LifeEvent, Listing, Outage,
    Report,
};

const STYLE: &str = include_str!("style.css");

/// The page.
pub(super) fn page(evidence: &Evidence) -> String {
    let report = &evidence.report;
    let title = format!("Evidence of key custody: {}", report.installation.host);
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'";
                title { (title) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                header {
                    h1 { "Evidence of key custody" }
                    p.period {
                        (date(&report.from)) " to " (date(&report.to)) " · host "
                        strong { (report.installation.host) }
                    }
                    (verdict(evidence))
                }
                main {
                    (questions(&report.questions))
                    (period(report))
                    (keys(&report.keys))
                    (tokens(&report.tokens))
                    (access(report))
                    (listing("Denied", "Nobody was refused for want of a grant.", &report.denials))
                    (listing("Refused as altered", "No object was found altered, truncated, rolled back or out of place.", &report.refusals))
                    (verifications(&report.verifications))
                    (outages(&report.outages))
                    (listing("Changes of keys and configuration", "Nothing was changed.", &report.changes))
                    (log(report))
                    (installation(report))
                }
                footer { (signature(evidence)) }
            }
        }
    }
    .into_string()
}

/// What the reader wants to know first: is anything wrong?
fn verdict(evidence: &Evidence) -> Markup {
    let report = &evidence.report;
    let log = &report.log;
    let signed = evidence.note.is_some();
    let good = log.intact && signed && log.caveats.is_empty();
    html! {
        div.verdict.good[good].warn[log.intact && !good].bad[!log.intact] {
            p {
                @if !log.intact { strong { "The audit log is not intact." } " " (log.problem.as_deref().unwrap_or_default()) }
                @else if good { strong { "The audit log is intact, signed and anchored." } }
                @else { strong { "The audit log is intact" } ", with these limits:" }
            }
            @if !log.caveats.is_empty() || !signed {
                ul {
                    @for caveat in &log.caveats { li { (caveat) } }
                    @if let Some(why) = &evidence.unsigned { li { "this report is not signed: " (why) } }
                }
            }
        }
    }
}

fn questions(answers: &[Answer]) -> Markup {
    html! {
        section {
            h2 { "The six questions" }
            dl.questions {
                @for answer in answers { dt { (answer.question) } dd { (answer.answer) } }
            }
        }
    }
}

fn period(report: &Report) -> Markup {
    let sum = |of: fn(&crate::api::Day) -> u64| report.days.iter().map(of).sum::<u64>();
    html! {
        section {
            h2 { "The period at a glance" }
            ul.figures {
                (figure(sum(|d| d.puts), "stored"))
                (figure(sum(|d| d.gets), "read"))
                (figure(sum(|d| d.deletes), "deleted"))
                (figure(report.denials.total, "denied"))
                (figure(report.refusals.total, "refused as altered"))
                (figure(report.outages.len() as u64, "outages"))
            }
            (charts::days(&report.days))
        }
    }
}

fn figure(number: u64, what: &str) -> Markup {
    html! { li { strong { (grouped(number)) } " " span { (what) } } }
}

fn keys(keys: &[EvidenceKey]) -> Markup {
    html! {
        section {
            h2 { "Wrapping keys" }
            @if keys.is_empty() { p.none { "None is configured." } }
            (charts::keys(keys))
            @for key in keys {
                article.key {
                    h3 { (key.name) " " span.tag { (key.usage) } }
                    table.facts { tbody {
                        (row("Ring", &key.ring))
                        (row("Held by", &format!("{}, as CKA_LABEL {:?}", key.tokens.join(", "), key.label)))
                        @if let Some(value) = &key.check_value { (row("Check value", value)) }
                        (row("Made", &key.origin))
                        (row(if key.made_here { "Made on" } else { "First used here" }, key.since.as_deref().map_or("unknown", date)))
                        (row("Age", &age(key)))
                        (row("Wraps", &wraps(key)))
                        (row("Depends on it", &format!("{} objects, {}", grouped(key.objects), bytes(key.stored_bytes))))
                        (row("In the period", &format!("{} stored, {} read", grouped(key.puts), grouped(key.gets))))
                    } }
                    @if !key.life.is_empty() {
                        details open {
                            summary { "Its life, as the log has it" }
                            table.facts { tbody {
                                @for event in &key.life { (row(date(&event.time), &life(event))) }
                            } }
                        }
                    }
                    @if key.attributes.is_empty() {
                        p.none { "Its token is away: its attributes could not be read." }
                    } @else {
                        details open {
                            summary { "Attributes as read from the token" }
                            (attributes(&key.attributes))
                        }
                    }
                }
            }
        }
    }
}

fn attributes(attributes: &[(String, String)]) -> Markup {
    html! {
        ul.attributes {
            @for (name, value) in attributes { li { code { (name) } " " (value) } }
        }
    }
}

fn life(event: &LifeEvent) -> String {
    let mut text = event.state.clone();
    if let Some(detail) = &event.detail {
        text.push_str(": ");
        text.push_str(detail);
    }
    if let Some(uid) = event.uid {
        text.push_str(&format!(" (uid {uid})"));
    }
    text
}

fn age(key: &EvidenceKey) -> String {
    let Some(age) = key.age_days else {
        return "unknown".to_owned();
    };
    match key.cryptoperiod_days {
        None => format!("{age} days; no cryptoperiod is configured"),
        Some(period) if age > period => {
            format!("{age} days: beyond its cryptoperiod of {period} days")
        }
        Some(period) => format!("{age} of {period} days of its cryptoperiod"),
    }
}

fn wraps(key: &EvidenceKey) -> String {
    let known = if key.wraps_complete {
        ""
    } else {
        "; not all of its life is counted"
    };
    format!(
        "at most {} of {} on this host{known}",
        grouped(key.wraps_reserved),
        grouped(key.wrap_limit)
    )
}

fn tokens(tokens: &[EvidenceToken]) -> Markup {
    html! {
        section {
            h2 { "Tokens" }
            @for token in tokens {
                article {
                    h3 { (token.name) @if token.soft { " " span.tag.warn { "software token" } } }
                    table.facts { tbody {
                        (known("Label", token.label.as_deref()))
                        (known("Serial number", token.serial.as_deref()))
                        (known("Model", token.model.as_deref()))
                        (known("Versions", token.firmware.as_deref()))
                        (known("PKCS#11 library", token.library.as_deref()))
                        (known("IV of a wrap", token.gcm_iv.as_deref()))
                    } }
                    @if token.soft {
                        p { "A software token protects no key from whoever is root on its host." }
                    }
                }
            }
        }
    }
}

fn access(report: &Report) -> Markup {
    html! {
        section {
            h2 { "Who may do what, and who did" }
            h3 { "Granted" }
            ul { @for grant in &report.grants { li { (grant) } } }
            h3 { "Done in the period" }
            @if report.activity.is_empty() { p.none { "Nothing." } } @else {
                table.wide {
                    thead { tr { th { "User" } th { "Operation" } th { "Result" } th.number { "Times" } th.number { "Plaintext" } } }
                    tbody {
                        @for entry in &report.activity {
                            tr {
                                td data-name="User" { "uid " (entry.uid) }
                                td data-name="Operation" { (entry.operation) }
                                td data-name="Result" { (entry.result) }
                                td.number data-name="Times" { (grouped(entry.count)) }
                                td.number data-name="Plaintext" { (bytes(entry.bytes)) }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn listing(title: &str, nothing: &str, listing: &Listing) -> Markup {
    html! {
        section {
            h2 { (title) }
            @if listing.total == 0 { p.none { (nothing) } } @else {
                table.wide {
                    thead { tr { th.number { "Record" } th { "Time" } th { "User" } th { "Subject" } th { "What" } } }
                    tbody {
                        @for shown in &listing.shown {
                            tr {
                                td.number data-name="Record" { (shown.seq) }
                                td data-name="Time" { (instant(&shown.time)) }
                                td data-name="User" { @if let Some(uid) = shown.uid { "uid " (uid) } @else { "–" } }
                                td data-name="Subject" { (shown.subject.as_deref().unwrap_or("–")) }
                                td data-name="What" { (shown.what) }
                            }
                        }
                    }
                }
                @let more = listing.total.saturating_sub(listing.shown.len() as u64);
                @if more > 0 { p { "And " (grouped(more)) " more, in the log." } }
            }
        }
    }
}

fn verifications(runs: &[EvidenceVerification]) -> Markup {
    html! {
        section {
            h2 { "Verified to be there" }
            @if runs.is_empty() { p.none { "Nothing was verified in the period." } } @else {
                table.wide {
                    thead { tr { th.number { "Record" } th { "Time" } th { "What" } th { "Level" } th.number { "Listed" } th.number { "Looked at" } th { "Result" } } }
                    tbody {
                        @for run in runs {
                            @let found = run.found.clone().unwrap_or_default();
                            tr {
                                td.number data-name="Record" { (run.seq) }
                                td data-name="Time" { (instant(&run.time)) }
                                td data-name="What" { (run.subject) }
                                td data-name="Level" { (found.level) @if let Some(sample) = &found.sample { ", " (sample) } }
                                td.number data-name="Listed" { (grouped(found.listed)) }
                                td.number data-name="Looked at" { (grouped(found.checked)) }
                                td data-name="Result" {
                                    @if run.found.is_none() { "broken off: " (run.result) }
                                    @else if found.bad == 0 { "all good" }
                                    @else {
                                        strong { (grouped(found.bad)) " bad" }
                                        @for (word, count) in &found.findings { ", " (count) " " (word) }
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn outages(outages: &[Outage]) -> Markup {
    html! {
        section {
            h2 { "Outages" }
            @if outages.is_empty() { p.none { "Tokens, log and agent were there all the time." } } @else {
                table.wide {
                    thead { tr { th { "What" } th { "From" } th { "To" } th { "Why" } } }
                    tbody {
                        @for outage in outages {
                            tr {
                                td data-name="What" { (outage.what) }
                                td data-name="From" { (instant(&outage.from)) }
                                td data-name="To" { (outage.to.as_deref().map_or("not over", instant)) }
                                td data-name="Why" { (outage.why) }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn log(report: &Report) -> Markup {
    let log = &report.log;
    let span = match (log.first_seq, log.last_seq) {
        (Some(first), Some(last)) => format!("{first} to {last}"),
        _ => "none".to_owned(),
    };
    html! {
        section {
            h2 { "The log behind this report" }
            table.facts { tbody {
                (row("Records in the period", &format!("{} ({span})", grouped(log.records))))
                (known("Root of its tree", log.root.as_deref()))
                (row("Under a signed checkpoint", &grouped(log.signed)))
                (row("Under an anchored checkpoint", &grouped(log.anchored)))
                (row("Operations without a known end", &grouped(log.open)))
                (row("Intact", if log.intact { "yes" } else { "no" }))
                (known("First problem", log.problem.as_deref()))
            } }
        }
    }
}

fn installation(report: &Report) -> Markup {
    let installation = &report.installation;
    html! {
        section {
            h2 { "The installation" }
            table.facts { tbody {
                (row("Host", &installation.host))
                (row("Log", &installation.origin))
                (row("Strongroom", &installation.version))
                (row("Store", &installation.endpoint))
                (row("Message format", &installation.suite))
                (row("Cryptography of the data", &installation.cryptography))
                (row("Confinement", &installation.confinement))
                (row("SHA-256 of the configuration", &installation.config_sha256))
            } }
            @if let Some(key) = &report.audit_key {
                h3 { "The key that signs" }
                table.facts { tbody {
                    (row("Held by", &format!("{}, as CKA_LABEL {:?}", key.token, key.label)))
                    (row("Public key (P-256)", &key.public_key))
                } }
                (attributes(&key.attributes))
            }
        }
    }
}

fn signature(evidence: &Evidence) -> Markup {
    html! {
        p { "Made " (instant(&evidence.made_at)) ". SHA-256 of the report's JSON: " code { (evidence.report_sha256) } }
        @if let Some(note) = &evidence.note { pre { (note) } }
    }
}

fn row(name: &str, value: &str) -> Markup {
    html! { tr { th scope="row" { (name) } td { (value) } } }
}

fn known(name: &str, value: Option<&str>) -> Markup {
    html! { @if let Some(value) = value { (row(name, value)) } }
}

/// `2026-11-22` of an instant.
fn date(instant: &str) -> &str {
    instant.split('T').next().unwrap_or(instant)
}

/// An instant without fractions of a second.
fn instant(text: &str) -> &str {
    text.split('.').next().unwrap_or(text)
}

/// A number with its thousands apart.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            // A thin space, which does not break a line.
            text.push('\u{202f}');
        }
        text.push(digit);
    }
    text
}

fn bytes(number: u64) -> String {
    crate::cli::ui::size(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_apart() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(1_234_567), "1\u{202f}234\u{202f}567");
    }

    #[test]
    fn what_comes_from_outside_cannot_write_html() {
        let mut evidence = Evidence {
            report: Report::default(),
            made_at: "2026-01-01T00:00:00Z".into(),
            report_sha256: String::new(),
            note: None,
            unsigned: None,
        };
        evidence.report.refusals = Listing {
            total: 1,
            shown: vec![crate::api::Shown {
                subject: Some("s3://b/<script>alert(1)</script>".into()),
                ..crate::api::Shown::default()
            }],
        };
        let page = page(&evidence);
        assert!(!page.contains("<script"));
        assert!(page.contains("&lt;script"));
        // Nothing that would be fetched.
        for word in ["http://", "https://", "src=", "href=", "url(", "@import"] {
            assert!(!page.contains(word), "{word}");
        }
    }
}
