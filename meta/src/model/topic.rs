//! A topic's configuration: keys as Kafka names them, unknown ones refused.

use std::collections::BTreeMap;

/// Batches up to this size travel in one frame.
const BATCH_BYTES_LIMIT: u64 = 32 << 20;

/// Why a topic's configuration is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TopicConfigError {
    /// No such key.
    #[error("unknown topic configuration key \"{0}\"; known are {known}", known = KEYS.join(", "))]
    Unknown(String),
    /// The value cannot be.
    #[error("topic configuration {key} = \"{value}\": {why}")]
    Value {
        /// The key.
        key: &'static str,
        /// As given.
        value: String,
        /// What it should be.
        why: String,
    },
}

const BATCH_BYTES: &str = "max.message.bytes";
const SEGMENT_BYTES: &str = "segment.bytes";
const SEGMENT_MS: &str = "segment.ms";
const KEYS: [&str; 3] = [BATCH_BYTES, SEGMENT_BYTES, SEGMENT_MS];

/// What can be set on a topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicConfig {
    /// Largest batch, in bytes (`max.message.bytes`).
    pub batch_bytes_max: u32,
    /// Bytes after which a segment is rolled (`segment.bytes`).
    pub segment_bytes: u64,
    /// Milliseconds after which a segment that holds something is rolled (`segment.ms`).
    pub segment_ms: u64,
}

impl Default for TopicConfig {
    fn default() -> Self {
        Self {
            batch_bytes_max: 8 << 20,
            segment_bytes: 256 << 20,
            segment_ms: 600_000,
        }
    }
}

fn number(key: &'static str, value: &str, min: u64, max: u64) -> Result<u64, TopicConfigError> {
    let bad = |why: String| TopicConfigError::Value {
        key,
        value: value.to_owned(),
        why,
    };
    let number: u64 = value
        .trim()
        .parse()
        .map_err(|_| bad("a whole number is expected".to_owned()))?;
    if (min..=max).contains(&number) {
        Ok(number)
    } else {
        Err(bad(format!("must lie between {min} and {max}")))
    }
}

impl TopicConfig {
    /// Reads a topic's stored or given configuration; what is not set has its default.
    ///
    /// # Errors
    /// Where a key is unknown or a value cannot be.
    pub fn parse(map: &BTreeMap<String, String>) -> Result<Self, TopicConfigError> {
        let mut config = Self::default();
        for (key, value) in map {
            match key.as_str() {
                BATCH_BYTES => {
                    let bytes = number(BATCH_BYTES, value, 1 << 10, BATCH_BYTES_LIMIT)?;
                    config.batch_bytes_max = u32::try_from(bytes).unwrap_or(u32::MAX);
                }
                SEGMENT_BYTES => config.segment_bytes = number(SEGMENT_BYTES, value, 1 << 20, 16 << 30)?,
                SEGMENT_MS => config.segment_ms = number(SEGMENT_MS, value, 1_000, 7 * 86_400_000)?,
                other => return Err(TopicConfigError::Unknown(other.to_owned())),
            }
        }
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn parse(key: &str, value: &str) -> Result<TopicConfig, TopicConfigError> {
        TopicConfig::parse(&BTreeMap::from([(key.to_owned(), value.to_owned())]))
    }

    #[test]
    fn unknown_keys_and_impossible_values_are_refused_by_name() {
        assert_eq!(parse("segment.bytes", "1048576").unwrap().segment_bytes, 1 << 20);
        assert!(
            parse("retention.bites", "1")
                .unwrap_err()
                .to_string()
                .contains("retention.bites")
        );
        assert!(
            parse("segment.bytes", "-1")
                .unwrap_err()
                .to_string()
                .contains("segment.bytes")
        );
        assert!(
            parse("max.message.bytes", "99999999999")
                .unwrap_err()
                .to_string()
                .contains("between")
        );
    }
}
