//! The binary: the agent's own processes by name, everything else by clap.

use std::process::ExitCode;

/// Plaintext and keys pass through libraries that free what they held as it
/// is.
#[global_allocator]
static ALLOCATOR: strongroom::wipe::Wiping = strongroom::wipe::Wiping;

fn main() -> ExitCode {
    // The supervisor starts these two; they are no commands for users, and
    // the command line's grammar does not know them.
    let role = std::env::args_os().nth(1);
    match role.as_deref().and_then(std::ffi::OsStr::to_str) {
        Some("server") => strongroom::agent::server_main(),
        Some("token-worker") => strongroom::supervisor::token_worker_main(),
        _ => strongroom::cli::run(),
    }
}
