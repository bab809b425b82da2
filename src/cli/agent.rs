//! `strongroom agent`: run the agent in the foreground.

use super::failure::Failure;
use super::ui::Ui;
use crate::supervisor;

pub(super) fn run(ui: &Ui) -> Result<(), Failure> {
    supervisor::run(&ui.config())
        .map_err(|error| Failure::new(error.exit, error.message).hint(error.hint))
}
