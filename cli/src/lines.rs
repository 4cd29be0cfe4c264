//! Cutting a stream of bytes into lines, and nothing else: no byte is changed or left out.
//!
//! A line ends at a line feed, which is not part of it; a carriage return before that is. Lines
//! longer than a limit come in pieces, so memory is bounded whatever the input. How the bytes
//! arrive makes no difference: the pieces are a function of the whole.

use std::io;

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// Bytes asked of the source at a time.
const READ_BYTES: usize = 1 << 20;

/// What comes after a piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// A line feed.
    LineFeed,
    /// More of the same line, which is too long for one piece.
    Cut,
    /// Nothing: the input ends without a line feed.
    Input,
}

/// A line, or a part of one that is too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece<'a> {
    /// Without the line feed.
    pub bytes: &'a [u8],
    /// What comes after it.
    pub end: End,
}

impl Piece<'_> {
    /// Bytes of the input that it stands for.
    pub fn input_bytes(&self) -> usize {
        self.bytes.len() + usize::from(self.end == End::LineFeed)
    }
}

/// Reads a source and cuts it.
#[derive(Debug)]
pub struct Lines<R> {
    source: R,
    buffer: BytesMut,
    piece_bytes_max: usize,
    ended: bool,
}

impl<R: AsyncRead + Unpin> Lines<R> {
    /// Cuts `source` into pieces of at most `piece_bytes_max` bytes, which is at least 1.
    pub fn new(source: R, piece_bytes_max: usize) -> Self {
        Self {
            source,
            buffer: BytesMut::new(),
            piece_bytes_max: piece_bytes_max.max(1),
            ended: false,
        }
    }

    /// Reads once; call it when all pieces were consumed. False when there is nothing more.
    ///
    /// Cancel safety: when this is dropped before it is ready, nothing was read.
    pub async fn fill(&mut self) -> io::Result<bool> {
        if self.ended {
            return Ok(false);
        }
        self.buffer.reserve(READ_BYTES);
        if self.source.read_buf(&mut self.buffer).await? == 0 {
            self.ended = true;
            return Ok(!self.buffer.is_empty());
        }
        Ok(true)
    }

    /// The pieces that are complete.
    pub fn pieces(&self) -> Pieces<'_> {
        Pieces {
            rest: &self.buffer,
            taken: 0,
            piece_bytes_max: self.piece_bytes_max,
            ended: self.ended,
        }
    }

    /// What was read and not consumed.
    pub fn unconsumed(&self) -> &[u8] {
        &self.buffer
    }

    /// Forgets that many bytes of input: what [`Pieces::taken`] says.
    pub fn consume(&mut self, bytes: usize) {
        self.buffer.advance(bytes.min(self.buffer.len()));
    }
}

/// The complete pieces of what was read.
#[derive(Debug, Clone)]
pub struct Pieces<'a> {
    rest: &'a [u8],
    taken: usize,
    piece_bytes_max: usize,
    ended: bool,
}

impl Pieces<'_> {
    /// Bytes of input that the pieces so far stand for.
    pub const fn taken(&self) -> usize {
        self.taken
    }
}

impl<'a> Iterator for Pieces<'a> {
    type Item = Piece<'a>;

    fn next(&mut self) -> Option<Piece<'a>> {
        // A line of exactly the limit is one piece, so its line feed may be one further.
        let window = self.rest.get(..=self.piece_bytes_max).unwrap_or(self.rest);
        let (length, end) = match memchr::memchr(b'\n', window) {
            Some(at) => (at, End::LineFeed),
            None if self.rest.len() > self.piece_bytes_max => (self.piece_bytes_max, End::Cut),
            None if self.ended && !self.rest.is_empty() => (self.rest.len(), End::Input),
            None => return None,
        };
        let piece = Piece {
            bytes: self.rest.get(..length)?,
            end,
        };
        self.rest = self.rest.get(piece.input_bytes()..).unwrap_or_default();
        self.taken += piece.input_bytes();
        Some(piece)
    }
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing
    )]

    use std::collections::VecDeque;
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use futures_util::FutureExt as _;
    use proptest::prelude::*;
    use tokio::io::ReadBuf;

    use super::*;

    /// Gives its chunks one by one.
    struct Chunks(VecDeque<Vec<u8>>);

    impl Chunks {
        fn of(bytes: &[u8], size: usize) -> Self {
            Self(bytes.chunks(size).map(<[u8]>::to_vec).collect())
        }
    }

    impl AsyncRead for Chunks {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            into: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            if let Some(chunk) = self.0.pop_front() {
                into.put_slice(&chunk);
            }
            Poll::Ready(Ok(()))
        }
    }

    fn cut(bytes: &[u8], chunk_bytes: usize, piece_bytes_max: usize) -> Vec<(Vec<u8>, End)> {
        let mut lines = Lines::new(Chunks::of(bytes, chunk_bytes), piece_bytes_max);
        let mut found = Vec::new();
        while lines.fill().now_or_never().expect("chunks are ready").unwrap() {
            let mut pieces = lines.pieces();
            found.extend(pieces.by_ref().map(|piece| (piece.bytes.to_vec(), piece.end)));
            let taken = pieces.taken();
            lines.consume(taken);
        }
        assert!(lines.buffer.is_empty(), "bytes left over");
        found
    }

    fn join(pieces: &[(Vec<u8>, End)]) -> Vec<u8> {
        let mut joined = Vec::new();
        for (bytes, end) in pieces {
            joined.extend_from_slice(bytes);
            if *end == End::LineFeed {
                joined.push(b'\n');
            }
        }
        joined
    }

    #[test]
    fn a_line_ends_at_its_line_feed_only() {
        let line = |text: &str, end| (text.as_bytes().to_vec(), end);
        assert_eq!(
            cut(b"a\r\n\nb\rc\n\xff\xfe\nlast", 3, 100),
            [
                line("a\r", End::LineFeed),
                line("", End::LineFeed),
                line("b\rc", End::LineFeed),
                (vec![0xff, 0xfe], End::LineFeed),
                line("last", End::Input),
            ]
        );
        assert_eq!(cut(b"", 1, 1), []);
        assert_eq!(cut(b"\n", 1, 1), [line("", End::LineFeed)]);
    }

    #[test]
    fn only_a_line_beyond_the_limit_is_cut() {
        let line = |text: &str, end| (text.as_bytes().to_vec(), end);
        assert_eq!(cut(b"1234\n", 2, 4), [line("1234", End::LineFeed)]);
        assert_eq!(cut(b"1234", 2, 4), [line("1234", End::Input)]);
        assert_eq!(
            cut(b"12345\n6", 2, 4),
            [
                line("1234", End::Cut),
                line("5", End::LineFeed),
                line("6", End::Input)
            ]
        );
    }

    proptest! {
        #[test]
        fn joined_pieces_are_the_input(
            bytes in prop::collection::vec(prop_oneof![2 => Just(b'\n'), 1 => Just(b'\r'), 8 => any::<u8>()], 0..400),
            chunk_bytes in 1_usize..50,
            piece_bytes_max in 1_usize..40,
        ) {
            let pieces = cut(&bytes, chunk_bytes, piece_bytes_max);
            prop_assert_eq!(&join(&pieces), &bytes);
            prop_assert!(pieces.iter().all(|(piece, _)| piece.len() <= piece_bytes_max && !piece.contains(&b'\n')));
            let last = pieces.len().saturating_sub(1);
            prop_assert!(pieces.iter().enumerate().all(|(at, (_, end))| *end != End::Input || at == last));
            // Where the bytes were divided on their way in does not matter.
            prop_assert_eq!(&cut(&bytes, bytes.len().max(1), piece_bytes_max), &pieces);
        }
    }
}
