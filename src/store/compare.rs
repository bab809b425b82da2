//! Comparing what the store serves with the checksum of a receipt.
//!
//! Parts' sizes, which a composite SHA-256 needs, are the store's word: with
//! other sizes the digests differ, unless somebody breaks SHA-256.

use aws_sdk_s3::types::ChecksumMode;

use super::checksum::{Hasher, Sum, combine};
use super::error::classify;
use super::{Pin, Place, Store, StoreError};
use crate::config::Checksum;

/// Most parts of an object (S3 User Guide, "Amazon S3 multipart upload
/// limits").
const MAX_PARTS: usize = 10_000;

/// A receipt's checksum being compared with bytes that are read in order.
pub struct Comparison {
    told: String,
    kind: Checksum,
    /// Sizes of the parts that are still to come, the present one first;
    /// empty where one sum covers all.
    parts: std::collections::VecDeque<u64>,
    composite: bool,
    hasher: Hasher,
    in_part: u64,
    done: Vec<Sum>,
}

impl Store {
    /// Begins to compare the object at `place`, of the pinned version, with
    /// the checksum of a receipt.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] if the store cannot tell of what parts a
    /// composite checksum is made.
    pub async fn compare(
        &self,
        place: &Place,
        pin: &Pin,
        told: &str,
    ) -> Result<Comparison, StoreError> {
        let unknown = || StoreError::corrupt(format!("the receipt's checksum {told:?} is unknown"));
        let (name, value) = told.split_once(':').ok_or_else(unknown)?;
        let kind = match name {
            "crc64nvme" => Checksum::Crc64nvme,
            "crc32c" => Checksum::Crc32c,
            "sha256" => Checksum::Sha256,
            _ => return Err(unknown()),
        };
        let count = match (kind, value.rsplit_once('-')) {
            (Checksum::Sha256, Some((_, count))) => Some(count.parse().map_err(|_| unknown())?),
            _ => None,
        };
        let parts = match count {
            Some(count) if count > MAX_PARTS => return Err(unknown()),
            Some(count) => self.part_sizes(place, pin, count).await?,
            None => Vec::new(),
        };
        Ok(Comparison {
            told: told.to_owned(),
            kind,
            parts: parts.into(),
            composite: count.is_some(),
            hasher: Hasher::new(kind, false),
            in_part: 0,
            done: Vec::new(),
        })
    }

    async fn part_sizes(
        &self,
        place: &Place,
        pin: &Pin,
        count: usize,
    ) -> Result<Vec<u64>, StoreError> {
        let mut sizes = Vec::new();
        for number in 1..=count {
            let answer = self
                .inner
                .client
                .head_object()
                .bucket(&place.bucket)
                .key(place.sdk_key())
                .set_version_id(pin.version_id.clone())
                .part_number(i32::try_from(number).unwrap_or(i32::MAX))
                .checksum_mode(ChecksumMode::Enabled)
                .set_expected_bucket_owner(self.inner.owner.clone())
                .send()
                .await
                .map_err(|e| classify("HeadObject", place, e))?;
            let size = answer.content_length().and_then(|n| u64::try_from(n).ok());
            sizes.push(size.unwrap_or_default());
        }
        if sizes.iter().sum::<u64>() != pin.total_len {
            return Err(StoreError::corrupt(format!(
                "the store does not tell the sizes of the {count} parts of {place}"
            )));
        }
        Ok(sizes)
    }
}

impl Comparison {
    /// Takes the next bytes.
    pub fn update(&mut self, mut bytes: &[u8]) {
        while let Some(&size) = self.parts.front() {
            let left = usize::try_from(size - self.in_part).unwrap_or(usize::MAX);
            let (now, later) = bytes.split_at(left.min(bytes.len()));
            self.take(now);
            bytes = later;
            if self.in_part < size {
                return;
            }
            self.close();
            self.parts.pop_front();
        }
        self.take(bytes);
    }

    /// Whether all that was taken has the receipt's checksum.
    #[must_use]
    pub fn finish(mut self) -> bool {
        if !self.composite || self.in_part > 0 {
            self.close();
        }
        let told = match (self.composite, self.done.first()) {
            (false, Some(sum)) => sum.told(),
            _ => combine(self.kind, &self.done).told,
        };
        told == self.told
    }

    fn take(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
        self.in_part += bytes.len() as u64;
    }

    fn close(&mut self) {
        let hasher = std::mem::replace(&mut self.hasher, Hasher::new(self.kind, false));
        self.done.push(hasher.finish(self.in_part));
        self.in_part = 0;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn sum(kind: Checksum, bytes: &[u8]) -> Sum {
        let mut hasher = Hasher::new(kind, false);
        hasher.update(bytes);
        hasher.finish(bytes.len() as u64)
    }

    fn comparison(kind: Checksum, told: String, parts: &[u64]) -> Comparison {
        Comparison {
            told,
            kind,
            parts: parts.to_vec().into(),
            composite: !parts.is_empty(),
            hasher: Hasher::new(kind, false),
            in_part: 0,
            done: Vec::new(),
        }
    }

    #[test]
    fn a_whole_and_a_composite_sum_are_met_by_their_bytes_alone() {
        let data: Vec<u8> = (0..=255).collect();
        let whole = |kind| (kind, sum(kind, &data).told(), &[][..]);
        let parts = [100, 100, 56];
        let sums: Vec<Sum> = [&data[..100], &data[100..200], &data[200..]]
            .map(|part| sum(Checksum::Sha256, part))
            .into();
        let composite = combine(Checksum::Sha256, &sums).told;
        for (kind, told, parts) in [
            whole(Checksum::Crc64nvme),
            whole(Checksum::Crc32c),
            whole(Checksum::Sha256),
            (Checksum::Sha256, composite, &parts[..]),
        ] {
            let mut good = comparison(kind, told.clone(), parts);
            data.chunks(37).for_each(|piece| good.update(piece));
            assert!(good.finish(), "{told}");
            let mut other = data.clone();
            other[150] ^= 1;
            let mut bad = comparison(kind, told.clone(), parts);
            bad.update(&other);
            assert!(!bad.finish(), "{told}");
            let mut long = comparison(kind, told.clone(), parts);
            long.update(&data);
            long.update(b"x");
            assert!(!long.finish(), "{told}");
        }
    }
}
