//! `strongroom status`: the agent's health. Exit code 0 says it is ready.

use std::time::Duration;

use super::failure::{Failure, TEMPORARY};
use super::ui::{Ui, shown, size};
use crate::api::{AuditStatus, KeyInfo, QueueStatus, Status, TokenStatus};

/// What an agent in order calls itself.
const READY: &str = "ready";

pub(super) async fn run(ui: &Ui) -> Result<(), Failure> {
    let status = ui
        .client()
        .status()
        .await
        .map_err(|error| Failure::api("no status", &error))?;
    if ui.is_json() {
        ui.json(&status)?;
    } else {
        ui.line(&text(&status))?;
    }
    if status.health == READY {
        Ok(())
    } else {
        // The text above says it all.
        Err(Failure::silent(TEMPORARY))
    }
}

fn text(status: &Status) -> String {
    let uptime = humantime::format_duration(Duration::from_secs(status.uptime_seconds));
    let mut lines = vec![
        format!(
            "{:<9} strongroom {}, up {uptime}, supervisor pid {}, server pid {}",
            status.health, status.version, status.supervisor_pid, status.server_pid
        ),
        format!(
            "requests  {} running, {} of {} of memory in use",
            status.requests,
            size(status.memory_in_use),
            size(status.memory_budget)
        ),
        format!("store     {}", shown(&status.endpoint)),
        format!("confined  {}", status.confinement),
        format!("crypto    {}", shown(&status.cryptography)),
        match status.grants {
            0 => "grants    none configured: only root and the agent's own user may use it"
                .to_owned(),
            count => format!("grants    {count} in force; `strongroom grants list` shows them"),
        },
    ];
    if status.queue.tickets > 0 {
        lines.push(queue_line(&status.queue));
    }
    audit_lines(&status.audit, &mut lines);
    for token in &status.tokens {
        token_lines(token, &mut lines);
    }
    for key in &status.keys {
        lines.push(format!("key       {}", key_line(key)));
        for warning in &key.warnings {
            lines.push(format!("          {warning}"));
        }
    }
    lines.join("\n")
}

fn queue_line(queue: &QueueStatus) -> String {
    let mut line = format!(
        "queue     {} waiting for the store, {}",
        queue.tickets,
        size(queue.bytes)
    );
    let oldest = queue.oldest.and_then(|at| i64::try_from(at).ok());
    if let Some(oldest) = oldest.and_then(|at| jiff::Timestamp::from_millisecond(at).ok()) {
        line.push_str(&format!(", the oldest since {oldest:.0}"));
    }
    if queue.parked > 0 {
        line.push_str(&format!(
            "; {} refused and parked: `strongroom queue list`",
            queue.parked
        ));
    }
    line
}

fn audit_lines(audit: &AuditStatus, lines: &mut Vec<String>) {
    let made = &audit.checkpoints;
    let mut line = format!("audit     {}, {} records", audit.state, audit.records);
    line.push_str(&format!(", checkpoint over {}", made.size));
    line.push_str(match (made.signed, made.anchor) {
        (false, _) => ", unsigned: a self-check only",
        (true, false) => ", signed; no anchor: not proven against the operator",
        (true, true) => ", signed",
    });
    if let Some(size) = made.anchored {
        line.push_str(&format!(", anchored over {size}"));
    }
    lines.push(line);
    for (what, text) in [
        ("", &made.alarm),
        ("nothing is stored or read: ", &audit.detail),
        ("a checkpoint is due: ", &made.problem),
        ("it cannot be anchored: ", &made.anchor_problem),
    ] {
        if let Some(text) = text {
            lines.push(format!("          {what}{}", shown(text)));
        }
    }
}

fn token_lines(token: &TokenStatus, lines: &mut Vec<String>) {
    let mut line = format!("token     {}: {}", token.name, token.health);
    for (name, value) in [
        ("label", &token.token_label),
        ("serial", &token.serial),
        ("model", &token.model),
        ("gcm_iv", &token.gcm_iv),
    ] {
        if let Some(value) = value {
            line.push_str(&format!(", {name} {}", shown(value.trim_end())));
        }
    }
    if token.soft {
        line.push_str("; a software token: root on this host can read its keys");
    }
    lines.push(line);
    if let Some(detail) = &token.detail {
        lines.push(format!("          {}", shown(detail)));
    }
    if let Some(hint) = &token.hint {
        lines.push(format!("          hint: {}", shown(hint)));
    }
}

/// One key in one line; also of `key list`.
pub(super) fn key_line(key: &KeyInfo) -> String {
    let mut line = format!("{}: {}", key.name, key.usage);
    if key.ring != key.name {
        line.push_str(&format!(" in ring {}", key.ring));
    }
    line.push_str(&format!(
        ", in token {}, label {}",
        key.tokens.join(", "),
        shown(&key.label)
    ));
    line.push_str(if key.ready { ", ready" } else { ", not ready" });
    if let Some(problem) = &key.problem {
        line.push_str(&format!(": {}", shown(problem)));
    }
    line.push_str(&wraps(key));
    line
}

/// How far its count of wraps has come.
fn wraps(key: &KeyInfo) -> String {
    let (used, limit) = (key.wraps_used, key.wrap_limit);
    let mut text = format!("; wraps {used} of {limit}");
    if !key.wraps_complete {
        text.push_str(" at the least: the count is incomplete, rotate");
    }
    match (&key.handed_over_to, &key.successor) {
        (Some(next), _) => text.push_str(&format!(", handed over to {next}")),
        (None, Some(next)) => text.push_str(&format!(", successor {next}")),
        (None, None) if used >= limit - limit / 10 => text.push_str(", rotate"),
        (None, None) => {}
    }
    text
}
