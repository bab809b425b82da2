//! What the server does when it has nothing to do: it gives back the memory
//! that its start, or a load, has left it with.

use std::sync::Arc;

use crate::confine::Code;
use crate::wipe;

/// Looks without a request, in progress or over since the one before, after
/// which a pause is one: short gaps are no time to tidy up in.
const LOOKS: u32 = 4;

/// Knows a pause when it sees one.
#[derive(Debug)]
pub(super) struct Idle {
    looks: u32,
    /// Requests so far.
    requests: u64,
    code: Arc<Code>,
}

impl Idle {
    pub(super) fn new(code: Code) -> Self {
        Self {
            looks: 0,
            requests: 0,
            code: Arc::new(code),
        }
    }

    /// To be called at every tick, with the number of requests so far if none
    /// is in progress; tidies up once in each pause, the one after the start
    /// included.
    pub(super) fn look(&mut self, at_rest: Option<u64>) {
        if self.begins(at_rest) {
            let code = self.code.clone();
            tokio::task::spawn_blocking(move || {
                wipe::give_back();
                code.let_go();
            });
        }
    }

    fn begins(&mut self, at_rest: Option<u64>) -> bool {
        let same = at_rest == Some(self.requests);
        self.looks = if same {
            self.looks.saturating_add(1)
        } else {
            0
        };
        self.requests = at_rest.unwrap_or(self.requests);
        self.looks == LOOKS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_begins_once() {
        let mut idle = Idle::new(Code::of_this_process());
        let busy = None;
        let looks = [
            [Some(0); 6].as_slice(),
            &[busy, Some(1), Some(1), Some(1)],
            // One that nobody saw in progress.
            &[Some(2); 6],
        ];
        let looks = looks.concat();
        let begins: Vec<usize> = (0..)
            .zip(looks)
            .filter_map(|(at, now)| idle.begins(now).then_some(at))
            .collect();
        assert_eq!(begins, [3, 14]);
    }
}
