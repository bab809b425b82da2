//! What systemd is told (sd_notify(3)). Without systemd nothing is.

use std::time::{Duration, Instant};

use sd_notify::NotifyState;

/// The service manager.
#[derive(Debug)]
pub(super) struct Manager {
    /// How often it wants a sign of life: half of what it waits for, as
    /// sd_watchdog_enabled(3) recommends.
    every: Option<Duration>,
    next: Instant,
}

impl Manager {
    pub(super) fn new() -> Self {
        Self {
            every: sd_notify::watchdog_enabled().map(|limit| limit / 2),
            next: Instant::now(),
        }
    }

    pub(super) fn ready(&self) {
        tell(&[NotifyState::Ready]);
    }

    pub(super) fn reloading(&self) {
        // systemd 253 and later need the time too.
        match NotifyState::monotonic_usec_now() {
            Ok(now) => tell(&[NotifyState::Reloading, now]),
            Err(_) => tell(&[NotifyState::Reloading]),
        }
    }

    pub(super) fn stopping(&self) {
        tell(&[NotifyState::Stopping]);
    }

    pub(super) fn status(&self, text: &str) {
        tell(&[NotifyState::Status(text)]);
    }

    /// Gives a sign of life if one is due and `well` deserves it; when the
    /// next one is.
    pub(super) fn alive(&mut self, now: Instant, well: bool) -> Option<Instant> {
        let every = self.every?;
        if now >= self.next {
            if well {
                tell(&[NotifyState::Watchdog]);
            } else {
                tracing::error!(
                    "no sign of life from any server for too long: none for the service manager either"
                );
            }
            self.next = now + every;
        }
        Some(self.next)
    }
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "cannot notify the service manager");
    }
}
