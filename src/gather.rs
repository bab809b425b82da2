//! Group commit: how the writers of catalogue and audit log find company for
//! what they are about to make durable.
//!
//! A flush costs the same for one record as for a hundred. Whatever is queued
//! while one runs shares the next; on a disk that flushes in a fraction of a
//! millisecond that is little, and most of the processor time would go into
//! flushes. So where several have just come together, the writer waits a
//! moment for as many again. Whoever is alone never waits.

use std::sync::mpsc::Receiver;
use std::thread::sleep;
use std::time::Duration;

/// Jobs in the batch before from which on more are waited for: that many
/// clients wait already, and are likely to come again.
const COMPANY: usize = 4;
/// How long: an eighth of the time in which a busy agent answers a small put,
/// and several flushes of a fast disk.
const MOMENT: Duration = Duration::from_millis(1);

/// The batches of one writer.
#[derive(Debug, Default)]
pub(crate) struct Gather {
    /// Jobs in the last batch.
    last: usize,
}

impl Gather {
    /// `first`, and what else is queued, `most` jobs at most.
    pub(crate) fn batch<T>(&mut self, first: T, queue: &Receiver<T>, most: usize) -> Vec<T> {
        if self.last >= COMPANY {
            sleep(MOMENT);
        }
        let mut batch = vec![first];
        batch.extend(queue.try_iter().take(most - 1));
        self.last = batch.len();
        batch
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::time::Instant;

    use super::*;

    #[test]
    fn company_is_waited_for_and_whoever_is_alone_does_not_wait() {
        let (sender, queue) = channel();
        let mut gather = Gather::default();
        let mut batch = |jobs: usize| {
            for job in 0..jobs {
                assert!(sender.send(job).is_ok());
            }
            let begun = Instant::now();
            let first = queue.recv().unwrap_or_default();
            let size = gather.batch(first, &queue, 8).len();
            (size, begun.elapsed() >= MOMENT)
        };
        // Enough of them, alone as yet.
        assert_eq!(batch(5).0, 5);
        assert_eq!(batch(1), (1, true));
        assert_eq!(batch(20).0, 8);
        assert_eq!(batch(0), (8, true));
        assert_eq!(batch(0).0, 4);
        // Only the loop of the test, never the writer, could take so long.
        let quick = (0..100).any(|_| !batch(1).1);
        assert!(quick);
    }
}
