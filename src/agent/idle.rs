//! What the server does when it has nothing to do: it gives back the memory
//! that a load has left it with.

use crate::wipe;

/// Looks without a request in progress after which a pause is one: short gaps
/// between requests are no time to tidy up in.
const LOOKS: u32 = 4;

/// Knows a pause when it sees one.
#[derive(Debug, Default)]
pub(super) struct Idle(u32);

impl Idle {
    /// To be called at every tick; tidies up once in each pause, the one after
    /// the start included.
    pub(super) fn look(&mut self, is_idle: bool) {
        if self.begins(is_idle) {
            tokio::task::spawn_blocking(wipe::give_back);
        }
    }

    fn begins(&mut self, is_idle: bool) -> bool {
        self.0 = if is_idle { self.0.saturating_add(1) } else { 0 };
        self.0 == LOOKS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_begins_once() {
        let mut idle = Idle::default();
        let looks = [
            true, true, true, true, true, true, false, true, true, true, false, true, true, true,
            true, true,
        ];
        let begins: Vec<usize> = (0..)
            .zip(looks)
            .filter_map(|(at, now)| idle.begins(now).then_some(at))
            .collect();
        assert_eq!(begins, [3, 14]);
    }
}
