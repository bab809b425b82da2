//! `strongroom verify`: whether what is stored is still there, unaltered and
//! current, and could be opened when it has to.

use clap::{Args, ValueEnum};

use super::failure::{ALTERED, Failure, TEMPORARY};
use super::place::S3Url;
use super::ui::{Ui, shown};
use crate::api::{Error, VerifyLine, VerifyRequest, VerifySummary};

#[derive(Args)]
pub(super) struct VerifyArgs {
    /// What to verify: the objects under this prefix
    #[arg(value_name = "s3://BUCKET/PREFIX")]
    place: S3Url,
    /// How closely to look: the catalogue against the listing, also against what the store tells of each object, or everything read and authenticated
    #[arg(long, value_name = "LEVEL", default_value = "list")]
    level: Level,
    /// Instead: whether this recipient's key opens each object, without reading more than its header
    #[arg(long, value_name = "NAME", conflicts_with_all = ["level", "allow_extra", "current_only"])]
    recipient: Option<String>,
    /// Look closely at a share of the objects, chosen at random
    #[arg(long, value_name = "SHARE", value_parser = share, default_value = "100%")]
    sample: f64,
    /// Objects that this host did not store are no finding: others write there too
    #[arg(long)]
    allow_extra: bool,
    /// Leave older versions alone: a lifecycle rule takes them
    #[arg(long)]
    current_only: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Level {
    List,
    Head,
    Read,
}

/// `1%`, or `0.01`.
fn share(text: &str) -> Result<f64, String> {
    let number = match text.strip_suffix('%') {
        Some(percent) => percent.parse::<f64>().map(|n| n / 100.0),
        None => text.parse(),
    };
    number
        .ok()
        .filter(|share| *share > 0.0 && *share <= 1.0)
        .ok_or_else(|| format!("{text:?} is no share such as 1%, above 0 and up to 100%"))
}

pub(super) async fn run(ui: &Ui, args: VerifyArgs) -> Result<(), Failure> {
    let check = match (&args.recipient, args.level) {
        (Some(_), _) => "recipient",
        (None, Level::List) => "list",
        (None, Level::Head) => "head",
        (None, Level::Read) => "read",
    };
    if check == "list" && args.sample < 1.0 {
        return Err(Failure::usage(
            "--sample is for --level head and read: the listing is compared as a whole",
        )
        .hint("add --level head or --level read"));
    }
    let request = VerifyRequest {
        check: check.to_owned(),
        recipient: args.recipient,
        bucket: args.place.bucket.clone(),
        prefix: args.place.key.clone(),
        sample: Some(args.sample),
        allow_extra: args.allow_extra,
        current_only: args.current_only,
    };
    let what = format!("cannot verify {}", args.place);
    let failed = |error: &Error| Failure::api(&what, error);
    let mut lines = ui.client().verify(&request).await.map_err(|e| failed(&e))?;
    let bar = ui.counter(&args.place.to_string());
    let mut summary = None;
    while let Some(line) = lines.next().await.map_err(|e| failed(&e))? {
        match line {
            VerifyLine::Progress { listed, checked } => bar.set(match check {
                "list" => listed,
                _ => checked,
            }),
            VerifyLine::Object(object) => {
                if ui.is_json() {
                    ui.json(&object)?;
                } else {
                    let mut place = shown(&format!("s3://{}/{}", object.bucket, object.key));
                    if let Some(version) = &object.version_id {
                        place += &format!(" (version {})", shown(version));
                    }
                    let text = format!("{}: {place}: {}", object.result, shown(&object.detail));
                    bar.print(|| ui.line(&text))?;
                }
            }
            VerifyLine::Problem(problem) => return Err(failed(&problem.into())),
            VerifyLine::Summary(sum) => summary = Some(sum),
        }
    }
    bar.finish();
    let Some(sum) = summary else {
        return Err(Failure::new(
            1,
            format!("{what}: the agent's answer broke off"),
        ));
    };
    conclude(ui, &args.place, &sum)
}

fn conclude(ui: &Ui, place: &S3Url, sum: &VerifySummary) -> Result<(), Failure> {
    if ui.is_json() {
        ui.json(sum)?;
    } else {
        let mut text = format!("{place}: {} listed", sum.listed);
        if sum.check != "list" {
            text += &format!(", {} looked at", sum.checked);
        }
        text += &format!(", {} good, {} bad", sum.good, sum.bad);
        for (count, words) in [
            (sum.extra, "not this host's"),
            (sum.unchecked, "archived and not looked at"),
            (sum.without_checksum, "without a checksum to compare"),
        ] {
            if count > 0 {
                text += &format!(", {count} {words}");
            }
        }
        ui.done(&format!("{text}; good means: {}", sum.proves))?;
    }
    if let (Some(who), true) = (&sum.recipient, sum.bad > 0) {
        return Err(Failure::new(
            ALTERED,
            format!(
                "recipient {who}: {} of {} objects looked at would not open",
                sum.bad, sum.checked
            ),
        )
        .hint("`strongroom cp` of an object onto itself wraps it for the recipients of today, while its key is there"));
    }
    if sum.bad > 0 {
        let kinds = sum.findings.iter();
        let kinds: Vec<String> = kinds
            .map(|(word, count)| format!("{count} {word}"))
            .collect();
        return Err(Failure::new(
            ALTERED,
            format!(
                "{place} is not as this host stored it: {}",
                kinds.join(", ")
            ),
        )
        .hint("docs/verify.md says what each word means and what to do"));
    }
    if sum.unchecked > 0 {
        return Err(Failure::new(
            TEMPORARY,
            format!(
                "{place}: {} objects are archived and could not be read",
                sum.unchecked
            ),
        )
        .hint("restore them in S3 first, or verify at --level head"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::share;

    #[test]
    fn a_share_is_a_percentage_or_a_fraction() {
        assert_eq!(share("1%"), Ok(0.01));
        assert_eq!(share("0.5"), Ok(0.5));
        assert_eq!(share("100%"), Ok(1.0));
        for wrong in ["0", "0%", "101%", "-1%", "some", "NaN"] {
            assert!(share(wrong).is_err(), "{wrong}");
        }
    }
}
