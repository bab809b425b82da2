//! Files of one bundle that are fetched by one request.

use super::fetch::Job;
use crate::manifest::MAX_XATTRS;

/// Bytes of a bundle fetched in one request, at most: enough to make the
/// request's cost small, and little to send again.
const BATCH: u64 = 8 << 20;
/// Files in one request, at most: so many targets are open to be written.
const BATCH_FILES: usize = 4096;
/// Bytes between two wanted files of a bundle that are fetched for nothing
/// rather than by another request.
const GAP: u64 = 64 << 10;

/// Files of one bundle that are fetched together.
#[derive(Default)]
pub(super) struct Batch {
    jobs: Vec<Job>,
    /// Bytes of their extended attributes, which wait in memory.
    attributes: usize,
}

impl Batch {
    /// Adds a job; what has to be fetched before it, or without it.
    pub(super) fn add(&mut self, job: Job) -> Option<Vec<Job>> {
        if job.at.offset.is_none() {
            return Some(vec![job]);
        }
        let attributes: usize = job
            .entry
            .iter()
            .flat_map(|entry| &entry.xattrs)
            .map(|(_, value)| value.len())
            .sum();
        if self.takes(&job, attributes) {
            self.jobs.push(job);
            self.attributes += attributes;
            return None;
        }
        let full = std::mem::replace(&mut self.jobs, vec![job]);
        self.attributes = attributes;
        (!full.is_empty()).then_some(full)
    }

    fn takes(&self, job: &Job, attributes: usize) -> bool {
        let (Some(first), Some(last)) = (self.jobs.first(), self.jobs.last()) else {
            return true;
        };
        let begin = |job: &Job| job.at.offset.unwrap_or(0);
        let end = |job: &Job| begin(job).saturating_add(job.size.unwrap_or(0));
        self.jobs.len() < BATCH_FILES
            && self.attributes + attributes <= MAX_XATTRS
            && first.at.shares_object(&job.at)
            && begin(job) >= end(last)
            && begin(job) - end(last) <= GAP
            && end(job) - begin(first) <= BATCH
    }

    pub(super) fn take(&mut self) -> Vec<Job> {
        std::mem::take(&mut self.jobs)
    }
}
