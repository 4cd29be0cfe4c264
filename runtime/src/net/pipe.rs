//! One direction of an in-process connection: a bounded byte pipe with the manners of a socket.
//!
//! Dropping the writer (or shutting it down) lets the reader see what is left and then the end;
//! dropping the reader makes writes fail; severing fails both ends at once and throws away what
//! was in flight, as a reset does. The bound is what makes a slow reader hold back its writer.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes in flight per direction; about what a socket on a loopback holds.
const IN_FLIGHT_BYTES_MAX: usize = 256 * 1024;

/// The end that is read.
#[derive(Debug)]
pub struct PipeReader(Arc<Mutex<State>>);

/// The end that is written.
#[derive(Debug)]
pub struct PipeWriter(Arc<Mutex<State>>);

/// A handle that can sever the pipe without keeping it alive.
#[derive(Debug, Clone)]
pub(super) struct Severer(Weak<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    in_flight: VecDeque<u8>,
    reader: Option<Waker>,
    writer: Option<Waker>,
    write_ended: bool,
    read_ended: bool,
    severed: bool,
}

pub(super) fn pipe() -> (PipeReader, PipeWriter) {
    let state = Arc::new(Mutex::new(State::default()));
    (PipeReader(Arc::clone(&state)), PipeWriter(state))
}

impl PipeReader {
    pub(super) fn severer(&self) -> Severer {
        Severer(Arc::downgrade(&self.0))
    }
}

impl Severer {
    pub(super) fn is_open(&self) -> bool {
        self.0.strong_count() > 0
    }

    pub(super) fn sever(&self) {
        let Some(state) = self.0.upgrade() else {
            return;
        };
        let mut state = state.lock();
        state.severed = true;
        state.in_flight = VecDeque::new();
        state.wake_reader();
        state.wake_writer();
    }
}

impl State {
    fn wake_reader(&mut self) {
        if let Some(waker) = self.reader.take() {
            waker.wake();
        }
    }

    fn wake_writer(&mut self) {
        if let Some(waker) = self.writer.take() {
            waker.wake();
        }
    }

    /// Room for writing, or why there is none.
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.severed {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        if self.read_ended || self.write_ended {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let room = IN_FLIGHT_BYTES_MAX.saturating_sub(self.in_flight.len());
        if room == 0 {
            self.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(Ok(room))
    }

    fn push(&mut self, bytes: &[u8], room: usize) -> usize {
        let fitting = bytes.get(..room).unwrap_or(bytes);
        self.in_flight.extend(fitting);
        fitting.len()
    }
}

impl AsyncRead for PipeReader {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut state = self.0.lock();
        if state.severed {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        if state.in_flight.is_empty() {
            if state.write_ended {
                return Poll::Ready(Ok(()));
            }
            state.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let (front, back) = state.in_flight.as_slices();
        let before = buf.filled().len();
        for slice in [front, back] {
            buf.put_slice(slice.get(..buf.remaining()).unwrap_or(slice));
        }
        let taken = buf.filled().len() - before;
        state.in_flight.drain(..taken);
        state.wake_writer();
        Poll::Ready(Ok(()))
    }
}

impl Drop for PipeReader {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.read_ended = true;
        state.in_flight = VecDeque::new();
        state.wake_writer();
    }
}

impl AsyncWrite for PipeWriter {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut state = self.0.lock();
        let room = match state.poll_room(cx) {
            Poll::Ready(Ok(room)) => room,
            Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
            Poll::Pending => return Poll::Pending,
        };
        let mut written = 0;
        for slice in slices {
            written += state.push(slice, room - written);
        }
        if written > 0 {
            state.wake_reader();
        }
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.0.lock();
        state.write_ended = true;
        state.wake_reader();
        Poll::Ready(Ok(()))
    }
}

impl Drop for PipeWriter {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.write_ended = true;
        state.wake_reader();
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

    use futures_util::FutureExt;
    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn a_full_pipe_holds_its_writer_back_until_it_is_read() {
        let (mut reader, mut writer) = pipe();
        let block = vec![7; IN_FLIGHT_BYTES_MAX + 10];
        assert_eq!(writer.write(&block).await.unwrap(), IN_FLIGHT_BYTES_MAX);
        assert!(writer.write(b"x").now_or_never().is_none());
        let mut some = [0; 100];
        reader.read_exact(&mut some).await.unwrap();
        assert_eq!(writer.write(&block).await.unwrap(), 100);
    }

    #[tokio::test]
    async fn the_reader_sees_what_is_left_and_then_the_end() {
        let (mut reader, mut writer) = pipe();
        writer.write_all(b"left").await.unwrap();
        drop(writer);
        let mut all = Vec::new();
        reader.read_to_end(&mut all).await.unwrap();
        assert_eq!(all, b"left");
    }

    #[tokio::test]
    async fn writing_to_nobody_fails() {
        let (reader, mut writer) = pipe();
        drop(reader);
        assert_eq!(
            writer.write(b"x").await.unwrap_err().kind(),
            io::ErrorKind::BrokenPipe
        );
    }

    #[tokio::test]
    async fn severing_fails_both_ends_and_wakes_them() {
        let (mut reader, mut writer) = pipe();
        let severer = reader.severer();
        let reading = tokio::spawn(async move { reader.read_u8().await });
        tokio::task::yield_now().await;
        severer.sever();
        assert_eq!(
            reading.await.unwrap().unwrap_err().kind(),
            io::ErrorKind::ConnectionReset
        );
        assert_eq!(
            writer.write(b"x").await.unwrap_err().kind(),
            io::ErrorKind::ConnectionReset
        );
        drop(writer);
        assert!(!severer.is_open());
    }

    proptest! {
        #[test]
        fn bytes_come_out_as_they_went_in(
            parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..20),
            read_bytes in 1_usize..500,
        ) {
            let (mut reader, mut writer) = pipe();
            let slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
            let whole = parts.concat();
            let written = writer.write_vectored(&slices).now_or_never().unwrap().unwrap();
            prop_assert_eq!(written, whole.len());
            drop(writer);
            let mut got = Vec::new();
            loop {
                let mut some = vec![0; read_bytes];
                let count = reader.read(&mut some).now_or_never().unwrap().unwrap();
                if count == 0 {
                    break;
                }
                got.extend_from_slice(&some[..count]);
            }
            prop_assert_eq!(got, whole);
        }
    }
}
