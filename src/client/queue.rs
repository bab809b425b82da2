//! Puts that may be queued, and their tickets (docs/queue.md).

use http::{Method, StatusCode};

use super::wire::encode;
use super::{Client, PutOptions, Upload, add, object_path, put_headers};
use crate::api::{Error, Queued, Ticket, header};

impl Client {
    /// Stores an object, or leaves it with the agent while the store is away.
    ///
    /// # Errors
    /// As for [`Client::put`].
    pub async fn put_queued(
        &self,
        bucket: &str,
        key: &str,
        options: &PutOptions,
        upload: Upload,
    ) -> Result<Queued, Error> {
        let mut headers = put_headers(options)?;
        add(&mut headers, header::QUEUE, "true")?;
        let path = object_path(bucket, key);
        let answer = self
            .send(Method::PUT, &path, headers, upload)
            .await?
            .success()
            .await?;
        match answer.status() {
            StatusCode::ACCEPTED => answer.json().await.map(Queued::Ticket),
            _ => answer.json().await.map(Queued::Stored),
        }
    }

    /// The oldest tickets: one's own, or for administrators all.
    ///
    /// # Errors
    /// The agent's answer, or an agent that cannot be reached.
    pub async fn tickets(&self) -> Result<Vec<Ticket>, Error> {
        self.fetch("/v1/queue").await
    }

    /// One ticket.
    ///
    /// # Errors
    /// The agent's answer, or an agent that cannot be reached.
    pub async fn ticket(&self, ticket: &str) -> Result<Ticket, Error> {
        self.fetch(&format!("/v1/queue/{}", encode(ticket))).await
    }

    /// Lets a parked ticket be tried again.
    ///
    /// # Errors
    /// The agent's answer, or an agent that cannot be reached.
    pub async fn retry_ticket(&self, ticket: &str) -> Result<Ticket, Error> {
        let path = format!("/v1/queue/{}/retry", encode(ticket));
        self.call(Method::POST, &path, Upload::empty())
            .await?
            .json()
            .await
    }

    /// Gives a ticket up: its object is lost.
    ///
    /// # Errors
    /// The agent's answer, or an agent that cannot be reached.
    pub async fn drop_ticket(&self, ticket: &str) -> Result<(), Error> {
        let path = format!("/v1/queue/{}", encode(ticket));
        self.call(Method::DELETE, &path, Upload::empty())
            .await
            .map(drop)
    }
}
