//! Messages of the raw pipe on a byte stream.
//!
//! | bytes | field                                                     |
//! |-------|-----------------------------------------------------------|
//! | 0–3   | length of the body                                        |
//! | 4–7   | partition                                                 |
//! | 8–15  | id, counted up from 1 on each connection                  |
//! | 16–   | body; none in an answer, which acknowledges all ids up to its own |
//!
//! All integers are little endian. Writing gathers everything queued into few vectored calls;
//! reading takes what the socket has and shares it as slices.

use std::collections::VecDeque;
use std::io::{self, IoSlice};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

const ENVELOPE_LEN: usize = 16;
const BODY_LEN_MAX: usize = 8 << 20;
const READ_LEN: usize = 256 << 10;
/// Messages that may wait for the socket; the client's window bounds their bytes.
const QUEUE_MAX: usize = 64;

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Counted up on each connection.
    pub id: u64,
    /// The partition of the batch.
    pub partition: u32,
    /// In as many pieces as it was put together from.
    pub body: Vec<Bytes>,
}

impl Message {
    /// The answer that acknowledges all ids up to `id`.
    #[must_use]
    pub const fn answer(id: u64) -> Self {
        Self {
            id,
            partition: 0,
            body: Vec::new(),
        }
    }
}

/// Both directions of a connection, the sending one by a task.
#[derive(Debug)]
pub struct Connection {
    /// Queue of the sending task; the task shuts the direction down when all senders are gone.
    pub sender: mpsc::Sender<Message>,
    /// Receives.
    pub reader: Reader,
    /// Ends when everything queued is written or writing failed.
    pub writing: JoinHandle<io::Result<()>>,
}

impl Connection {
    /// Starts to use a connected stream.
    ///
    /// # Errors
    /// Where the stream takes no options.
    pub fn new(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        let (read, write) = stream.into_split();
        let (sender, queue) = mpsc::channel(QUEUE_MAX);
        let reader = Reader {
            stream: read,
            buffer: BytesMut::new(),
        };
        Ok(Self {
            sender,
            reader,
            writing: tokio::spawn(write_all(write, queue)),
        })
    }
}

/// Takes messages off a stream.
#[derive(Debug)]
pub struct Reader {
    stream: OwnedReadHalf,
    buffer: BytesMut,
}

impl Reader {
    /// The next message, none after the last.
    ///
    /// Cancel safety: what was read of a message stays in the reader.
    ///
    /// # Errors
    /// Where the stream fails, ends inside a message or promises too long a body.
    pub async fn recv(&mut self) -> io::Result<Option<Message>> {
        loop {
            let missing = match self.buffer.first_chunk::<ENVELOPE_LEN>() {
                None => ENVELOPE_LEN - self.buffer.len(),
                Some(envelope) => {
                    let mut envelope = envelope.as_slice();
                    let len = envelope.get_u32_le() as usize;
                    let (partition, id) = (envelope.get_u32_le(), envelope.get_u64_le());
                    if len > BODY_LEN_MAX {
                        let text = format!("message of {len} bytes, {BODY_LEN_MAX} are allowed");
                        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
                    }
                    let whole = ENVELOPE_LEN + len;
                    if self.buffer.len() >= whole {
                        let mut body = self.buffer.split_to(whole).freeze();
                        body.advance(ENVELOPE_LEN);
                        return Ok(Some(Message {
                            id,
                            partition,
                            body: vec![body],
                        }));
                    }
                    whole - self.buffer.len()
                }
            };
            if self.buffer.capacity() - self.buffer.len() < missing {
                self.buffer.reserve(missing.max(READ_LEN));
            }
            match self.stream.read_buf(&mut self.buffer).await? {
                0 if self.buffer.is_empty() => return Ok(None),
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                _ => {}
            }
        }
    }
}

async fn write_all(mut stream: OwnedWriteHalf, mut queue: mpsc::Receiver<Message>) -> io::Result<()> {
    let mut messages = Vec::with_capacity(QUEUE_MAX);
    let mut pieces = Pieces::default();
    while queue.recv_many(&mut messages, QUEUE_MAX).await > 0 {
        for message in messages.drain(..) {
            pieces.push(message);
        }
        stream.write_all_buf(&mut pieces).await?;
    }
    stream.shutdown().await
}

/// Slices that are written one after the other.
#[derive(Debug, Default)]
struct Pieces {
    queue: VecDeque<Bytes>,
    remaining: usize,
}

impl Pieces {
    fn push(&mut self, message: Message) {
        let len = message.body.iter().map(Bytes::len).sum::<usize>();
        let mut envelope = BytesMut::with_capacity(ENVELOPE_LEN);
        envelope.put_u32_le(u32::try_from(len).unwrap_or(u32::MAX));
        envelope.put_u32_le(message.partition);
        envelope.put_u64_le(message.id);
        self.queue.push_back(envelope.freeze());
        self.queue
            .extend(message.body.into_iter().filter(|piece| !piece.is_empty()));
        self.remaining += ENVELOPE_LEN + len;
    }
}

impl Buf for Pieces {
    fn remaining(&self) -> usize {
        self.remaining
    }

    fn chunk(&self) -> &[u8] {
        self.queue.front().map_or(&[], |piece| piece)
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let used = slices.iter_mut().zip(&self.queue);
        used.map(|(slice, piece)| *slice = IoSlice::new(piece)).count()
    }

    fn advance(&mut self, mut count: usize) {
        self.remaining -= count;
        while let Some(front) = self.queue.front_mut() {
            if count < front.len() {
                front.advance(count);
                return;
            }
            count -= front.len();
            self.queue.pop_front();
        }
    }
}
