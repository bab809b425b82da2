//! What a token's callers see of it: its health, its worker's link, and its
//! keys; and what that means for a call.

use std::sync::Arc;

use crate::api;

use super::error::TokenError;
use super::health::Health;
use super::link::Link;
use super::protocol::{Attributes, KeySpec, OpenedKey, TokenInfo};

/// A configured key's state on its token.
#[derive(Clone, Debug)]
pub struct KeyState {
    /// The key.
    pub spec: KeySpec,
    /// Whether it can be used now.
    pub ready: bool,
    /// Why not.
    pub problem: Option<String>,
    /// Its attributes, as the token reported them when it was last opened.
    pub attributes: Attributes,
    /// The token's own check value, if it gives one.
    pub check_value: Option<[u8; 3]>,
}

/// A configured key: what the token says of it once it passed gate and
/// canary, or why it did not pass.
#[derive(Clone)]
pub(super) struct Slot {
    pub(super) spec: KeySpec,
    pub(super) opened: Option<OpenedKey>,
    pub(super) problem: Option<TokenError>,
}

impl Slot {
    pub(super) fn pending(spec: KeySpec) -> Self {
        Self {
            spec,
            opened: None,
            problem: None,
        }
    }

    /// Whether another attempt may end differently with nothing corrected.
    pub(super) fn temporary(&self) -> bool {
        self.opened.is_none() && !matches!(self.problem, Some(TokenError::Misconfigured { .. }))
    }

    pub(super) fn report(&self, alive: bool) -> KeyState {
        let opened = self.opened.clone().unwrap_or_default();
        KeyState {
            spec: self.spec.clone(),
            ready: alive && self.opened.is_some(),
            problem: self.problem.as_ref().map(ToString::to_string),
            attributes: opened.attributes,
            check_value: opened.check_value,
        }
    }
}

/// What callers see.
#[derive(Clone)]
pub(super) struct State {
    pub(super) health: Health,
    pub(super) detail: Option<String>,
    pub(super) hint: Option<String>,
    pub(super) info: Option<TokenInfo>,
    /// A worker that said hello.
    pub(super) link: Option<Arc<Link>>,
    /// Every configured key, in the configuration's order.
    pub(super) keys: Arc<Vec<Slot>>,
}

impl State {
    pub(super) fn starting() -> Self {
        Self {
            health: Health::Starting,
            detail: Some("the token's worker has not said hello yet".to_owned()),
            hint: None,
            info: None,
            link: None,
            keys: Arc::default(),
        }
    }

    /// Why no call can succeed before somebody acts.
    pub(super) fn refusal(&self) -> Option<TokenError> {
        let detail = self.detail.clone().unwrap_or_default();
        let hint =
            |kind: api::ErrorKind| self.hint.clone().unwrap_or_else(|| kind.hint().to_owned());
        match self.health {
            Health::Misconfigured => Some(TokenError::Misconfigured {
                detail,
                hint: hint(api::ErrorKind::Misconfigured),
            }),
            Health::Locked => Some(TokenError::Locked {
                detail,
                hint: hint(api::ErrorKind::TokenLocked),
            }),
            _ => None,
        }
    }

    /// The worker's link, unless it was closed a moment ago.
    pub(super) fn open_link(&self) -> Option<&Arc<Link>> {
        self.link.as_ref().filter(|link| link.is_open())
    }

    /// Where a call with this key goes; `None` is "not yet".
    pub(super) fn route(&self, name: &str) -> Option<Result<(Arc<Link>, u32), TokenError>> {
        // A key's own problem tells more than the token's.
        let key = self.keys.iter().find(|key| key.spec.name == name);
        if let Some(error @ TokenError::Misconfigured { .. }) =
            key.and_then(|key| key.problem.as_ref())
        {
            return Some(Err(error.clone()));
        }
        if let Some(error) = self.refusal().filter(|_| self.link.is_none()) {
            return Some(Err(error));
        }
        // Before the first worker, the keys may not have been set yet.
        if key.is_none() && self.health != Health::Starting {
            return Some(Err(TokenError::UnknownKey(name.to_owned())));
        }
        let opened = key?.opened.as_ref()?;
        Some(Ok((Arc::clone(self.open_link()?), opened.id)))
    }
}
