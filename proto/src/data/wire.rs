//! Reading and writing the fields of data protocol messages.
//!
//! A reader never reaches past the message and never allocates more than the message is long.

use bytes::{BufMut, Bytes, BytesMut};
use forebay_runtime::trace::TraceContext;

/// Why a message does not parse.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The message ends inside a field.
    #[error("message kind {kind} ends inside {field}")]
    Truncated {
        /// Kind of the message.
        kind: u8,
        /// The field.
        field: &'static str,
    },
    /// A kind that this protocol does not have.
    #[error("unknown message kind {0}")]
    Kind(u8),
    /// A count or a value that cannot be.
    #[error("message kind {kind} has {field} = {value}")]
    Value {
        /// Kind of the message.
        kind: u8,
        /// The field.
        field: &'static str,
        /// As sent.
        value: u64,
    },
    /// Bytes after the last field.
    #[error("message kind {kind} has {extra} bytes after its last field")]
    Trailing {
        /// Kind of the message.
        kind: u8,
        /// How many.
        extra: usize,
    },
    /// The frame inside is none.
    #[error("message carries a bad frame")]
    Frame(#[from] forebay_record::frame::FrameError),
    /// Longer than any message may be.
    #[error("message of {len} bytes is over the limit of {max}")]
    TooLong {
        /// As announced.
        len: usize,
        /// The limit.
        max: usize,
    },
    /// The peer speaks something else.
    #[error("not this protocol: connection starts with {0:02x?}")]
    Preamble([u8; 8]),
    /// A message in a direction or a state where it has no place.
    #[error("unexpected message: {0}")]
    Unexpected(&'static str),
}

/// Takes fields off the front of a message body.
pub(crate) struct Reader {
    kind: u8,
    body: Bytes,
}

macro_rules! int {
    ($name:ident, $type:ty) => {
        pub(crate) fn $name(&mut self, field: &'static str) -> Result<$type, WireError> {
            const LEN: usize = size_of::<$type>();
            let Some(chunk) = self.body.first_chunk::<LEN>() else {
                return Err(WireError::Truncated {
                    kind: self.kind,
                    field,
                });
            };
            let value = <$type>::from_le_bytes(*chunk);
            bytes::Buf::advance(&mut self.body, LEN);
            Ok(value)
        }
    };
}

impl Reader {
    pub(crate) const fn new(kind: u8, body: Bytes) -> Self {
        Self { kind, body }
    }

    int!(u8, u8);
    int!(u32, u32);
    int!(u64, u64);
    int!(i64, i64);

    pub(crate) fn bytes(&mut self, len: usize, field: &'static str) -> Result<Bytes, WireError> {
        if self.body.len() < len {
            return Err(WireError::Truncated {
                kind: self.kind,
                field,
            });
        }
        Ok(self.body.split_to(len))
    }

    pub(crate) fn prefixed(&mut self, field: &'static str) -> Result<Bytes, WireError> {
        let len = self.u32(field)? as usize;
        self.bytes(len, field)
    }

    pub(crate) fn string(&mut self, field: &'static str) -> Result<String, WireError> {
        let bytes = self.prefixed(field)?;
        String::from_utf8(bytes.to_vec()).map_err(|_| self.value(field, 0))
    }

    /// A count whose elements, `element_len` bytes each at least, fit into what is left.
    pub(crate) fn count(&mut self, element_len: usize, field: &'static str) -> Result<usize, WireError> {
        let count = self.u32(field)? as usize;
        if count > self.body.len() / element_len.max(1) {
            return Err(self.value(field, count as u64));
        }
        Ok(count)
    }

    /// A trace context, as [`Encoder::traced`] puts it.
    pub(crate) fn trace(&mut self) -> Result<TraceContext, WireError> {
        let (trace, span) = (self.array("trace id")?, self.array("span id")?);
        let flags = self.u8("trace flags")?;
        let state = self.string("trace state")?;
        TraceContext::new(trace, span, flags, &state).ok_or_else(|| self.value("trace id", 0))
    }

    fn array<const LEN: usize>(&mut self, field: &'static str) -> Result<[u8; LEN], WireError> {
        let mut array = [0; LEN];
        array.copy_from_slice(&self.bytes(LEN, field)?);
        Ok(array)
    }

    pub(crate) fn rest(&mut self) -> Bytes {
        std::mem::take(&mut self.body)
    }

    pub(crate) const fn value(&self, field: &'static str, value: u64) -> WireError {
        WireError::Value {
            kind: self.kind,
            field,
            value,
        }
    }

    pub(crate) fn finish(self) -> Result<(), WireError> {
        match self.body.len() {
            0 => Ok(()),
            extra => Err(WireError::Trailing {
                kind: self.kind,
                extra,
            }),
        }
    }
}

/// A message on its way out: fields put together, then bulk chunks that are never copied.
pub struct Encoder {
    head: BytesMut,
    chunks: Vec<Bytes>,
}

/// Set in the kind of a message whose body begins with a trace context: trace id 16 bytes, span id
/// 8 bytes, flags u8, state as a prefixed string. Kinds themselves are below it, or above 64.
pub(crate) const TRACED: u8 = 0x20;

/// Bytes of the envelope before each message: length u32, kind u8, version u8, zero u16, id u64.
pub const ENVELOPE_LEN: usize = 16;
/// Where the kind is in it.
const KIND_AT: usize = 4;
/// Longest message after its envelope: one frame of the largest size and its fields.
pub const MESSAGE_LEN_MAX: usize = forebay_record::frame::PAYLOAD_LEN_MAX + (1 << 20);

impl Encoder {
    pub(crate) fn new(kind: u8, id: u64) -> Self {
        let mut head = BytesMut::with_capacity(128);
        head.put_u32_le(0);
        head.put_u8(kind);
        head.put_u8(1);
        head.put_u16_le(0);
        head.put_u64_le(id);
        Self {
            head,
            chunks: Vec::new(),
        }
    }

    pub(crate) fn u8(&mut self, value: u8) -> &mut Self {
        self.head.put_u8(value);
        self
    }
    pub(crate) fn u32(&mut self, value: u32) -> &mut Self {
        self.head.put_u32_le(value);
        self
    }
    pub(crate) fn u64(&mut self, value: u64) -> &mut Self {
        self.head.put_u64_le(value);
        self
    }
    pub(crate) fn i64(&mut self, value: i64) -> &mut Self {
        self.head.put_i64_le(value);
        self
    }
    pub(crate) fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.head.extend_from_slice(bytes);
        self
    }
    /// A length that its sender has bounded far below 2³².
    pub(crate) fn len(&mut self, len: usize) -> &mut Self {
        self.u32(u32::try_from(len).unwrap_or(u32::MAX))
    }
    pub(crate) fn prefixed(&mut self, bytes: &[u8]) -> &mut Self {
        self.len(bytes.len());
        self.raw(bytes)
    }
    /// Bulk bytes after all fields, in the order they are given.
    pub(crate) fn chunk(&mut self, bytes: Bytes) -> &mut Self {
        if !bytes.is_empty() {
            self.chunks.push(bytes);
        }
        self
    }

    /// The same message with a trace context before its fields.
    pub(crate) fn traced(self, context: &TraceContext) -> Self {
        let (envelope, fields) = self.head.split_at(ENVELOPE_LEN.min(self.head.len()));
        let mut head = BytesMut::with_capacity(self.head.len() + 64);
        head.extend_from_slice(envelope);
        if let Some(kind) = head.get_mut(KIND_AT) {
            *kind |= TRACED;
        }
        let mut out = Self {
            head,
            chunks: Vec::new(),
        };
        out.raw(&context.trace_id())
            .raw(&context.span_id())
            .u8(context.flags())
            .prefixed(context.tracestate().unwrap_or_default().as_bytes())
            .raw(fields);
        out.chunks = self.chunks;
        out
    }

    /// The message as pieces to write one after the other.
    pub fn finish(mut self) -> (Bytes, Vec<Bytes>) {
        let len = self.head.len() - ENVELOPE_LEN + self.chunks.iter().map(Bytes::len).sum::<usize>();
        let len = u32::try_from(len).unwrap_or(u32::MAX);
        for (to, from) in self.head.iter_mut().zip(len.to_le_bytes()) {
            *to = from;
        }
        (self.head.freeze(), self.chunks)
    }
}
