//! Where gRPC requests come in: bytes are admitted before a message is decoded.
//!
//! 1. [`metered`] watches the message lengths in a request's body and lets a message through only
//!    once its bytes are granted.
//! 2. [`codec`] decodes produce requests and refuses those whose structure would take far more
//!    memory than their bytes.
//! 3. [`service`] takes the calls; [`answer`] writes fetch responses without copying batches.
//!
//! Why memory is bounded: a request's bytes are held from before they are decoded until it is
//! answered, and their sum never exceeds the pool. Beside the pool there are only, per
//! connection, what HTTP/2 flow control lets a client send unasked (the connection's window); per
//! thread, one decompressed batch and one message's decoded structure, each with a limit; and per
//! open stream a fixed number of small answers. Waiting for bytes never holds bytes: a message is
//! granted as a whole, and the ones before it are answered without it.

pub(crate) mod answer;
mod codec;
mod metered;
pub(crate) mod service;

use std::collections::VecDeque;
use std::sync::Arc;

use forebay_runtime::permits::BytePermit;
use forebay_runtime::trace::{TRACEPARENT, TRACESTATE, TraceContext};
use parking_lot::Mutex;
use prometheus_client::metrics::gauge::Gauge;
use tonic::codegen::http::HeaderMap;

/// Longest message of a client, before gRPC's own five bytes.
pub const MESSAGE_BYTES_MAX: usize = 72 << 20;

/// The span that a call belongs to, as its metadata names it.
pub(crate) fn trace_parent(metadata: &HeaderMap) -> Option<TraceContext> {
    let parent = metadata.get(TRACEPARENT)?;
    let state = metadata.get(TRACESTATE).map(|state| state.as_bytes());
    TraceContext::parse(parent.as_bytes(), state)
}

/// Bytes granted to one message or answer; they go back when this is dropped.
#[derive(Debug)]
pub(crate) struct Admitted {
    permit: BytePermit,
    held: Gauge,
}

impl Admitted {
    pub(crate) fn new(permit: BytePermit, held: &Gauge) -> Self {
        held.inc_by(i64::try_from(permit.bytes()).unwrap_or(i64::MAX));
        Self {
            permit,
            held: held.clone(),
        }
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.permit.bytes()
    }

    /// Gives back all but `bytes`.
    pub(crate) fn shrink_to(&mut self, bytes: u64) {
        let before = self.permit.bytes();
        self.permit.shrink_to(bytes);
        self.held
            .dec_by(i64::try_from(before - self.permit.bytes()).unwrap_or(i64::MAX));
    }

    /// Takes over more.
    pub(crate) fn add(&mut self, more: BytePermit) {
        let bytes = more.bytes();
        if self.permit.merge(more).is_ok() {
            self.held.inc_by(i64::try_from(bytes).unwrap_or(i64::MAX));
        }
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.held
            .dec_by(i64::try_from(self.permit.bytes()).unwrap_or(i64::MAX));
    }
}

/// What was granted to a call's messages, in their order. Travels as an extension of the request.
#[derive(Debug, Clone, Default)]
pub(crate) struct Intake {
    granted: Arc<Mutex<VecDeque<Admitted>>>,
}

impl Intake {
    fn push(&self, admitted: Admitted) {
        self.granted.lock().push_back(admitted);
    }

    /// What was granted to the message decoded next.
    pub(crate) fn pop(&self) -> Option<Admitted> {
        self.granted.lock().pop_front()
    }
}
