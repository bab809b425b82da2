//! `strongroom verify`: whether what is stored could be opened when it has to.

use clap::Args;

use super::failure::{ALTERED, Failure};
use super::place::S3Url;
use super::ui::{Ui, shown};
use crate::api::{Error, VerifyLine, VerifyRequest, VerifySummary};

#[derive(Args)]
pub(super) struct VerifyArgs {
    /// What to verify: the objects under this prefix
    #[arg(value_name = "s3://BUCKET/PREFIX")]
    place: S3Url,
    /// Whether this recipient's key opens each object, without reading more than its header
    #[arg(long, value_name = "NAME", required = true)]
    recipient: Option<String>,
    /// Look at a share of the objects, chosen at random
    #[arg(long, value_name = "SHARE", value_parser = share, default_value = "100%")]
    sample: f64,
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
    let request = VerifyRequest {
        check: "recipient".to_owned(),
        recipient: args.recipient,
        bucket: args.place.bucket.clone(),
        prefix: args.place.key.clone(),
        sample: Some(args.sample),
    };
    let what = format!("cannot verify {}", args.place);
    let failed = |error: &Error| Failure::api(&what, error);
    let mut lines = ui.client().verify(&request).await.map_err(|e| failed(&e))?;
    let bar = ui.counter(&args.place.to_string());
    let mut summary = None;
    while let Some(line) = lines.next().await.map_err(|e| failed(&e))? {
        match line {
            VerifyLine::Progress { checked, .. } => bar.set(checked),
            VerifyLine::Object(object) => {
                if ui.is_json() {
                    ui.json(&object)?;
                } else {
                    let place = format!("s3://{}/{}", object.bucket, object.key);
                    let text = format!(
                        "{}: {}: {}",
                        object.result,
                        shown(&place),
                        shown(&object.detail)
                    );
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
        ui.done(&format!(
            "{place}: {} of {} objects looked at, {} good, {} bad; good means: {}",
            sum.checked, sum.listed, sum.good, sum.bad, sum.proves
        ))?;
    }
    if sum.bad == 0 {
        return Ok(());
    }
    let who = sum.recipient.as_deref().unwrap_or_default();
    Err(Failure::new(
        ALTERED,
        format!(
            "recipient {who}: {} of {} objects looked at would not open",
            sum.bad, sum.checked
        ),
    )
    .hint("`strongroom cp` of an object onto itself wraps it for the recipients of today, while its key is there"))
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
