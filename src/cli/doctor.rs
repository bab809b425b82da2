//! `strongroom doctor`: what is wrong with this host's set-up, and how to
//! mend it.

use clap::Args;

use super::failure::{FAILED, Failure};
use super::ui::Ui;
use crate::config::Config;
use crate::doctor;

#[derive(Args)]
pub(super) struct DoctorArgs {
    /// Also try this bucket, with a small object that is deleted afterwards
    #[arg(long, value_name = "BUCKET")]
    bucket: Option<String>,
}

pub(super) fn run(ui: &Ui, args: &DoctorArgs) -> Result<(), Failure> {
    let path = ui.config();
    let configured = Config::load(&path).ok().map(|config| config.agent.socket);
    let socket = ui.socket(configured.as_deref());
    // Written by users as `aws s3` has them write it.
    let bucket = args.bucket.as_deref().map(|bucket| {
        bucket
            .strip_prefix("s3://")
            .unwrap_or(bucket)
            .trim_end_matches('/')
    });
    let findings = doctor::run(&path, &socket, bucket);
    for finding in &findings {
        if ui.is_json() {
            ui.json(finding)?;
            continue;
        }
        let verdict = if finding.ok { "ok   " } else { "wrong" };
        ui.line(&format!("{verdict} {}: {}", finding.area, finding.what))?;
        if let Some(remedy) = &finding.remedy {
            ui.line(&format!("      hint: {remedy}"))?;
        }
    }
    if findings.iter().all(|finding| finding.ok) {
        Ok(())
    } else {
        // The findings say it all.
        Err(Failure::silent(FAILED))
    }
}
