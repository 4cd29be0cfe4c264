//! A link carries one protocol between two roles, over a byte stream or inside one process.
//!
//! Order is kept and nothing is repeated. A link ends when either side drops it, when bytes make
//! no sense, or when a stream's peer has been silent for [`SILENCE_MAX`]: an idle stream sends a
//! keep-alive every [`KEEP_ALIVE`]. In memory a message is handed over as it is.
//!
//! A stream starts in each direction with eight bytes: `FBDP`, version u16, protocol u16.

use std::io::IoSlice;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

use super::Message;
use super::wire::{ENVELOPE_LEN, MESSAGE_LEN_MAX, WireError};

/// Messages that may wait on a link's sending side. What they weigh is bounded by the permits
/// and windows of those who send them.
pub const QUEUE_MAX: usize = 1024;
/// An idle stream says so this often.
pub const KEEP_ALIVE: Duration = Duration::from_secs(1);
/// A stream that brings nothing for this long is dead.
pub const SILENCE_MAX: Duration = Duration::from_secs(6);

const PREAMBLE_LEN: usize = 8;
const VERSION: u16 = 1;
const READ_LEN: usize = 64 << 10;
const WRITE_MESSAGES_MAX: usize = 64;
const KEEP_ALIVE_KIND: u8 = 0;

/// Why a link ended.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The stream failed.
    #[error("connection failed")]
    Io(#[from] std::io::Error),
    /// The peer sent something that is not of this protocol.
    #[error("protocol violation")]
    Wire(#[from] WireError),
    /// The peer has been silent.
    #[error("nothing received for {0:?}")]
    Silent(Duration),
    /// The peer closed in the middle of a message.
    #[error("connection closed inside a message")]
    Cut,
}

/// The other side is gone, or no longer reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("link closed")]
pub struct Closed;

/// Why a message was not queued at once.
#[derive(Debug, PartialEq, Eq)]
pub enum TrySendError<M> {
    /// [`QUEUE_MAX`] messages wait.
    Full(M),
    /// The other side is gone.
    Closed(M),
}

/// Sends messages of one direction; cheap to clone.
#[derive(Debug)]
pub struct LinkSender<M>(mpsc::Sender<M>);

impl<M> Clone for LinkSender<M> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<M: Message> LinkSender<M> {
    /// Queues a message, waiting for a place.
    ///
    /// # Errors
    /// Where the link has ended. Success does not mean that the message arrives.
    pub async fn send(&self, message: M) -> Result<(), Closed> {
        self.0.send(message).await.map_err(|_| Closed)
    }

    /// Queues a message if there is a place.
    ///
    /// # Errors
    /// Gives the message back where the queue is full or the link has ended.
    pub fn try_send(&self, message: M) -> Result<(), TrySendError<M>> {
        self.0.try_send(message).map_err(|error| match error {
            mpsc::error::TrySendError::Full(message) => TrySendError::Full(message),
            mpsc::error::TrySendError::Closed(message) => TrySendError::Closed(message),
        })
    }

    /// Queues a message from a thread outside the runtime, waiting for a place.
    ///
    /// # Errors
    /// As [`LinkSender::send`].
    pub fn blocking_send(&self, message: M) -> Result<(), Closed> {
        self.0.blocking_send(message).map_err(|_| Closed)
    }

    /// True once the link has ended.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.0.is_closed()
    }

    /// Resolves when the link has ended.
    pub async fn closed(&self) {
        self.0.closed().await;
    }
}

/// Receives messages of one direction.
#[derive(Debug)]
pub struct LinkReceiver<M>(Source<M>);

enum Source<M> {
    Memory(mpsc::Receiver<M>),
    Stream(StreamSource<M>),
}

impl<M> std::fmt::Debug for Source<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Memory(_) => "memory",
            Self::Stream(_) => "stream",
        })
    }
}

impl<M: Message> LinkReceiver<M> {
    /// The next message; none when the other side closed in an orderly way.
    ///
    /// Cancel safety: what was read of a message stays in the receiver.
    ///
    /// # Errors
    /// Where the stream failed, fell silent, or brought something else than this protocol.
    pub async fn recv(&mut self) -> Result<Option<M>, LinkError> {
        match &mut self.0 {
            Source::Memory(receiver) => Ok(receiver.recv().await),
            Source::Stream(stream) => stream.recv().await,
        }
    }
}

/// Both directions of a connection.
#[derive(Debug)]
pub struct Link<Out, In> {
    /// To the other side.
    pub tx: LinkSender<Out>,
    /// From the other side.
    pub rx: LinkReceiver<In>,
}

/// A link inside one process: two ends, no bytes.
#[must_use]
pub fn memory<A: Message, B: Message>() -> (Link<A, B>, Link<B, A>) {
    let (a_tx, a_rx) = mpsc::channel(QUEUE_MAX);
    let (b_tx, b_rx) = mpsc::channel(QUEUE_MAX);
    (
        Link {
            tx: LinkSender(a_tx),
            rx: LinkReceiver(Source::Memory(b_rx)),
        },
        Link {
            tx: LinkSender(b_tx),
            rx: LinkReceiver(Source::Memory(a_rx)),
        },
    )
}

/// A link over a byte stream, and the task that writes to it: the caller runs it, and it ends
/// when the last sender is dropped and everything queued is written, or when the stream fails.
pub fn over_stream<Out: Message, In: Message>(
    read: impl AsyncRead + Send + Unpin + 'static,
    write: impl AsyncWrite + Send + Unpin + 'static,
) -> (
    Link<Out, In>,
    impl Future<Output = Result<(), LinkError>> + Send + 'static,
) {
    let (tx, queue) = mpsc::channel(QUEUE_MAX);
    let source = StreamSource {
        read: Box::new(read),
        buffer: BytesMut::new(),
        greeted: false,
        message: std::marker::PhantomData,
    };
    let link = Link {
        tx: LinkSender(tx),
        rx: LinkReceiver(Source::Stream(source)),
    };
    (link, write_all::<Out>(write, queue))
}

fn preamble(protocol: u16) -> [u8; PREAMBLE_LEN] {
    let [v0, v1] = VERSION.to_le_bytes();
    let [p0, p1] = protocol.to_le_bytes();
    [b'F', b'B', b'D', b'P', v0, v1, p0, p1]
}

async fn write_all<M: Message>(
    mut write: impl AsyncWrite + Send + Unpin,
    mut queue: mpsc::Receiver<M>,
) -> Result<(), LinkError> {
    write.write_all(&preamble(M::PROTOCOL)).await?;
    let mut messages = Vec::with_capacity(WRITE_MESSAGES_MAX);
    let mut pieces: Vec<Bytes> = Vec::new();
    loop {
        // Cancel safety: recv_many loses nothing when the timer wins.
        match tokio::time::timeout(KEEP_ALIVE, queue.recv_many(&mut messages, WRITE_MESSAGES_MAX)).await {
            Ok(0) => {
                write.shutdown().await?;
                return Ok(());
            }
            Ok(_) => {
                for message in messages.drain(..) {
                    let (head, chunks) = message.encode().finish();
                    pieces.push(head);
                    pieces.extend(chunks);
                }
            }
            Err(_) => pieces.push(super::wire::Encoder::new(KEEP_ALIVE_KIND, 0).finish().0),
        }
        write_pieces(&mut write, &mut pieces).await?;
        write.flush().await?;
    }
}

/// Writes all pieces with as few calls as possible, and drops them.
async fn write_pieces(write: &mut (impl AsyncWrite + Unpin), pieces: &mut Vec<Bytes>) -> std::io::Result<()> {
    const SLICES: usize = 64;
    let mut next = 0;
    while next < pieces.len() {
        let written = {
            let mut slices = [IoSlice::new(&[]); SLICES];
            let mut used = 0;
            for (slice, piece) in slices.iter_mut().zip(pieces.iter().skip(next)) {
                *slice = IoSlice::new(piece);
                used += 1;
            }
            write
                .write_vectored(slices.get(..used).unwrap_or_default())
                .await?
        };
        if written == 0 {
            return Err(std::io::ErrorKind::WriteZero.into());
        }
        let mut left = written;
        while let Some(piece) = pieces.get_mut(next) {
            let step = left.min(piece.len());
            piece.advance(step);
            left -= step;
            if !piece.is_empty() {
                break;
            }
            next += 1;
        }
    }
    pieces.clear();
    Ok(())
}

struct StreamSource<M> {
    read: Box<dyn AsyncRead + Send + Unpin>,
    buffer: BytesMut,
    greeted: bool,
    message: std::marker::PhantomData<fn() -> M>,
}

impl<M: Message> StreamSource<M> {
    async fn recv(&mut self) -> Result<Option<M>, LinkError> {
        loop {
            let missing = match self.take()? {
                Taken::Message(message) => return Ok(Some(message)),
                Taken::Missing(missing) => missing,
            };
            if self.buffer.capacity() - self.buffer.len() < missing {
                self.buffer.reserve(missing.max(READ_LEN));
            }
            let read = tokio::time::timeout(SILENCE_MAX, self.read.read_buf(&mut self.buffer)).await;
            match read.map_err(|_| LinkError::Silent(SILENCE_MAX))?? {
                0 if self.buffer.is_empty() => return Ok(None),
                0 => return Err(LinkError::Cut),
                _ => {}
            }
        }
    }

    /// Takes a whole message off the buffer, or says how many bytes are missing.
    fn take(&mut self) -> Result<Taken<M>, LinkError> {
        if !self.greeted {
            let Some(found) = self.buffer.first_chunk::<PREAMBLE_LEN>() else {
                return Ok(Taken::Missing(PREAMBLE_LEN - self.buffer.len()));
            };
            if *found != preamble(M::PROTOCOL) {
                return Err(WireError::Preamble(*found).into());
            }
            self.buffer.advance(PREAMBLE_LEN);
            self.greeted = true;
        }
        loop {
            let Some(envelope) = self.buffer.first_chunk::<ENVELOPE_LEN>() else {
                return Ok(Taken::Missing(ENVELOPE_LEN - self.buffer.len()));
            };
            let [l0, l1, l2, l3, kind, version, z0, z1, id @ ..] = *envelope;
            let len = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
            if len > MESSAGE_LEN_MAX {
                return Err(WireError::TooLong {
                    len,
                    max: MESSAGE_LEN_MAX,
                }
                .into());
            }
            if version != 1 || z0 != 0 || z1 != 0 {
                let value = u64::from(version) | u64::from(u16::from_le_bytes([z0, z1])) << 8;
                return Err(WireError::Value {
                    kind,
                    field: "envelope version and flags",
                    value,
                }
                .into());
            }
            let whole = ENVELOPE_LEN + len;
            if self.buffer.len() < whole {
                return Ok(Taken::Missing(whole - self.buffer.len()));
            }
            let mut body = self.buffer.split_to(whole).freeze();
            body.advance(ENVELOPE_LEN);
            if kind == KEEP_ALIVE_KIND {
                continue;
            }
            return Ok(Taken::Message(M::decode(kind, u64::from_le_bytes(id), body)?));
        }
    }
}

enum Taken<M> {
    Message(M),
    Missing(usize),
}
