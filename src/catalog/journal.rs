//! The catalogue's calls on the upload journal.

use tokio::sync::oneshot;

use super::uploads::{self, Change, ConfirmedPart, Journal, JournalledUpload, Open, Orphan};
use super::writer::{self, Effect, Outcome, Reply};
use super::{Catalog, CatalogError, message_id};
use crate::api::Receipt;

impl Catalog {
    /// Takes down that a multipart upload is to be begun, before the store
    /// hears of it; gives its row. Durable on return.
    ///
    /// # Errors
    /// The record is not durable.
    pub async fn intend_upload(&self, bucket: &str, key: &str) -> Result<i64, CatalogError> {
        let change = Change::Intend {
            bucket: bucket.to_owned(),
            key: key.to_owned(),
        };
        match self.journal(change).await? {
            Effect::Row(row) => Ok(row),
            _ => Err(CatalogError::Closed),
        }
    }

    /// Takes down the store's id of an upload. Durable on return.
    ///
    /// # Errors
    /// The record is not durable.
    pub async fn upload_begun(&self, row: i64, upload_id: &str) -> Result<(), CatalogError> {
        let upload_id = upload_id.to_owned();
        self.journal(Change::Begun { row, upload_id }).await?;
        Ok(())
    }

    /// The same of an upload that may be resumed, with all it has to keep to,
    /// and the keys that it depends on. Durable on return.
    ///
    /// # Errors
    /// The record is not durable.
    pub async fn keep_upload(
        &self,
        row: i64,
        upload_id: &str,
        journal: Journal,
    ) -> Result<(), CatalogError> {
        let change = Change::Keep {
            row,
            upload_id: upload_id.to_owned(),
            journal: Box::new(journal),
        };
        self.journal(change).await?;
        Ok(())
    }

    /// Counts one more resumption and gives its number; `None` if the upload
    /// is over. Durable on return.
    ///
    /// # Errors
    /// The record is not durable.
    pub async fn resume_upload(&self, row: i64) -> Result<Option<u64>, CatalogError> {
        match self.journal(Change::Resume { row }).await? {
            Effect::Row(n) => Ok(u64::try_from(n).ok()),
            _ => Ok(None),
        }
    }

    /// Takes down the tags of a part's frames, before it is first sent; false
    /// if the upload is over, or has others for that part. Durable on return.
    ///
    /// # Errors
    /// The record is not durable. Then, as after false, the part must not be
    /// sent.
    pub async fn journal_tags(
        &self,
        row: i64,
        number: u32,
        (first, last): (u32, u32),
        tags: Vec<u8>,
    ) -> Result<bool, CatalogError> {
        let change = Change::Tags {
            row,
            number,
            first,
            last,
            tags,
        };
        Ok(matches!(self.journal(change).await?, Effect::Made))
    }

    /// Takes down that the store has a part. Nobody waits for it: without it
    /// the part is sent once more.
    pub fn confirm_part(&self, row: i64, number: u32, part: ConfirmedPart) {
        self.tell(Change::Confirm { row, number, part });
    }

    /// Waits until everything that was told before is durable, and can be
    /// read.
    ///
    /// # Errors
    /// It is not.
    pub async fn uploads_written(&self) -> Result<(), CatalogError> {
        // The writer takes changes in order, and this one finds nothing.
        self.expire_uploads(0).await
    }

    /// Gives an upload up; it is to be aborted. Nobody waits for it: what a
    /// process leaves open is given up at the next start.
    pub fn orphan_upload(&self, row: i64) {
        self.tell(Change::Orphan { row });
    }

    /// The same, durable on return.
    ///
    /// # Errors
    /// The record is not durable.
    pub async fn give_up_upload(&self, row: i64) -> Result<(), CatalogError> {
        self.journal(Change::Orphan { row }).await.map(drop)
    }

    /// Gives up whatever a former process had open. Blocks.
    ///
    /// # Errors
    /// The record is not durable.
    pub fn orphan_uploads(&self) -> Result<(), CatalogError> {
        self.change_blocking(writer::Change::Upload(Change::OrphanAll))
            .map(drop)
    }

    /// Gives up what may be resumed and has not moved since `before`, Unix
    /// milliseconds.
    ///
    /// # Errors
    /// The record is not durable.
    pub async fn expire_uploads(&self, before: u64) -> Result<(), CatalogError> {
        self.journal(Change::Expire { before }).await.map(drop)
    }

    /// Removes an upload that is over from the journal. Durable on return.
    ///
    /// # Errors
    /// The record is not durable.
    pub async fn forget_upload(&self, row: i64) -> Result<(), CatalogError> {
        self.journal(Change::Forget { row }).await.map(drop)
    }

    /// [`Self::record_message`] for a multipart upload, which leaves the
    /// journal in the same transaction.
    ///
    /// # Errors
    /// The record is not durable.
    pub async fn record_uploaded(
        &self,
        receipt: &Receipt,
        header: &[u8],
        row: Option<i64>,
    ) -> Result<(), CatalogError> {
        let id = message_id(&receipt.message_id)?;
        let over = writer::Over {
            upload: row,
            ticket: None,
        };
        let change = writer::Change::Put(receipt.clone(), id, header.to_vec(), over);
        self.change(change).await
    }

    /// An upload that may be resumed, by its ticket.
    ///
    /// # Errors
    /// The catalogue cannot be read.
    pub async fn resumable(&self, ticket: &str) -> Result<Option<JournalledUpload>, CatalogError> {
        let ticket = ticket.to_owned();
        self.readers
            .run(move |conn| uploads::resumable(conn, &ticket))
            .await
    }

    /// The tags of a part that may have been sent.
    ///
    /// # Errors
    /// The catalogue cannot be read.
    pub async fn part_tags(&self, row: i64, number: u32) -> Result<Option<Vec<u8>>, CatalogError> {
        self.readers
            .run(move |conn| uploads::tags(conn, row, number))
            .await
    }

    /// Uploads that may be resumed, without their parts, the oldest first: of
    /// one user, of one place, if they are named.
    ///
    /// # Errors
    /// The catalogue cannot be read.
    pub async fn resumables(
        &self,
        uid: Option<u32>,
        place: Option<(&str, &str)>,
        limit: u32,
    ) -> Result<Vec<JournalledUpload>, CatalogError> {
        let place = place.map(|(bucket, key)| (bucket.to_owned(), key.to_owned()));
        self.readers
            .run(move |conn| {
                let place = place.as_ref().map(|(b, k)| (b.as_str(), k.as_str()));
                uploads::resumables(conn, uid, place, limit)
            })
            .await
    }

    /// The next uploads to be aborted, behind row `after`.
    ///
    /// # Errors
    /// The catalogue cannot be read.
    pub async fn orphans(&self, after: i64, limit: u32) -> Result<Vec<Orphan>, CatalogError> {
        self.readers
            .run(move |conn| uploads::orphans(conn, after, limit))
            .await
    }

    /// The uploads of a place that somebody goes on with.
    ///
    /// # Errors
    /// The catalogue cannot be read.
    pub async fn open_uploads(&self, bucket: &str, key: &str) -> Result<Open, CatalogError> {
        let (bucket, key) = (bucket.to_owned(), key.to_owned());
        self.readers
            .run(move |conn| uploads::open_at(conn, &bucket, &key))
            .await
    }

    /// How many uploads one user may resume.
    ///
    /// # Errors
    /// The catalogue cannot be read.
    pub async fn upload_count_of(&self, uid: u32) -> Result<u64, CatalogError> {
        self.readers
            .run(move |conn| uploads::count_of(conn, uid))
            .await
    }

    /// How many uploads may be resumed, and how many are to be aborted.
    ///
    /// # Errors
    /// The catalogue cannot be read.
    pub async fn upload_counts(&self) -> Result<(u64, u64), CatalogError> {
        self.readers.run(uploads::count).await
    }

    async fn journal(&self, change: Change) -> Outcome {
        let (sender, answer) = oneshot::channel::<Outcome>();
        self.send(writer::Change::Upload(change), Reply::Async(sender))?;
        answer.await.unwrap_or(Err(CatalogError::Closed))
    }

    fn tell(&self, change: Change) {
        let (sender, _) = oneshot::channel::<Outcome>();
        // Only at the end of the process.
        let _ = self.send(writer::Change::Upload(change), Reply::Async(sender));
    }
}
