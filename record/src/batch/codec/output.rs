//! Where decompressed bytes go: a reused buffer that never grows past its limit.
//!
//! The buffer's bytes are all initialised and it is never shortened, so a batch no larger than an
//! earlier one costs neither an allocation nor a fill.

/// Why decompression stopped.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The output would pass its limit.
    TooLarge,
    /// The input is not a stream of its codec.
    Corrupt(String),
}

impl Fault {
    pub(super) fn corrupt(reason: impl ToString) -> Self {
        Self::Corrupt(reason.to_string())
    }
}

/// The output of one decompression.
pub(super) struct Output<'a> {
    buf: &'a mut Vec<u8>,
    written: usize,
    max: usize,
}

impl<'a> Output<'a> {
    pub(super) fn new(buf: &'a mut Vec<u8>, max: usize) -> Self {
        Self { buf, written: 0, max }
    }

    /// Bytes that may still be written.
    pub(super) const fn left(&self) -> usize {
        self.max - self.written
    }

    /// What has been written.
    pub(super) fn written(&self) -> &[u8] {
        self.buf.get(..self.written).unwrap_or_default()
    }

    /// What has been written, for as long as the buffer is borrowed.
    pub(super) fn into_written(self) -> &'a [u8] {
        let written = self.written;
        self.buf.get(..written).unwrap_or_default()
    }

    /// Exactly `len` bytes to write to.
    pub(super) fn exactly(&mut self, len: usize) -> Result<&mut [u8], Fault> {
        if len > self.left() {
            return Err(Fault::TooLarge);
        }
        self.grow(len)?;
        Ok(self.room(len))
    }

    /// All the bytes at hand to write to: `least` or more, fewer only at the limit.
    pub(super) fn at_least(&mut self, least: usize) -> Result<&mut [u8], Fault> {
        self.grow(least.min(self.left()))?;
        let room = (self.buf.len() - self.written).min(self.left());
        Ok(self.room(room))
    }

    /// What has been written, and up to `len` bytes to write to, fewer only at the limit.
    pub(super) fn written_and_room(&mut self, len: usize) -> Result<(&[u8], &mut [u8]), Fault> {
        let len = len.min(self.left());
        self.grow(len)?;
        let (written, room) = self.buf.split_at_mut_checked(self.written).unwrap_or_default();
        Ok((written, room.get_mut(..len).unwrap_or_default()))
    }

    /// The `len` bytes after those written, which the buffer has.
    fn room(&mut self, len: usize) -> &mut [u8] {
        self.buf
            .get_mut(self.written..self.written + len)
            .unwrap_or_default()
    }

    /// Counts `len` bytes of the room handed out as written.
    pub(super) fn advance(&mut self, len: usize) {
        self.written = self.written.saturating_add(len).min(self.buf.len()).min(self.max);
    }

    /// Makes the buffer hold `len` bytes after those written; the caller has checked the limit.
    fn grow(&mut self, len: usize) -> Result<(), Fault> {
        let needed = self.written + len;
        if needed <= self.buf.len() {
            return Ok(());
        }
        // Doubling keeps the copying linear, the limit keeps it bounded.
        let target = needed.max(self.buf.len().saturating_mul(2).min(self.max));
        self.buf
            .try_reserve_exact(target - self.buf.len())
            .map_err(|_| Fault::Corrupt(format!("no memory for {target} bytes")))?;
        self.buf.resize(target, 0);
        Ok(())
    }
}
