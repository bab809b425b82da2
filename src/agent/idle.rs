//! What the server does when it has nothing to do: it gives back the memory
//! that its start, or a load, has left it with.

use std::sync::Arc;

use crate::confine::Code;
use crate::wipe;

/// Looks without a request in progress after which a pause is one: short gaps
/// between requests are no time to tidy up in.
const LOOKS: u32 = 4;

/// Knows a pause when it sees one.
#[derive(Debug)]
pub(super) struct Idle {
    looks: u32,
    code: Arc<Code>,
}

impl Idle {
    pub(super) fn new(code: Code) -> Self {
        Self {
            looks: 0,
            code: Arc::new(code),
        }
    }

    /// To be called at every tick; tidies up once in each pause, the one after
    /// the start included.
    pub(super) fn look(&mut self, is_idle: bool) {
        if self.begins(is_idle) {
            let code = self.code.clone();
            tokio::task::spawn_blocking(move || {
                wipe::give_back();
                code.let_go();
            });
        }
    }

    fn begins(&mut self, is_idle: bool) -> bool {
        self.looks = if is_idle {
            self.looks.saturating_add(1)
        } else {
            0
        };
        self.looks == LOOKS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_begins_once() {
        let mut idle = Idle::new(Code::of_this_process());
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
