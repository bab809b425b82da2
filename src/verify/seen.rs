//! Which of the catalogue's messages were accounted for.
//!
//! Listings come in whatever order the store has, so what was listed is
//! remembered: a bit for each message, in blocks that are made where they are
//! needed. A hundred million messages take 12 MiB.

use std::collections::HashMap;

/// Bits of a block: one of 512 bytes.
const BLOCK: u64 = 4096;

/// A set of messages' numbers.
#[derive(Default)]
pub(super) struct Seen(HashMap<u64, Box<[u64; (BLOCK / 64) as usize]>>);

impl Seen {
    pub(super) fn add(&mut self, id: u64) {
        let (word, bit) = place(id);
        let block = self.0.entry(id / BLOCK);
        let block = block.or_insert_with(|| Box::new([0; (BLOCK / 64) as usize]));
        block[word] |= bit;
    }

    pub(super) fn has(&self, id: u64) -> bool {
        let (word, bit) = place(id);
        self.0
            .get(&(id / BLOCK))
            .is_some_and(|block| block[word] & bit != 0)
    }
}

fn place(id: u64) -> (usize, u64) {
    let within = id % BLOCK;
    // Below 64.
    let word = usize::try_from(within / 64).unwrap_or_default();
    (word, 1 << (within % 64))
}

#[cfg(test)]
mod tests {
    use super::Seen;

    #[test]
    fn what_was_added_is_there_and_nothing_else() {
        let mut seen = Seen::default();
        let ids = [0, 1, 63, 64, 4095, 4096, 1 << 40];
        for id in ids {
            assert!(!seen.has(id), "{id}");
            seen.add(id);
            assert!(seen.has(id), "{id}");
        }
        assert!(!seen.has(2) && !seen.has(4097));
        assert_eq!(seen.0.len(), 3);
    }
}
