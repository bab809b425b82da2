//! Strongroom encrypts objects on the host under keys that never leave a
//! PKCS#11 token, and stores them in S3.
//!
//! docs/architecture.md has the floors: a module uses only what lies below it.

pub mod api;
pub mod config;
pub mod secret;
