//! `strongroom man`: the manual pages, made from the grammar itself.

use std::path::PathBuf;

use clap::{Args, CommandFactory as _};

use super::args::Cli;
use super::failure::Failure;
use super::ui::stdout;

#[derive(Args)]
pub(super) struct ManArgs {
    /// Write the pages of all commands into this directory
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

pub(super) fn run(args: &ManArgs) -> Result<(), Failure> {
    let command = Cli::command();
    let Some(dir) = &args.dir else {
        return stdout(|out| clap_mangen::Man::new(command).render(out));
    };
    std::fs::create_dir_all(dir)
        .and_then(|()| clap_mangen::generate_to(command, dir))
        .map_err(|error| {
            Failure::io(
                format!("cannot write manual pages to {}", dir.display()),
                &error,
            )
        })
}
