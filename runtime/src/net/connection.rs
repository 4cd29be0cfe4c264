//! A byte stream of any of the three kinds, whole or split into owned halves.
//!
//! Everything is forwarded to the stream underneath, vectored writes included: a frame whose
//! header and payload lie apart costs one system call. Dropping the write half ends the stream
//! for the peer, whatever the kind.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream, tcp, unix};

use super::pipe::{PipeReader, PipeWriter};

/// An open connection.
#[derive(Debug)]
pub enum Connection {
    /// TCP, with Nagle's algorithm off.
    Tcp(TcpStream),
    /// A Unix socket.
    Unix(UnixStream),
    /// An in-process pair of pipes.
    Mem(MemStream),
}

/// The in-process kind of connection.
#[derive(Debug)]
pub struct MemStream {
    pub(super) name: String,
    pub(super) reader: PipeReader,
    pub(super) writer: PipeWriter,
}

/// The end of a connection that is read.
#[derive(Debug)]
pub enum ReadHalf {
    /// TCP.
    Tcp(tcp::OwnedReadHalf),
    /// A Unix socket.
    Unix(unix::OwnedReadHalf),
    /// An in-process pipe.
    Mem(PipeReader),
}

/// The end of a connection that is written; dropping it ends the stream for the peer.
#[derive(Debug)]
pub enum WriteHalf {
    /// TCP.
    Tcp(tcp::OwnedWriteHalf),
    /// A Unix socket.
    Unix(unix::OwnedWriteHalf),
    /// An in-process pipe.
    Mem(PipeWriter),
}

/// What a gRPC handler can learn about the connection that a request came by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerInfo {
    /// The peer's TCP address, if the connection has one.
    pub socket_addr: Option<SocketAddr>,
    /// The peer as text, for logs.
    pub name: String,
}

impl Connection {
    /// Splits into halves that two tasks can own.
    pub fn into_split(self) -> (ReadHalf, WriteHalf) {
        match self {
            Self::Tcp(stream) => {
                let (reader, writer) = stream.into_split();
                (ReadHalf::Tcp(reader), WriteHalf::Tcp(writer))
            }
            Self::Unix(stream) => {
                let (reader, writer) = stream.into_split();
                (ReadHalf::Unix(reader), WriteHalf::Unix(writer))
            }
            Self::Mem(MemStream { reader, writer, .. }) => (ReadHalf::Mem(reader), WriteHalf::Mem(writer)),
        }
    }

    /// Who is at the other end.
    pub fn peer(&self) -> PeerInfo {
        match self {
            Self::Tcp(stream) => {
                // Fails only when the peer is gone already, which the next read will say.
                let socket_addr = stream.peer_addr().ok();
                let name = socket_addr.map_or_else(|| "tcp://?".to_owned(), |a| format!("tcp://{a}"));
                PeerInfo { socket_addr, name }
            }
            Self::Unix(_) => PeerInfo {
                socket_addr: None,
                name: "unix".to_owned(),
            },
            Self::Mem(stream) => PeerInfo {
                socket_addr: None,
                name: format!("mem://{}", stream.name),
            },
        }
    }
}

impl tonic::transport::server::Connected for Connection {
    type ConnectInfo = PeerInfo;

    fn connect_info(&self) -> PeerInfo {
        self.peer()
    }
}

impl AsyncRead for MemStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.reader).poll_read(cx, buf)
    }
}

impl AsyncWrite for MemStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.writer).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.writer).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.writer.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.writer).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.writer).poll_shutdown(cx)
    }
}

macro_rules! forward_read {
    ($kind:ident) => {
        impl AsyncRead for $kind {
            fn poll_read(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                buf: &mut ReadBuf<'_>,
            ) -> Poll<io::Result<()>> {
                match self.get_mut() {
                    Self::Tcp(inner) => Pin::new(inner).poll_read(cx, buf),
                    Self::Unix(inner) => Pin::new(inner).poll_read(cx, buf),
                    Self::Mem(inner) => Pin::new(inner).poll_read(cx, buf),
                }
            }
        }
    };
}

macro_rules! forward_write {
    ($kind:ident) => {
        impl AsyncWrite for $kind {
            fn poll_write(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                bytes: &[u8],
            ) -> Poll<io::Result<usize>> {
                match self.get_mut() {
                    Self::Tcp(inner) => Pin::new(inner).poll_write(cx, bytes),
                    Self::Unix(inner) => Pin::new(inner).poll_write(cx, bytes),
                    Self::Mem(inner) => Pin::new(inner).poll_write(cx, bytes),
                }
            }

            fn poll_write_vectored(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                slices: &[IoSlice<'_>],
            ) -> Poll<io::Result<usize>> {
                match self.get_mut() {
                    Self::Tcp(inner) => Pin::new(inner).poll_write_vectored(cx, slices),
                    Self::Unix(inner) => Pin::new(inner).poll_write_vectored(cx, slices),
                    Self::Mem(inner) => Pin::new(inner).poll_write_vectored(cx, slices),
                }
            }

            fn is_write_vectored(&self) -> bool {
                match self {
                    Self::Tcp(inner) => inner.is_write_vectored(),
                    Self::Unix(inner) => inner.is_write_vectored(),
                    Self::Mem(inner) => inner.is_write_vectored(),
                }
            }

            fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                match self.get_mut() {
                    Self::Tcp(inner) => Pin::new(inner).poll_flush(cx),
                    Self::Unix(inner) => Pin::new(inner).poll_flush(cx),
                    Self::Mem(inner) => Pin::new(inner).poll_flush(cx),
                }
            }

            fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                match self.get_mut() {
                    Self::Tcp(inner) => Pin::new(inner).poll_shutdown(cx),
                    Self::Unix(inner) => Pin::new(inner).poll_shutdown(cx),
                    Self::Mem(inner) => Pin::new(inner).poll_shutdown(cx),
                }
            }
        }
    };
}

forward_read!(Connection);
forward_read!(ReadHalf);
forward_write!(Connection);
forward_write!(WriteHalf);
