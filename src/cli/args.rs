//! The grammar of the command line. Each command's own arguments stand in
//! its file.

use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand};

use super::{
    archive, audit, catalog, completions, cp, doctor, evidence, get, grants, inspect, key, ls, man,
    put, queue, recover, restore, rewrap, rm, token, verify,
};

/// Encrypts objects on this host, under keys that never leave your HSM, and
/// stores them in S3.
#[derive(Parser)]
#[command(
    name = "strongroom",
    version,
    disable_help_subcommand = true,
    after_help = "Try:\n  strongroom put backup.tar s3://BUCKET/backup.tar\n  pg_dump db | strongroom put - s3://BUCKET/db.dump\n  strongroom get s3://BUCKET/backup.tar backup.tar",
    after_long_help = "Try:\n  strongroom put backup.tar s3://BUCKET/backup.tar\n  pg_dump db | strongroom put - s3://BUCKET/db.dump\n  strongroom get s3://BUCKET/backup.tar backup.tar\n\nExit codes:\n  0   done\n  1   failed\n  2   wrong usage\n  65  the object was altered, truncated, rolled back, belongs elsewhere, or no key of ours opens it\n  66  no such object or file\n  67  recover: this key does not open this object\n  73  already exists (--no-clobber)\n  75  temporary: the token, the store or the agent is away or busy; try again later\n  77  not permitted\n  78  configuration"
)]
pub(super) struct Cli {
    #[command(flatten)]
    pub(super) global: Global,
    #[command(subcommand)]
    pub(super) command: Command,
}

/// Options of every command.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Options of every command")]
pub(super) struct Global {
    /// Print results as JSON, one value a line
    #[arg(long, global = true)]
    pub(super) json: bool,
    /// The agent's socket [default: /run/strongroom/agent.sock]
    #[arg(
        long,
        global = true,
        env = "STRONGROOM_SOCKET",
        hide_env_values = true,
        value_name = "PATH"
    )]
    pub(super) socket: Option<PathBuf>,
    /// The configuration [default: /etc/strongroom/strongroom.toml]
    #[arg(
        long,
        global = true,
        env = "STRONGROOM_CONFIG",
        hide_env_values = true,
        value_name = "FILE"
    )]
    pub(super) config: Option<PathBuf>,
    /// Say nothing but errors
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub(super) quiet: bool,
    /// Say what was done
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub(super) verbose: u8,
}

#[derive(Subcommand)]
pub(super) enum Command {
    /// Encrypt a file or a stream and store it
    Put(put::PutArgs),
    /// Fetch an object and decrypt it
    Get(get::GetArgs),
    /// Show what is known of an object without decrypting it, and who holds its key
    Inspect(inspect::InspectArgs),
    /// List objects
    Ls(ls::LsArgs),
    /// Delete objects
    Rm(rm::RmArgs),
    /// Copy an object; the copy is encrypted anew
    Cp(cp::CpArgs),
    /// Move an object; it is encrypted anew, and the source deleted afterwards
    Mv(cp::MvArgs),
    /// Store directories: what changed since the last run, from cron or by hand
    Archive(Box<archive::ArchiveArgs>),
    /// Verify what is stored: whether a recipient could open it
    Verify(verify::VerifyArgs),
    /// Bring an archive's files back, or some of them, as they were at some time
    Restore(Box<restore::RestoreArgs>),
    /// Make objects open by another wrapping key, without touching them
    Rewrap(rewrap::RewrapArgs),
    /// Open a downloaded object offline, with an escrow key or a key's components
    Recover(recover::RecoverArgs),
    /// Wrapping keys: generate, list, show, rotate, disable, retire
    Key(key::KeyArgs),
    /// The catalogue of what this host stored: export it
    Catalog(catalog::CatalogArgs),
    /// Who may do what: list the grants, explain a decision
    Grants(grants::GrantsArgs),
    /// PKCS#11 tokens: set one up, list what a module offers
    Token(token::TokenArgs),
    /// The audit log: verify, show its end, export
    Audit(audit::AuditArgs),
    /// Objects that wait for the store: list, show, retry, drop
    Queue(queue::QueueArgs),
    /// The agent's health
    Status(NoArgs),
    /// Make, or check, the auditor's report: who held which key, who did what
    Evidence(evidence::EvidenceArgs),
    /// Find out what is wrong with this host's set-up, and how to mend it
    Doctor(doctor::DoctorArgs),
    /// Run the agent in the foreground
    Agent(NoArgs),
    /// Print completions for a shell
    Completions(completions::CompletionsArgs),
    /// Print a manual page, or write all of them
    Man(man::ManArgs),
}

/// A command without arguments of its own.
#[derive(Args)]
pub(super) struct NoArgs {}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_grammar_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn global_options_stand_before_or_after_the_command() {
        for line in [
            "strongroom --json --socket /s ls s3://b",
            "strongroom ls s3://b --json --socket /s",
        ] {
            let cli = Cli::try_parse_from(line.split(' ')).unwrap();
            assert!(cli.global.json);
            assert_eq!(cli.global.socket, Some("/s".into()), "{line}");
        }
        assert!(Cli::try_parse_from(["strongroom", "-q", "-v", "status"]).is_err());
    }

    #[test]
    fn commands_of_later_releases_are_unknown() {
        for command in ["mount", "server", "token-worker"] {
            let error = Cli::try_parse_from(["strongroom", command]).err().unwrap();
            assert_eq!(error.kind(), clap::error::ErrorKind::InvalidSubcommand);
        }
    }
}
