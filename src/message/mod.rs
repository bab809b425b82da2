//! The AWS Encryption SDK message format: one message is one stored object.
//!
//! Writing: [`Draft`] → [`Draft::seal`] → ([`SealedHeader`], [`Sealer`]).
//! Reading: [`Header::parse`] → [`Header::verify`] → [`Opener`] → frames.
//!
//! Synchronous, no I/O but the operating system's random generator, no
//! logging; frames are sealed and opened in place in the caller's buffer, and
//! nothing is allocated from a length that was not checked against
//! [`limits`] first.
//!
//! What the types rule out:
//! - *two headers for one data key*: [`Draft::seal`] consumes the draft, which
//!   owns the only [`FreshKey`], and nothing but [`DataKey::fresh`] makes one;
//! - *a frame sealed twice with two contents*: only a [`Resealer`] seals under a
//!   data key that was used before, and it gives out no frame whose tag is not
//!   the one that was written down when the frame was first sent;
//! - *a frame after the final one*: [`Sealer::seal_final`] consumes the sealer;
//! - *payload keys without a verified header and commitment*: only
//!   [`Header::verify`] makes an [`Opener`];
//! - *plaintext of a signed message before its signature*: opening its frames
//!   needs the [`Layout`] that only a finished [`Walker`] gives.
//!
//! Source: awslabs/aws-encryption-sdk-specification, data-format/ and
//! framework/. The names here are the specification's.

mod cipher;
mod context;
mod cursor;
mod draft;
mod edk;
mod error;
mod frame;
mod header;
mod id;
mod keys;
mod layout;
pub mod limits;
mod opener;
mod pack;
mod resealer;
mod sealer;
mod signature;
mod slot;
mod suite;
#[cfg(test)]
mod tests;
mod walker;

pub use context::Context;
pub use draft::{Draft, SealedHeader};
pub use edk::{Edk, NAMESPACE, RawAes, RawRsa};
pub use error::Error;
pub use header::{Header, Parsed, Permit};
pub use id::MessageId;
pub use keys::{DataKey, FreshKey, ProvenKey};
pub use layout::Layout;
pub use opener::Opener;
pub use pack::{MAX_RECORDS, Pack, PackName, Record, edk_in, pack_prefix, packs_behind};
pub use resealer::Resealer;
pub use sealer::{Finished, Sealer};
pub use slot::{MAX_SLOT, Slot, header_slot_name, slot_name};
pub use suite::Suite;
pub use walker::{Signed, Walker};
