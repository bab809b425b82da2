//! Frames into parts: plaintext is read to the place where its frame is
//! sealed, and the sealed part is handed over whole.
//!
//! A part ends with a frame, so parts are as large as the plan wants them,
//! rounded up to whole frames. A part that the plan wants larger than memory
//! allows is spooled: sealed a few frames at a time and appended, as
//! ciphertext, to an unlinked file.

use crate::api::{Error, ErrorKind};
use crate::engine::Engine;
use crate::fault::{message_error, spool_error};
use crate::message::{Resealer, Sealer};
use crate::store::{Buffer, PartBody, PartPlan, Running, SpoolFile};

mod file;

pub use file::{Gate, Lent, SourceFile};

use super::{Plaintext, Source};

/// Bytes around a regular frame's plaintext.
const FRAME_OVERHEAD: usize = Sealer::FRAME_HEAD + Sealer::TAG_LEN;
/// Bytes around the final frame's.
const FINAL_OVERHEAD: usize = Sealer::FINAL_HEAD + Sealer::TAG_LEN;
/// Room kept for the header in the first part: the format's own limit on what
/// we write is 64 KiB, ours in practice stays below 2 KiB; a longer one makes
/// the first part's buffer grow by that much at the start.
const HEADER_ROOM: usize = 64 << 10;

/// The part being filled.
pub(super) struct Assembly<'e> {
    engine: &'e Engine,
    plan: PartPlan,
    frame_length: usize,
    /// Sealed bytes at the front, then the frame being filled.
    buffer: Option<Buffer>,
    sealed: usize,
    /// Plaintext bytes in the frame being filled.
    filled: usize,
    /// Set when this part does not fit memory.
    spool: Option<SpoolFile>,
    /// Which part this is, from 1.
    number: u32,
    /// The size at which this part is full.
    target: u64,
    /// Whether it ever held memory.
    begun: bool,
    /// Whether parts are summed for the store.
    sums: bool,
    running: Option<Running>,
}

impl<'e> Assembly<'e> {
    /// Reserves the first part's memory: less, where the client declared a
    /// length that needs less.
    pub(super) async fn begin(engine: &'e Engine, length: Option<u64>) -> Result<Self, Error> {
        let settings = &engine.settings;
        let frame_length = settings.frame_length as usize;
        let frame = (frame_length + FRAME_OVERHEAD) as u64;
        let total = length.map(|plain| {
            let frames = plain.div_ceil(settings.frame_length.into()).max(1);
            plain
                .saturating_add(frames.saturating_mul(FRAME_OVERHEAD as u64))
                .saturating_add((FINAL_OVERHEAD - FRAME_OVERHEAD + HEADER_ROOM) as u64)
        });
        let plan = match total {
            Some(total) => PartPlan::known(total, settings.part_size, frame, settings.limits)
                .map_err(|e| Error::new(ErrorKind::TooLarge, e.to_string()))?,
            None => PartPlan::unknown(settings.part_size, settings.limits),
        };
        let mut assembly = Self {
            engine,
            plan,
            frame_length,
            buffer: None,
            sealed: 0,
            filled: 0,
            spool: None,
            number: 0,
            target: 0,
            begun: false,
            sums: true,
            running: None,
        };
        assembly.start_part(total).await?;
        Ok(assembly)
    }

    /// Begins with parts that never leave memory, whatever the length: for
    /// what is spooled as a whole.
    pub(super) async fn begin_whole(
        engine: &'e Engine,
        length: Option<u64>,
    ) -> Result<Self, Error> {
        let mut assembly = Self::begin(engine, length).await?;
        let size = engine.settings.part_size;
        if assembly.plan.target(1) > size {
            // A whole upload's plan has larger parts.
            assembly = Self::at(engine, assembly.frame_length, size, 1).await?;
        }
        assembly.plan = PartPlan::Known { size };
        // The spool has sums of its own.
        (assembly.sums, assembly.running) = (false, None);
        Ok(assembly)
    }

    /// Begins at part `number`, all of one size: how a resumed upload does.
    pub(super) async fn at(
        engine: &'e Engine,
        frame_length: usize,
        size: u64,
        number: u32,
    ) -> Result<Self, Error> {
        let mut assembly = Self {
            engine,
            plan: PartPlan::Known { size },
            frame_length,
            buffer: None,
            sealed: 0,
            filled: 0,
            spool: None,
            number: number.saturating_sub(1),
            target: 0,
            begun: false,
            sums: true,
            running: None,
        };
        assembly.start_part(None).await?;
        Ok(assembly)
    }

    /// Places the header at the front of the first part.
    pub(super) fn header(&mut self, header: &[u8]) -> Result<(), Error> {
        let buffer = self.buffer.as_mut().ok_or_else(misuse)?;
        buffer.resize(header.len());
        buffer.as_mut_slice()[..header.len()].copy_from_slice(header);
        self.sealed = header.len();
        Ok(())
    }

    /// Fills and seals a frame, or as many as a file's part takes. True at the
    /// end: the last frame's text is in place and not yet sealed.
    pub(super) async fn fill<S: Plaintext>(
        &mut self,
        source: &mut Source<'_, S>,
        mut sealer: Sealer,
    ) -> Result<(Sealer, bool), Error> {
        match source {
            Source::Stream(stream) => {
                let ended = self.fill_frame(*stream).await?;
                if !ended {
                    self.seal(&mut sealer)?;
                }
                Ok((sealer, ended))
            }
            Source::File(file) => self.fill_from(file, sealer).await,
        }
    }

    /// Reads plaintext until the frame is full *and* known not to be the
    /// last, or until the end. True at the end.
    async fn fill_frame(&mut self, source: &mut impl Plaintext) -> Result<bool, Error> {
        let start = self.sealed + Sealer::FRAME_HEAD;
        let end = start + self.frame_length;
        let buffer = self.buffer.as_mut().ok_or_else(misuse)?;
        while self.filled < self.frame_length {
            // Grows with what arrives: a small object of undeclared length
            // touches no more memory than it needs.
            if source.ended().await? {
                return Ok(true);
            }
            let from = start + self.filled;
            // Where the length was declared, what was reserved holds all of it.
            let room = (from + (64 << 10)).min(end).min(buffer.capacity());
            buffer.resize(buffer.len().max(room));
            let to = buffer.len().min(end);
            if to <= from {
                return Err(Error::new(
                    ErrorKind::Incomplete,
                    "more bytes arrived than were declared",
                ));
            }
            self.filled += source.read(&mut buffer.as_mut_slice()[from..to]).await?;
        }
        source.ended().await
    }

    /// Seals the full frame.
    fn seal(&mut self, sealer: &mut Sealer) -> Result<(), Error> {
        let buffer = self.buffer.as_mut().ok_or_else(misuse)?;
        let end = self.sealed + self.frame_length + FRAME_OVERHEAD;
        if buffer.len() < end {
            buffer.resize(end);
        }
        sealer
            .seal_frame(&mut buffer.as_mut_slice()[self.sealed..end])
            .map_err(|e| message_error(&e))?;
        if let Some(running) = &mut self.running {
            running.up_to(&buffer.as_slice()[..end]);
        }
        self.sealed = end;
        self.filled = 0;
        Ok(())
    }

    /// Seals what is there as the final frame; returns the plaintext's
    /// length as a whole.
    pub(super) fn seal_final(&mut self, sealer: Sealer) -> Result<u64, Error> {
        let buffer = self.buffer.as_mut().ok_or_else(misuse)?;
        let end = self.sealed + self.filled + FINAL_OVERHEAD;
        if buffer.len() < end {
            buffer.resize(end);
        }
        let frame = &mut buffer.as_mut_slice()[self.sealed..end];
        // The final frame's head is eight bytes longer; once an object.
        let from = Sealer::FRAME_HEAD..Sealer::FRAME_HEAD + self.filled;
        frame.copy_within(from, Sealer::FINAL_HEAD);
        let finished = sealer.seal_final(frame).map_err(|e| message_error(&e))?;
        self.sealed = end;
        self.filled = 0;
        Ok(finished.plaintext_len)
    }

    /// Whether the part has reached the size that the plan wants, or could
    /// not take another frame within the store's limit.
    pub(super) fn is_full(&self) -> bool {
        let spooled = self.spool.as_ref().map_or(0, SpoolFile::len);
        let size = spooled + self.sealed as u64;
        let frame = (self.frame_length + FINAL_OVERHEAD) as u64;
        size >= self.target || size + frame > self.engine.settings.limits.max_part
    }

    /// Reads `text` bytes of plaintext behind a frame's head; false if the
    /// source ended before.
    pub(super) async fn fill_text(
        &mut self,
        source: &mut impl Plaintext,
        head: usize,
        text: usize,
    ) -> Result<bool, Error> {
        let start = self.sealed + head;
        let end = start + text;
        let buffer = self.buffer.as_mut().ok_or_else(misuse)?;
        if buffer.len() < end + Sealer::TAG_LEN {
            buffer.resize(end + Sealer::TAG_LEN);
        }
        while self.filled < text {
            if source.ended().await? {
                return Ok(false);
            }
            let from = start + self.filled;
            self.filled += source.read(&mut buffer.as_mut_slice()[from..end]).await?;
        }
        Ok(true)
    }

    /// Seals what [`Self::fill_text`] read, as the next frame of a message
    /// that was begun before.
    pub(super) fn reseal(
        &mut self,
        sealer: &mut Resealer,
        sent: Option<&[u8; Resealer::TAG_LEN]>,
    ) -> Result<[u8; Resealer::TAG_LEN], Error> {
        let buffer = self.buffer.as_mut().ok_or_else(misuse)?;
        let end = self.sealed + sealer.head_len() + self.filled + Sealer::TAG_LEN;
        let frame = &mut buffer.as_mut_slice()[self.sealed..end];
        let tag = sealer.seal(frame, sent).map_err(|e| message_error(&e))?;
        self.sealed = end;
        self.filled = 0;
        Ok(tag)
    }

    /// Appends sealed frames to the spool, if this part is spooled and its
    /// buffer has no room for another frame.
    pub(super) async fn make_room(&mut self) -> Result<(), Error> {
        let chunk = self.engine.settings.part_size;
        let Some(file) = self.spool.as_mut() else {
            return Ok(());
        };
        if (self.sealed as u64) < chunk {
            return Ok(());
        }
        let mut buffer = self.buffer.take().ok_or_else(misuse)?;
        let capacity = buffer.capacity();
        buffer.truncate(self.sealed);
        buffer.mark_ciphertext();
        file.append(buffer.freeze())
            .await
            .map_err(|e| spool_error(&e))?;
        self.buffer = Some(self.engine.reserve_more(capacity).await?);
        self.sealed = 0;
        Ok(())
    }

    /// Hands the sealed part over. After the last part, that was all.
    pub(super) async fn take_part(&mut self) -> Result<PartBody, Error> {
        let mut buffer = self.buffer.take().ok_or_else(misuse)?;
        buffer.truncate(self.sealed);
        self.sealed = 0;
        buffer.mark_ciphertext();
        let Some(mut file) = self.spool.take() else {
            let part = buffer.freeze();
            return Ok(match self.running.take() {
                Some(running) => running.finish(part),
                None => PartBody::Memory(part),
            });
        };
        file.append(buffer.freeze())
            .await
            .map_err(|e| spool_error(&e))?;
        Ok(PartBody::Spooled(file))
    }

    /// Goes on with the next part's memory.
    pub(super) async fn next_part(&mut self) -> Result<(), Error> {
        self.start_part(None).await
    }

    async fn start_part(&mut self, whole: Option<u64>) -> Result<(), Error> {
        self.number += 1;
        self.target = self.plan.target(self.number);
        let frame = (self.frame_length + FINAL_OVERHEAD) as u64;
        let settings = &self.engine.settings;
        let header = if self.number == 1 {
            HEADER_ROOM as u64
        } else {
            0
        };
        let spooled = self.target > settings.memory_part;
        let in_memory = if spooled {
            settings.part_size
        } else {
            self.target
        };
        let mut capacity = in_memory + frame + header;
        if let Some(whole) = whole {
            capacity = capacity.min(whole);
        }
        if spooled {
            self.spool = Some(self.engine.spool.create().map_err(|e| spool_error(&e))?);
        }
        let capacity = usize::try_from(capacity)
            .map_err(|_| Error::new(ErrorKind::Internal, "a part beyond the address space"))?;
        // Whoever holds none yet waits for as long as a newcomer may.
        self.buffer = Some(match std::mem::replace(&mut self.begun, true) {
            false => self.engine.reserve(capacity).await?,
            true => self.engine.reserve_more(capacity).await?,
        });
        self.sealed = 0;
        self.filled = 0;
        self.running = match self.sums && !spooled {
            true => self.engine.store.running(),
            false => None,
        };
        Ok(())
    }
}

fn misuse() -> Error {
    Error::new(ErrorKind::Internal, "a part was used after it was sent")
}
