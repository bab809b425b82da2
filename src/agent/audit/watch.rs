//! Tokens and keys as the records last told of them: each change is one.

use std::collections::BTreeMap;

use crate::api::{KeyInfo, TokenStatus};
use crate::audit::{Event, Kind};

/// What was last recorded.
#[derive(Default)]
pub(in crate::agent) struct Watch {
    tokens: BTreeMap<String, String>,
    keys: BTreeMap<String, Key>,
    /// The active key of each ring.
    rings: BTreeMap<String, String>,
}

#[derive(Clone, Default, PartialEq, Eq)]
struct Key {
    /// `opened`, `refused`, or nothing to tell yet.
    gate: Option<(&'static str, Option<String>)>,
    usage: String,
    successor: Option<String>,
    exhausted: bool,
    /// Its cryptoperiod is over.
    overdue: bool,
}

impl Watch {
    /// What has changed since the last look, as records.
    pub(in crate::agent) fn look(
        &mut self,
        tokens: &[TokenStatus],
        keys: &[KeyInfo],
    ) -> Vec<Event> {
        let mut events = Vec::new();
        for token in tokens {
            let former = self.tokens.insert(token.name.clone(), token.health.clone());
            if former.as_ref() != Some(&token.health) {
                let mut event = Event::new(Kind::Token);
                event.token = Some(token.name.clone());
                event.state = Some(token.health.clone());
                event.detail.clone_from(&token.detail);
                events.push(event);
            }
        }
        for key in keys {
            let known = self.keys.contains_key(&key.name);
            let former = self.keys.entry(key.name.clone()).or_default();
            let now = Key {
                // A token that is away says nothing of its keys.
                gate: gate(key).or_else(|| former.gate.clone()),
                usage: key.usage.clone(),
                successor: key.handed_over_to.clone(),
                exhausted: key.wrap_limit > 0 && key.wraps_used >= key.wrap_limit,
                overdue: key.usage == "active"
                    && key.cryptoperiod_left_seconds.is_some_and(|left| left < 0),
            };
            let mut tell = |state: &str, detail: Option<String>| {
                let mut event = Event::new(Kind::Key);
                event.token = Some(key.token.clone());
                event.wrapping_key = Some(key.name.clone());
                event.check_value.clone_from(&key.check_value);
                event.state = Some(state.to_owned());
                event.detail = detail;
                events.push(event);
            };
            if now.gate != former.gate
                && let Some((state, detail)) = &now.gate
            {
                tell(state, detail.clone());
            }
            if known && now.usage != former.usage {
                tell(&now.usage, Some(format!("was {}", former.usage)));
            }
            if now.successor != former.successor
                && let Some(next) = &now.successor
            {
                tell("handed-over", Some(format!("{next} wraps in its place")));
            }
            if now.exhausted && !former.exhausted {
                tell("exhausted", None);
            }
            if now.overdue && !former.overdue {
                tell("cryptoperiod-exceeded", None);
            }
            if now.usage == "active" {
                let before = self.rings.insert(key.ring.clone(), key.name.clone());
                if let Some(before) = before.filter(|before| *before != key.name) {
                    let ring = &key.ring;
                    tell(
                        "rotated",
                        Some(format!("wraps for ring {ring} in place of {before}")),
                    );
                }
            }
            *former = now;
        }
        events
    }
}

/// Whether the key has passed its token's gate or was refused.
fn gate(key: &KeyInfo) -> Option<(&'static str, Option<String>)> {
    match &key.problem {
        None if key.ready => Some(("opened", None)),
        // Its attributes were read, and it was not let in.
        Some(problem) if !key.ready && !key.attributes.is_empty() => {
            Some(("refused", Some(problem.clone())))
        }
        _ => None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn states(events: &[Event]) -> Vec<&str> {
        events.iter().map(|e| e.state.as_deref().unwrap()).collect()
    }

    #[test]
    fn each_change_is_told_once() {
        let mut watch = Watch::default();
        let mut token = TokenStatus {
            name: "t".into(),
            health: "ready".into(),
            ..TokenStatus::default()
        };
        let mut key = KeyInfo {
            name: "k".into(),
            usage: "active".into(),
            ready: true,
            wrap_limit: 10,
            ..KeyInfo::default()
        };
        let mut look = |token: &TokenStatus, key: &KeyInfo| {
            let events = watch.look(std::slice::from_ref(token), std::slice::from_ref(key));
            states(&events).join(" ")
        };
        assert_eq!(look(&token, &key), "ready opened");
        assert_eq!(look(&token, &key), "");
        token.health = "recovering".into();
        key.ready = false;
        assert_eq!(look(&token, &key), "recovering");
        token.health = "ready".into();
        key.ready = true;
        assert_eq!(look(&token, &key), "ready");
        key.usage = "decrypt".into();
        key.handed_over_to = Some("next".into());
        key.wraps_used = 10;
        assert_eq!(look(&token, &key), "decrypt handed-over exhausted");
        let mut next = KeyInfo {
            name: "next".into(),
            ring: key.ring.clone(),
            cryptoperiod_left_seconds: Some(-1),
            wraps_used: 0,
            usage: "active".into(),
            handed_over_to: None,
            ..key.clone()
        };
        assert_eq!(look(&token, &next), "opened cryptoperiod-exceeded rotated");
        next.usage = "disabled".into();
        assert_eq!(look(&token, &next), "disabled");
    }
}
