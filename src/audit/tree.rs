//! The Merkle tree over the records: RFC 6962, section 2.1, with SHA-256.
//!
//! A leaf is one record's line without its newline. The writer keeps the
//! [`Range`] alone: the roots of the perfect subtrees that the records so far
//! fall into, at most one for each bit of their number.

use std::fmt;

use data_encoding::BASE64;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::crypto::digest::{Context, SHA256};

/// Bytes of a hash.
const LEN: usize = 32;

/// A SHA-256 hash; in JSON and in checkpoints its Base64.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Hash([u8; LEN]);

impl Hash {
    /// The hash of a leaf: `SHA-256(0x00 || data)`.
    #[must_use]
    pub fn leaf(data: &[u8]) -> Self {
        Self::of(&[&[0], data])
    }

    fn node(left: &Self, right: &Self) -> Self {
        Self::of(&[&[1], &left.0, &right.0])
    }

    /// SHA-256 of plain bytes.
    #[must_use]
    pub fn plain(data: &[u8]) -> Self {
        Self::of(&[data])
    }

    /// In hexadecimal.
    #[must_use]
    pub fn to_hex(&self) -> String {
        data_encoding::HEXLOWER.encode(&self.0)
    }

    pub(super) fn of(parts: &[&[u8]]) -> Self {
        let mut context = Context::new(&SHA256);
        for part in parts {
            context.update(part);
        }
        let mut hash = [0; LEN];
        hash.copy_from_slice(context.finish().as_ref());
        Self(hash)
    }

    /// From Base64.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let bytes = BASE64.decode(text.as_bytes()).ok()?;
        Some(Self(bytes.try_into().ok()?))
    }

    /// Its first four bytes.
    pub(super) fn head(&self) -> [u8; 4] {
        [self.0[0], self.0[1], self.0[2], self.0[3]]
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&BASE64.encode(&self.0))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Hash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Hash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| de::Error::custom("not a hash"))
    }
}

/// What is kept of the leaves so far: enough for their root, and for the root
/// of any longer tree.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Range {
    size: u64,
    /// Roots of perfect subtrees, the largest first: one for each bit that
    /// is set in `size`.
    peaks: Vec<Hash>,
}

impl Range {
    /// A range as it was written down; `None` if there cannot be such a one.
    #[must_use]
    pub fn resume(size: u64, peaks: Vec<Hash>) -> Option<Self> {
        (usize::try_from(size.count_ones()) == Ok(peaks.len())).then_some(Self { size, peaks })
    }

    /// Leaves so far.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The subtrees' roots, the largest first.
    #[must_use]
    pub fn peaks(&self) -> &[Hash] {
        &self.peaks
    }

    /// Takes another leaf.
    pub fn push(&mut self, leaf: Hash) {
        let mut hash = leaf;
        // As in a binary counter, each trailing one is carried.
        for _ in 0..self.size.trailing_ones() {
            if let Some(left) = self.peaks.pop() {
                hash = Hash::node(&left, &hash);
            }
        }
        self.peaks.push(hash);
        self.size += 1;
    }

    /// The root of the tree. That of no leaves is the hash of nothing.
    #[must_use]
    pub fn root(&self) -> Hash {
        let mut peaks = self.peaks.iter().rev();
        let Some(last) = peaks.next() else {
            return Hash::plain(b"");
        };
        peaks.fold(*last, |right, left| Hash::node(left, &right))
    }
}

/// All leaves of a tree, for proofs: two hashes for each.
#[derive(Clone, Debug, Default)]
pub struct Leaves {
    /// Roots of the perfect subtrees of 1, 2, 4, … leaves.
    levels: Vec<Vec<Hash>>,
}

impl Leaves {
    /// Takes another leaf.
    pub fn push(&mut self, leaf: Hash) {
        let mut hash = leaf;
        for level in 0.. {
            if self.levels.len() == level {
                self.levels.push(Vec::new());
            }
            let nodes = &mut self.levels[level];
            nodes.push(hash);
            // The second of a pair completes the subtree above it.
            match nodes.as_slice() {
                [.., left, right] if nodes.len().is_multiple_of(2) => {
                    hash = Hash::node(left, right)
                }
                _ => break,
            }
        }
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.levels.first().map_or(0, Vec::len)
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The proof that leaf `index` is in the tree of the first `size` leaves
    /// (RFC 6962, section 2.1.1), from the leaf's sibling upward. `None` where
    /// there is no such leaf.
    #[must_use]
    pub fn proof(&self, index: usize, size: usize) -> Option<Vec<Hash>> {
        if index >= size || size > self.len() {
            return None;
        }
        let mut proof = Vec::new();
        let (mut start, mut len) = (0, size);
        while len > 1 {
            let left = split(len);
            if index < start + left {
                proof.push(self.root(start + left, len - left));
                len = left;
            } else {
                proof.push(self.root(start, left));
                (start, len) = (start + left, len - left);
            }
        }
        proof.reverse();
        Some(proof)
    }

    /// The root over `len` leaves from `start`, which is where a subtree of
    /// that many may begin.
    fn root(&self, start: usize, len: usize) -> Hash {
        if len.is_power_of_two() {
            let level = len.trailing_zeros() as usize;
            return self.levels[level][start >> level];
        }
        let left = split(len);
        Hash::node(
            &self.root(start, left),
            &self.root(start + left, len - left),
        )
    }
}

/// The largest power of two below `n`, which is at least 2.
fn split(n: usize) -> usize {
    n.div_ceil(2).next_power_of_two()
}

/// The root of the tree of `size` leaves in which `leaf` is number `index`,
/// if `proof` is right (RFC 9162, section 2.1.3.2). `None` if no proof of
/// this length can be.
#[must_use]
pub fn root_from_proof(leaf: Hash, index: u64, size: u64, proof: &[Hash]) -> Option<Hash> {
    if index >= size {
        return None;
    }
    let (mut node, mut last, mut hash) = (index, size - 1, leaf);
    for sibling in proof {
        if last == 0 {
            return None;
        }
        if node & 1 == 1 || node == last {
            hash = Hash::node(sibling, &hash);
            while node & 1 == 0 && node != 0 {
                node >>= 1;
                last >>= 1;
            }
        } else {
            hash = Hash::node(&hash, sibling);
        }
        node >>= 1;
        last >>= 1;
    }
    (last == 0).then_some(hash)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn hex(text: &str) -> Hash {
        let bytes = data_encoding::HEXLOWER.decode(text.as_bytes()).unwrap();
        Hash(bytes.try_into().unwrap())
    }

    /// The leaves and roots of the Certificate Transparency reference
    /// implementation's own tests (google/certificate-transparency,
    /// merkletree/merkle_tree_test.cc).
    fn reference() -> (Vec<Vec<u8>>, Vec<Hash>) {
        let leaves = [
            "",
            "00",
            "10",
            "2021",
            "3031",
            "40414243",
            "5051525354555657",
            "606162636465666768696a6b6c6d6e6f",
        ];
        let roots = [
            "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
            "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
            "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
            "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
            "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
            "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
            "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
        ];
        let decode = |text: &&str| data_encoding::HEXLOWER.decode(text.as_bytes()).unwrap();
        (
            leaves.iter().map(decode).collect(),
            roots.iter().map(|r| hex(r)).collect(),
        )
    }

    #[test]
    fn the_reference_implementations_roots() {
        let (leaves, roots) = reference();
        let mut range = Range::default();
        assert_eq!(
            range.root(),
            hex("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")
        );
        for (leaf, root) in leaves.iter().zip(&roots) {
            range.push(Hash::leaf(leaf));
            assert_eq!(range.root(), *root, "of {}", range.size());
            let same = Range::resume(range.size(), range.peaks().to_vec()).unwrap();
            assert_eq!(same, range);
        }
        assert_eq!(Range::resume(5, range.peaks().to_vec()), None);
    }

    #[test]
    fn the_reference_implementations_proof() {
        let (leaves, roots) = reference();
        let mut tree = Leaves::default();
        leaves.iter().for_each(|leaf| tree.push(Hash::leaf(leaf)));
        // Leaf 6 (counted from 1) of 8.
        let proof = tree.proof(5, 8).unwrap();
        assert_eq!(
            proof,
            [
                hex("bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b"),
                hex("ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0"),
                hex("d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7"),
            ]
        );
        let leaf = Hash::leaf(&leaves[5]);
        assert_eq!(root_from_proof(leaf, 5, 8, &proof), Some(roots[7]));
    }

    #[test]
    fn each_proof_proves_its_own_leaf_alone() {
        let leaves: Vec<Hash> = (0_u8..20).map(|i| Hash::leaf(&[i])).collect();
        let (mut tree, mut range) = (Leaves::default(), Range::default());
        leaves.iter().for_each(|leaf| tree.push(*leaf));
        for size in 1..=leaves.len() {
            range.push(leaves[size - 1]);
            let root = range.root();
            for index in 0..size {
                let proof = tree.proof(index, size).unwrap();
                let proves = |leaf: usize, index: usize| {
                    root_from_proof(leaves[leaf], index as u64, size as u64, &proof) == Some(root)
                };
                assert!(proves(index, index));
                for other in (0..leaves.len()).filter(|other| *other != index) {
                    assert!(!proves(other, index) && !proves(index, other));
                }
            }
        }
        assert!(tree.proof(20, 20).is_none() && tree.proof(0, 21).is_none());
    }
}
