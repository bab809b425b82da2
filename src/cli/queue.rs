//! `strongroom queue`: objects that wait in the spool for the store.

use clap::{Args, Subcommand};

use super::failure::Failure;
use super::place::S3Url;
use super::ui::{Ui, shown, size};
use crate::api::Ticket;

#[derive(Args)]
pub(super) struct QueueArgs {
    #[command(subcommand)]
    command: QueueCommand,
}

#[derive(Subcommand)]
enum QueueCommand {
    /// List what waits, the oldest first
    List,
    /// Show one ticket
    Show(TicketArgs),
    /// Try a parked ticket again
    Retry(TicketArgs),
    /// Give a ticket up: its object is lost
    Drop(TicketArgs),
}

#[derive(Args)]
struct TicketArgs {
    /// The ticket, as `put --queue` and `queue list` tell it
    ticket: String,
}

pub(super) async fn run(ui: &Ui, args: QueueArgs) -> Result<(), Failure> {
    let client = ui.client();
    let failed = |ticket: &str| {
        let what = format!("ticket {ticket}");
        move |error| Failure::api(what, &error)
    };
    match args.command {
        QueueCommand::List => {
            let tickets = client.tickets().await;
            for ticket in tickets.map_err(|error| Failure::api("no queue", &error))? {
                show(ui, &ticket)?;
            }
            Ok(())
        }
        QueueCommand::Show(args) => {
            let ticket = client.ticket(&args.ticket).await;
            show(ui, &ticket.map_err(failed(&args.ticket))?)
        }
        QueueCommand::Retry(args) => {
            let ticket = client.retry_ticket(&args.ticket).await;
            let ticket = ticket.map_err(failed(&args.ticket))?;
            match ui.is_json() {
                true => ui.json(&ticket),
                false => ui.done(&format!("ticket {} is tried again", ticket.ticket)),
            }
        }
        QueueCommand::Drop(args) => {
            let dropped = client.drop_ticket(&args.ticket).await;
            dropped.map_err(failed(&args.ticket))?;
            ui.done(&format!("ticket {} is dropped", args.ticket))
        }
    }
}

fn show(ui: &Ui, ticket: &Ticket) -> Result<(), Failure> {
    if ui.is_json() {
        return ui.json(ticket);
    }
    ui.line(&text(ticket))
}

/// One ticket in one line; also of `put --queue`.
pub(super) fn text(ticket: &Ticket) -> String {
    let place = S3Url {
        bucket: ticket.bucket.clone(),
        key: ticket.key.clone(),
    };
    let mut line = format!(
        "{} {} {place}: {}",
        ticket.ticket,
        ticket.state,
        size(ticket.plaintext_size)
    );
    if let (Some(reason), Some(detail)) = (&ticket.reason, &ticket.detail) {
        line.push_str(&format!(", {reason}: {}", shown(detail)));
    }
    line
}
