//! The server: HTTP/1.1 on the Unix socket, confined, without PIN or module.

mod archive;
mod audit;
mod catalog;
mod connection;
mod conversation;
mod deliver;
mod descriptor;
mod evidence;
mod grants;
mod idle;
mod import;
mod keys;
mod lines;
mod metrics;
mod objects;
mod peer;
mod policy;
mod queue;
mod rebuild;
mod reply;
mod request;
mod rewrap;
mod routes;
mod serve;
mod source;
mod start;
mod state;
mod uploads;
mod verify;

pub use peer::Subject;
pub use policy::{Ask, Policy};
pub use start::server_main;
