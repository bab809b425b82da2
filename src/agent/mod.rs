//! The server: HTTP/1.1 on the Unix socket, confined, without PIN or module.

mod audit;
mod connection;
mod objects;
mod peer;
mod reply;
mod request;
mod routes;
mod serve;
mod source;
mod start;
mod state;

pub use start::server_main;
