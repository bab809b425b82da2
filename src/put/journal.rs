//! An upload's entry in the journal, from before the store hears of it until
//! it is an object or gone.

use crate::api::Error;
use crate::engine::Engine;
use crate::store::Place;

/// An entry. Dropped before it is [over](Self::over), it says that nobody
/// goes on with the upload, which is then aborted in the background.
pub(super) struct Entry<'e> {
    engine: &'e Engine,
    row: i64,
    over: bool,
}

impl<'e> Entry<'e> {
    /// Makes one. Durable on return.
    pub(super) async fn intend(engine: &'e Engine, place: &Place) -> Result<Self, Error> {
        let row = engine
            .catalog
            .intend_upload(&place.bucket, &place.key)
            .await?;
        Ok(Self::of(engine, row))
    }

    /// The one that is there.
    pub(super) fn of(engine: &'e Engine, row: i64) -> Self {
        Self {
            engine,
            row,
            over: false,
        }
    }

    pub(super) fn row(&self) -> i64 {
        self.row
    }

    /// It is an object, and out of the journal; or it is kept there.
    pub(super) fn over(mut self) {
        self.over = true;
    }

    /// Takes an upload that the store has no more out of the journal. If that
    /// fails it is aborted once more, at the next start.
    pub(super) async fn forget(mut self) {
        self.over = self.engine.catalog.forget_upload(self.row).await.is_ok();
    }
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        if !self.over {
            self.engine.catalog.orphan_upload(self.row);
            self.engine.orphaned.notify_one();
        }
    }
}
