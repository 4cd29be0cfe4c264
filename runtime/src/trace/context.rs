//! Where a span is in its trace, as it travels: W3C Trace Context.
//!
//! As text it is the two headers `traceparent` and `tracestate` (W3C Trace Context level 1 and 2),
//! which records and gRPC metadata carry. What does not parse is no context: a header that a
//! client made up never fails its request. The state is opaque, passed on as it came, and dropped
//! where it is longer than [`STATE_LEN_MAX`].

use std::fmt;
use std::str::FromStr;

use opentelemetry::trace::{SpanContext, SpanId, TraceFlags, TraceId, TraceState};

/// Name of the header that holds a context.
pub const TRACEPARENT: &str = "traceparent";
/// Name of the header that holds what tracing systems add to it.
pub const TRACESTATE: &str = "tracestate";
/// Length of a `traceparent`.
pub const TRACEPARENT_LEN: usize = 55;
/// Longest `tracestate` that is passed on, in bytes.
pub const STATE_LEN_MAX: usize = 512;

const SAMPLED: u8 = 1;
/// The flags that are defined: sampled, and that the trace id is random.
const FLAGS_KNOWN: u8 = 3;

/// A span's place in its trace.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct TraceContext {
    trace: [u8; 16],
    span: [u8; 8],
    flags: u8,
    state: Option<Box<str>>,
}

impl TraceContext {
    /// A context of these ids; none where one of them is all zeros. A state that is empty, too
    /// long or not printable ASCII is left out.
    #[must_use]
    pub fn new(trace: [u8; 16], span: [u8; 8], flags: u8, state: &str) -> Option<Self> {
        if trace == [0; 16] || span == [0; 8] {
            return None;
        }
        let printable = state.bytes().all(|byte| (0x20..0x7f).contains(&byte));
        let keep = !state.is_empty() && state.len() <= STATE_LEN_MAX && printable;
        Some(Self {
            trace,
            span,
            flags: flags & FLAGS_KNOWN,
            state: keep.then(|| state.into()),
        })
    }

    /// Reads the two headers; none where the first is not a `traceparent`.
    #[must_use]
    pub fn parse(traceparent: &[u8], tracestate: Option<&[u8]>) -> Option<Self> {
        let (head, rest) = traceparent.split_at_checked(TRACEPARENT_LEN)?;
        let [v0, v1, b'-', ids @ .., b'-', f0, f1] = head else {
            return None;
        };
        let [version] = hex([*v0, *v1])?;
        // Later versions may add fields; version 0 has none and 255 is none.
        if version == 0xff || (version == 0 && !rest.is_empty()) || rest.first().is_some_and(|b| *b != b'-') {
            return None;
        }
        let [flags] = hex([*f0, *f1])?;
        let (trace, span) = ids.split_at_checked(32)?;
        let span = span.strip_prefix(b"-")?;
        let trace = hex::<32, 16>(trace.try_into().ok()?)?;
        let span = hex::<16, 8>(span.try_into().ok()?)?;
        let state = tracestate.and_then(|state| std::str::from_utf8(state).ok());
        Self::new(trace, span, flags, state.unwrap_or_default())
    }

    /// The first header.
    #[must_use]
    pub fn traceparent(&self) -> String {
        self.to_string()
    }

    /// The second header; none where there is nothing to say.
    #[must_use]
    pub fn tracestate(&self) -> Option<&str> {
        self.state.as_deref()
    }

    /// Whether spans of this trace are recorded.
    #[must_use]
    pub const fn is_sampled(&self) -> bool {
        self.flags & SAMPLED != 0
    }

    /// Id of the trace.
    #[must_use]
    pub const fn trace_id(&self) -> [u8; 16] {
        self.trace
    }

    /// Id of the span.
    #[must_use]
    pub const fn span_id(&self) -> [u8; 8] {
        self.span
    }

    /// The flags, those that are defined.
    #[must_use]
    pub const fn flags(&self) -> u8 {
        self.flags
    }

    /// Id of the trace as people write it.
    #[must_use]
    pub fn trace_id_hex(&self) -> String {
        TraceId::from_bytes(self.trace).to_string()
    }

    /// Id of the span as people write it.
    #[must_use]
    pub fn span_id_hex(&self) -> String {
        SpanId::from_bytes(self.span).to_string()
    }

    /// The same for OpenTelemetry.
    #[must_use]
    pub fn to_otel(&self) -> SpanContext {
        let state = self
            .tracestate()
            .and_then(|state| TraceState::from_str(state).ok());
        SpanContext::new(
            TraceId::from_bytes(self.trace),
            SpanId::from_bytes(self.span),
            TraceFlags::new(self.flags),
            true,
            state.unwrap_or_default(),
        )
    }

    /// From OpenTelemetry's; none where it is not valid.
    #[must_use]
    pub fn from_otel(context: &SpanContext) -> Option<Self> {
        Self::new(
            context.trace_id().to_bytes(),
            context.span_id().to_bytes(),
            context.trace_flags().to_u8(),
            &context.trace_state().header(),
        )
    }
}

/// As a `traceparent`.
impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (trace, span) = (TraceId::from_bytes(self.trace), SpanId::from_bytes(self.span));
        write!(f, "00-{trace}-{span}-{:02x}", self.flags)
    }
}

impl fmt::Debug for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// Lower-case hexadecimal digits as bytes: the standard has no others.
fn hex<const DIGITS: usize, const BYTES: usize>(digits: [u8; DIGITS]) -> Option<[u8; BYTES]> {
    const { assert!(DIGITS == BYTES * 2) };
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; BYTES];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let [high, low] = pair else { return None };
        *byte = digit(*high)? << 4 | digit(*low)?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]

    use proptest::prelude::*;

    use super::*;

    const GOOD: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn the_standards_example_is_read_and_written_as_it_is() {
        let context = TraceContext::parse(GOOD.as_bytes(), Some(b"vendor=x")).unwrap();
        assert!(context.is_sampled());
        assert_eq!(context.traceparent(), GOOD);
        assert_eq!(context.tracestate(), Some("vendor=x"));
        assert_eq!(context.trace_id_hex(), "0af7651916cd43dd8448eb211c80319c");
        let again = TraceContext::from_otel(&context.to_otel()).unwrap();
        assert_eq!(again, context);
    }

    #[test]
    fn what_is_no_traceparent_is_no_context() {
        for wrong in [
            "",
            "00",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
            "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01more",
            "00_0af7651916cd43dd8448eb211c80319c_b7ad6b7169203331_01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0g",
        ] {
            assert_eq!(TraceContext::parse(wrong.as_bytes(), None), None, "{wrong}");
        }
        let later = "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more";
        assert!(TraceContext::parse(later.as_bytes(), None).is_some());
    }

    #[test]
    fn a_state_that_is_too_long_or_not_text_is_left_out() {
        for state in [
            vec![b'a'; STATE_LEN_MAX + 1],
            vec![0xff, 0xfe],
            b"a=\n".to_vec(),
            Vec::new(),
        ] {
            let context = TraceContext::parse(GOOD.as_bytes(), Some(&state)).unwrap();
            assert_eq!(context.tracestate(), None);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes: Vec<u8>, state: Vec<u8>) {
            let _ = TraceContext::parse(&bytes, Some(&state));
        }

        #[test]
        fn what_is_written_is_read_back(trace: [u8; 16], span: [u8; 8], flags in 0_u8..4) {
            prop_assume!(trace != [0; 16] && span != [0; 8]);
            let context = TraceContext::new(trace, span, flags, "").unwrap();
            let read = TraceContext::parse(context.traceparent().as_bytes(), None);
            prop_assert_eq!(read, Some(context));
        }
    }
}
