//! Strongroom encrypts objects on the host under keys that never leave a
//! PKCS#11 token, and stores them in S3.
//!
//! docs/architecture.md has the floors: a module uses only what lies below it.

pub mod admin;
pub mod agent;
pub mod api;
pub mod audit;
pub mod binding;
pub mod bundle;
pub mod catalog;
pub mod ceremony;
pub mod cli;
pub mod client;
pub mod components;
pub mod config;
pub mod confine;
pub mod control;
pub mod crypto;
pub mod doctor;
pub mod engine;
pub mod evidence;
pub mod fault;
mod gather;
pub mod get;
pub mod keyring;
pub mod log;
pub mod manifest;
pub mod message;
pub mod objects;
pub mod put;
pub mod rebuild;
pub mod recipient;
pub mod recover;
pub mod retire;
pub mod rotate;
pub mod secret;
pub mod store;
pub mod supervisor;
pub mod token;
pub mod transport;
pub mod unlock;
pub mod verify;
pub mod wipe;
