//! How large parts must be, so that S3's 10,000 of them suffice.

use super::StoreError;

/// What the store allows. Tests inject tiny ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Smallest part but the last, in bytes.
    pub min_part: u64,
    /// Largest part, in bytes.
    pub max_part: u64,
    /// Most parts of an object.
    pub max_parts: u32,
}

impl Default for Limits {
    /// S3's own (S3 User Guide, "Amazon S3 multipart upload limits").
    fn default() -> Self {
        Self {
            min_part: 5 << 20,
            max_part: 5 << 30,
            max_parts: 10_000,
        }
    }
}

/// Share of the parts after which an open-ended upload doubles its part size.
const GROWTH_STEPS: u32 = 20;

/// The sizes at which parts are full.
///
/// A known length gives all parts one size, which some stores demand. An
/// unknown length starts at the configured size and doubles after every
/// twentieth of the allowed parts: with S3's limits and 8 MiB, 500 parts of
/// each of 8 MiB, 16 MiB, … 4 GiB, then 5 GiB; they reach 28.3 TiB, and the
/// parts stay at 8 MiB up to 3.9 GiB, at 64 MiB up to 58 GiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PartPlan {
    /// One size for all parts.
    Known {
        /// In bytes.
        size: u64,
    },
    /// Growing sizes.
    Unknown {
        /// The first part's, in bytes.
        first: u64,
        /// The store's limits.
        limits: Limits,
    },
}

impl PartPlan {
    /// For an object of `total` bytes: at least `part_size`, a whole multiple
    /// of `multiple` (a frame with its overhead, so that parts end with
    /// frames), and large enough for the allowed number of parts.
    ///
    /// # Errors
    /// [`StoreError::Invalid`] if no part size suffices.
    pub fn known(
        total: u64,
        part_size: u64,
        multiple: u64,
        limits: Limits,
    ) -> Result<Self, StoreError> {
        let least = total.div_ceil(u64::from(limits.max_parts.max(1)));
        let size = least
            .max(part_size)
            .max(limits.min_part)
            .checked_next_multiple_of(multiple.max(1))
            .unwrap_or(u64::MAX);
        if size > limits.max_part {
            return Err(StoreError::invalid(format!(
                "an object of {total} bytes does not fit {} parts of at most {} bytes",
                limits.max_parts, limits.max_part
            )));
        }
        Ok(Self::Known { size })
    }

    /// For an object whose length nobody knows yet.
    #[must_use]
    pub fn unknown(part_size: u64, limits: Limits) -> Self {
        Self::Unknown {
            first: part_size.clamp(limits.min_part, limits.max_part),
            limits,
        }
    }

    /// The size at which part `number` (from 1) is full.
    #[must_use]
    pub fn target(&self, number: u32) -> u64 {
        match *self {
            Self::Known { size } => size,
            Self::Unknown { first, limits } => {
                let step = (limits.max_parts / GROWTH_STEPS).max(1);
                let doublings = number.saturating_sub(1) / step;
                1_u64
                    .checked_shl(doublings)
                    .and_then(|factor| first.checked_mul(factor))
                    .unwrap_or(u64::MAX)
                    .min(limits.max_part)
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const TIB: u64 = 1 << 40;

    fn size(total: u64) -> u64 {
        let frame = (256 << 10) + 32;
        PartPlan::known(total, 8 * MIB, frame, Limits::default())
            .unwrap()
            .target(1)
    }

    #[test]
    fn known_lengths_fit_the_allowed_parts() {
        let frame = (256 << 10) + 32;
        assert_eq!(size(0), frame * 32);
        for total in [1, 80 << 30, TIB, 5 * TIB, 48 * TIB] {
            let size = size(total);
            assert!(size >= 8 * MIB && size.is_multiple_of(frame) && size <= 5 << 30);
            assert!(total.div_ceil(size) <= 10_000);
        }
        PartPlan::known(49 * TIB, 8 * MIB, frame, Limits::default()).unwrap_err();
        PartPlan::known(u64::MAX, 8 * MIB, frame, Limits::default()).unwrap_err();
    }

    #[test]
    fn unknown_lengths_grow_and_reach_beyond_five_tebibytes() {
        for first in [5 * MIB, 8 * MIB] {
            let plan = PartPlan::unknown(first, Limits::default());
            let sizes: Vec<u64> = (1..=10_000).map(|n| plan.target(n)).collect();
            assert_eq!(sizes[0], first);
            assert!(sizes.is_sorted() && sizes[9_999] <= 5 << 30);
            assert!(sizes.iter().sum::<u64>() > 5 * TIB);
        }
        let plan = PartPlan::unknown(8 * MIB, Limits::default());
        let reach: u64 = (1..=10_000).map(|n| plan.target(n)).sum();
        assert_eq!(reach * 10 / TIB, 283, "the reach in the doc comment");
        assert_eq!(plan.target(u32::MAX), 5 << 30);
    }

    #[test]
    fn tiny_limits_grow_too() {
        let limits = Limits {
            min_part: 1,
            max_part: 64,
            max_parts: 20,
        };
        let plan = PartPlan::unknown(4, limits);
        let sizes: Vec<u64> = (1..=7).map(|n| plan.target(n)).collect();
        assert_eq!(sizes, [4, 8, 16, 32, 64, 64, 64]);
    }
}
