//! Pictures: what was done day by day, and how far each key is used up.

use maud::{Markup, html};

use super::html::grouped;
use crate::api::{Day, EvidenceKey};

/// The drawing's own units; a page scales it to its width.
const WIDTH: u64 = 640;
/// Height of the bars.
const HEIGHT: u64 = 120;
/// Below them, for dates.
const FOOT: u64 = 26;
/// Above them, for the scale.
const TOP: u64 = 22;
/// Width of a date at the largest size, that of a phone.
const LABEL: u64 = 60;
/// Most bars that can be told apart; longer periods are drawn by groups.
const BARS: usize = 92;

/// Operations of each day, stacked.
pub(super) fn days(days: &[Day]) -> Markup {
    let group = days.len().div_ceil(BARS).max(1);
    let bars: Vec<(&str, [u64; 4])> = days
        .chunks(group)
        .map(|days| {
            let sum = |of: fn(&Day) -> u64| days.iter().map(of).sum::<u64>();
            let parts = [
                sum(|d| d.puts),
                sum(|d| d.gets),
                sum(|d| d.deletes + d.failures),
                sum(|d| d.denials + d.refusals),
            ];
            (days.first().map_or("", |day| day.date.as_str()), parts)
        })
        .collect();
    let most = bars
        .iter()
        .map(|(_, parts)| parts.iter().sum::<u64>())
        .max();
    let Some(most) = most.filter(|most| *most > 0) else {
        return html! {};
    };
    let count = bars.len() as u64;
    let step = WIDTH / count.max(1);
    let width = step.saturating_sub(1).clamp(1, 40);
    let label_every = count.div_ceil(8).max(1);
    let by = match group {
        1 => "by day".to_owned(),
        _ => format!("by {group} days"),
    };
    html! {
        figure {
            svg viewBox=(format!("0 0 {WIDTH} {}", TOP + HEIGHT + FOOT)) role="img" aria-label=(format!("Operations {by}, at most {most}")) {
                text x="0" y="16" { (grouped(most)) }
                line.axis x1="0" y1=(TOP) x2=(WIDTH) y2=(TOP) {}
                line.axis x1="0" y1=(TOP + HEIGHT) x2=(WIDTH) y2=(TOP + HEIGHT) {}
                @for (i, (date, parts)) in (0_u64..).zip(&bars) {
                    @for (class, y, height) in stack(parts, most) {
                        rect class=(class) x=(i * step) y=(y) width=(width) height=(height) {}
                    }
                    @if i % label_every == 0 && i * step + LABEL <= WIDTH {
                        text x=(i * step) y=(TOP + HEIGHT + 20) { (date.get(5..).unwrap_or(date)) }
                    }
                }
            }
            figcaption.legend {
                "Operations " (by) ":"
                span.put { "stored" } span.get { "read" } span.rest { "deleted or failed" } span.bad { "denied or refused" }
            }
        }
    }
}

/// Rectangles from the bottom up; what is there at all is seen.
fn stack(parts: &[u64; 4], most: u64) -> Vec<(&'static str, u64, u64)> {
    let mut bottom = TOP + HEIGHT;
    ["put", "get", "rest", "bad"]
        .into_iter()
        .zip(parts)
        .filter(|(_, number)| **number > 0)
        .map(|(class, number)| {
            let height = (number.saturating_mul(HEIGHT) / most).max(2);
            bottom = bottom.saturating_sub(height);
            (class, bottom, height)
        })
        .collect()
}

/// How much of its limit each key has used.
pub(super) fn keys(keys: &[EvidenceKey]) -> Markup {
    const ROW: u64 = 28;
    const NAME: u64 = 180;
    let count = keys.len() as u64;
    if keys.is_empty() {
        return html! {};
    }
    let used = |key: &EvidenceKey| {
        let room = WIDTH - NAME;
        let limit = key.wrap_limit.max(1);
        let share = u128::from(key.wraps_reserved) * u128::from(room) / u128::from(limit);
        u64::try_from(share).unwrap_or(room).min(room)
    };
    html! {
        figure {
            svg viewBox=(format!("0 0 {WIDTH} {}", count * ROW)) role="img" aria-label="Wraps used of each key's limit" {
                @for (i, key) in (0_u64..).zip(keys) {
                    text x="0" y=(i * ROW + 19) { (short(&key.name)) }
                    rect.free x=(NAME) y=(i * ROW + 8) width=(WIDTH - NAME) height="12" {}
                    rect class=(if used(key) * 10 > (WIDTH - NAME) * 9 { "bad" } else { "put" })
                        x=(NAME) y=(i * ROW + 8) width=(used(key).max(1)) height="12" {}
                }
            }
            figcaption { "Wraps used of each key's limit on this host" }
        }
    }
}

fn short(name: &str) -> String {
    const MOST: usize = 16;
    match name.char_indices().nth(MOST) {
        Some((at, _)) => format!("{}…", &name[..at]),
        None => name.to_owned(),
    }
}
