//! The configured keys of a token: through gate and canary, out of service when
//! they are refused, and tried again.

use std::sync::Arc;
use std::time::Instant;

use crate::token::error::TokenError;
use crate::token::opening::open_key;
use crate::token::protocol::KeySpec;
use crate::token::state::Slot;

use super::{Command, FRESH, Manager};

impl Manager {
    pub(super) fn set_keys(&mut self, specs: Vec<KeySpec>) {
        self.specs = specs;
        self.opening += 1;
        self.publish_specs();
        self.retry.reset();
        if self.state.borrow().link.is_some() {
            self.open_keys();
        }
    }

    /// Publishes the configured keys; those that did not change and work keep
    /// what they have.
    fn publish_specs(&mut self) {
        self.state.send_modify(|state| {
            let keys = self.specs.iter().map(|spec| {
                let former = state.keys.iter().find(|key| key.spec == *spec);
                former
                    .filter(|key| key.opened.is_some())
                    .cloned()
                    .unwrap_or_else(|| Slot::pending(spec.clone()))
            });
            state.keys = Arc::new(keys.collect());
        });
    }

    /// Runs gate and canary for every key that has not passed on this link.
    pub(super) fn open_keys(&mut self) {
        let state = self.state.borrow().clone();
        let Some(link) = state.link else { return };
        self.opening += 1;
        let (inner, opening) = (Arc::clone(&self.inner), self.opening);
        self.start(async move {
            let mut keys = Vec::with_capacity(state.keys.len());
            for key in state.keys.iter() {
                if key.opened.is_some() {
                    keys.push(key.clone());
                    continue;
                }
                let outcome = open_key(&inner, &link, &key.spec).await;
                let problem = outcome.as_ref().err().cloned();
                // Once, however often it is tried again.
                if let Some(error) = problem
                    .as_ref()
                    .filter(|e| Some(*e) != key.problem.as_ref())
                {
                    tracing::error!(token = inner.name, hint = error.hint(), "{error}");
                }
                keys.push(Slot {
                    spec: key.spec.clone(),
                    problem,
                    opened: outcome.ok(),
                });
            }
            inner.tell(Command::Keys(opening, keys));
        });
    }

    pub(super) fn opened(&mut self, keys: Vec<Slot>) {
        let former = Arc::clone(&self.state.borrow().keys);
        // Having opened is a proof of its own; being no longer asked for is
        // none, but ends the matter.
        self.probe_failures.retain(|name, _| {
            let open = |keys: &[Slot]| {
                keys.iter()
                    .any(|key| key.spec.name == *name && key.opened.is_some())
            };
            open(&former) && open(&keys)
        });
        for key in keys.iter().filter(|key| key.opened.is_some()) {
            self.fresh.1 = FRESH.0;
            if !self.known.contains(&key.spec) {
                self.known.push(key.spec.clone());
            }
        }
        self.state.send_modify(|state| state.keys = Arc::new(keys));
        self.retry.plan(&self.state.borrow().keys, Instant::now());
        self.assess();
    }

    /// The name of the key with this id on the current link.
    pub(super) fn key_name(&self, id: u32) -> Option<String> {
        let state = self.state.borrow();
        let key = state
            .keys
            .iter()
            .find(|key| key.opened.as_ref().is_some_and(|opened| opened.id == id))?;
        Some(key.spec.name.clone())
    }

    /// A key that worked is refused now: it is not used before somebody has
    /// looked at it, or it passes the gate again.
    pub(super) fn refuse(&mut self, id: u32, error: TokenError) {
        let mut keys = Vec::clone(&self.state.borrow().keys);
        let holds = |key: &&mut Slot| key.opened.as_ref().is_some_and(|opened| opened.id == id);
        let Some(key) = keys.iter_mut().find(holds) else {
            return;
        };
        tracing::error!(
            token = self.inner.name,
            key = key.spec.name,
            hint = error.hint(),
            "not used any longer: {error}"
        );
        key.opened = None;
        key.problem = Some(error);
        // An attempt under way began with this key in service.
        self.opening += 1;
        if let Some(task) = self.task.take() {
            task.abort();
        }
        self.opened(keys);
    }
}
