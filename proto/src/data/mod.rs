//! The framed data protocol: what proxies, brokers and storage nodes say to each other.
//!
//! A connection starts with a preamble and then carries messages both ways, each an envelope of
//! 16 bytes and a body. [`replica`] is spoken with storage nodes, [`front`] with brokers.
//! [`link`] carries either over TCP, a unix socket or memory: inside one process a message moves
//! as it is, and no byte of it is encoded.
//!
//! A message that is part of a recorded trace carries the trace's context before its fields and says
//! so in a bit of its kind; all others have neither field nor flag for it.

pub mod endpoint;
pub mod front;
pub mod link;
pub mod replica;
#[cfg(test)]
mod tests;
mod wire;

pub use wire::{ENVELOPE_LEN, Encoder, MESSAGE_LEN_MAX, WireError};

use bytes::Bytes;

/// One direction of a protocol.
pub trait Message: Sized + Send + std::fmt::Debug + 'static {
    /// Number of the protocol in the preamble.
    const PROTOCOL: u16;

    /// The message as bytes.
    fn encode(&self) -> Encoder;

    /// Reads a message; `body` is what followed the envelope.
    ///
    /// # Errors
    /// Where the body is not a message of this kind. Nothing is allocated beyond its length.
    fn decode(kind: u8, id: u64, body: Bytes) -> Result<Self, WireError>;
}
