//! `strongroom inspect`: what is known of an object without decrypting it,
//! and the six questions of custody.

use clap::Args;

use super::failure::Failure;
use super::place::S3Url;
use super::ui::{Ui, shown, size};
use crate::api::{Availability, Inspection};

#[derive(Args)]
pub(super) struct InspectArgs {
    /// The object
    #[arg(value_name = "s3://BUCKET/KEY")]
    place: S3Url,
    /// This version of the object
    #[arg(long, value_name = "ID")]
    version_id: Option<String>,
}

pub(super) async fn run(ui: &Ui, args: InspectArgs) -> Result<(), Failure> {
    let place = args.place.object()?;
    let found = ui
        .client()
        .inspect(&place.bucket, &place.key, args.version_id.as_deref())
        .await
        .map_err(|error| Failure::api(format_args!("cannot inspect {place}"), &error))?;
    if ui.is_json() {
        return ui.json(&found);
    }
    ui.line(&text(&place, &found))
}

fn text(place: &S3Url, found: &Inspection) -> String {
    let mut lines = vec![place.to_string()];
    let mut field = |name: &str, value: &str| {
        lines.push(format!("  {name:<16} {}", shown(value)));
    };
    if let Some(version) = &found.version_id {
        field("version", version);
    }
    let stored = format!("{} ({} bytes)", size(found.stored_size), found.stored_size);
    field("in the store", &stored);
    if let Some(bytes) = found.plaintext_size {
        field("plaintext", &format!("{} ({bytes} bytes)", size(bytes)));
    }
    if let Some(time) = &found.last_modified {
        field("stored at", time);
    }
    if let Some(class) = &found.storage_class {
        field("storage class", class);
    }
    if let Some(until) = &found.retain_until {
        let mode = found.retention_mode.as_deref().unwrap_or("Object Lock");
        field("retained until", &format!("{until} ({mode})"));
    }
    if let Some(archive) = &found.archive {
        let until = archive.until.as_deref();
        field(
            "archive",
            &match (archive.state, until) {
                (Availability::Readable, Some(until)) => {
                    format!("a copy is readable until {until}")
                }
                (Availability::Readable, None) => "readable".to_owned(),
                (Availability::Restoring, _) => "asked for, and not readable yet".to_owned(),
                (Availability::Archived, _) => "to be asked for before it can be read".to_owned(),
            },
        );
    }
    field(
        "message",
        &format!(
            "format version {}, suite {}",
            found.format_version, found.suite
        ),
    );
    let frames = match found.frame_length {
        0 => "not framed".to_owned(),
        length => format!("of {}", size(length.into())),
    };
    field("frames", &frames);
    field("message id", &found.message_id);
    field("catalogue", &found.catalogue);
    field("verified", &found.verified);
    for (name, value) in &found.context {
        field("context", &format!("{name} = {value}"));
    }
    for key in &found.encrypted_data_keys {
        let held = match (&key.token, key.at_hand) {
            (Some(token), true) => format!("at hand, in token {token}"),
            (None, true) => "at hand".to_owned(),
            (Some(_), false) => "not at hand".to_owned(),
            (None, false) => key.holder.clone(),
        };
        let name = format!("{} / {} ({held})", key.provider, key.name);
        field("wrapped by", &name);
    }
    for slot in &found.keyslots {
        let held = if slot.at_hand {
            "at hand"
        } else {
            "not at hand"
        };
        field(
            "keyslot for",
            &format!("{} ({held}): {}", slot.name, slot.slot),
        );
    }
    for answer in &found.questions {
        lines.push(String::new());
        lines.push(shown(&answer.question));
        lines.push(format!("  {}", shown(&answer.answer)));
    }
    lines.join("\n")
}
