//! A topic's configuration: keys as Kafka names them, unknown ones refused.

use std::collections::BTreeMap;

/// Batches up to this size travel in one frame.
const BATCH_BYTES_LIMIT: u64 = 32 << 20;

/// Why a topic's configuration is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TopicConfigError {
    /// No such key.
    #[error("unknown topic configuration key \"{0}\"; known are {known}", known = known())]
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

/// Key of the largest batch.
pub(crate) const BATCH_BYTES: &str = "max.message.bytes";
const SEGMENT_BYTES: &str = "segment.bytes";
const SEGMENT_MS: &str = "segment.ms";
const RETENTION_BYTES: &str = "retention.bytes";
const RETENTION_MS: &str = "retention.ms";
const OFFLOAD: &str = "forebay.offload";

/// A key that can be set on a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TopicKey {
    /// As it is written; where Kafka has it, as Kafka names it.
    pub name: &'static str,
    /// What its value is.
    pub kind: &'static str,
    /// What it means, for a reference.
    pub text: &'static str,
}

/// Every key, by name.
pub const TOPIC_KEYS: [TopicKey; 6] = [
    TopicKey {
        name: OFFLOAD,
        kind: "`true` or `false`",
        text: "Whether sealed segments are moved to the object store, where there is one.",
    },
    TopicKey {
        name: BATCH_BYTES,
        kind: "bytes, 1024 to 33554432",
        text: "Largest record batch, as sent. A batch that the journal files of some storage node have no room for \
               is refused as well, and setting more than that is refused: see `storage.journal_file_bytes`.",
    },
    TopicKey {
        name: RETENTION_BYTES,
        kind: "bytes, or -1 for no limit",
        text: "Bytes of one partition beyond which its oldest records may be removed.",
    },
    TopicKey {
        name: RETENTION_MS,
        kind: "milliseconds, or -1 for no limit",
        text: "Age at which records may be removed.",
    },
    TopicKey {
        name: SEGMENT_BYTES,
        kind: "bytes, 1048576 to 17179869184",
        text: "Size at which a segment is sealed and the next one begun.",
    },
    TopicKey {
        name: SEGMENT_MS,
        kind: "milliseconds, 1000 to 604800000",
        text: "Age at which a segment that holds something is sealed and the next one begun.",
    },
];

fn known() -> String {
    TOPIC_KEYS.map(|key| key.name).join(", ")
}

/// What Kafka writes for a retention without a limit.
const UNLIMITED: &str = "-1";
/// Kafka's numbers are signed.
const RETENTION_LIMIT: u64 = i64::MAX as u64;

/// What can be set on a topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicConfig {
    /// Largest batch, in bytes (`max.message.bytes`).
    pub batch_bytes_max: u32,
    /// Bytes after which a segment is rolled (`segment.bytes`).
    pub segment_bytes: u64,
    /// Milliseconds after which a segment that holds something is rolled (`segment.ms`).
    pub segment_ms: u64,
    /// Age in milliseconds after which records may be removed; none keeps them for ever
    /// (`retention.ms`, -1 for none).
    pub retention_ms: Option<u64>,
    /// Bytes of one partition beyond which its oldest records may be removed; none sets no bound
    /// (`retention.bytes`, -1 for none).
    pub retention_bytes: Option<u64>,
    /// Whether sealed segments go to the object store, where there is one (`forebay.offload`).
    pub offload: bool,
}

impl Default for TopicConfig {
    fn default() -> Self {
        Self {
            batch_bytes_max: 8 << 20,
            segment_bytes: 256 << 20,
            segment_ms: 600_000,
            retention_ms: Some(7 * 86_400_000),
            retention_bytes: None,
            offload: true,
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

/// A number that Kafka writes as -1 where there is no limit.
fn limit(key: &'static str, value: &str) -> Result<Option<u64>, TopicConfigError> {
    if value.trim() == UNLIMITED {
        return Ok(None);
    }
    match number(key, value, 0, RETENTION_LIMIT) {
        Ok(number) => Ok(Some(number)),
        Err(_) => Err(TopicConfigError::Value {
            key,
            value: value.to_owned(),
            why: format!("a whole number from 0 to {RETENTION_LIMIT} is expected, or -1 for no limit"),
        }),
    }
}

fn switch(key: &'static str, value: &str) -> Result<bool, TopicConfigError> {
    match value.trim() {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err(TopicConfigError::Value {
            key,
            value: value.to_owned(),
            why: "true or false is expected".to_owned(),
        }),
    }
}

impl TopicConfig {
    /// Every key with its value, in the order of the keys, as [`TopicConfig::parse`] reads them.
    #[must_use]
    pub fn entries(&self) -> BTreeMap<&'static str, String> {
        let limit =
            |limit: Option<u64>| limit.map_or_else(|| UNLIMITED.to_owned(), |limit| limit.to_string());
        BTreeMap::from([
            (BATCH_BYTES, self.batch_bytes_max.to_string()),
            (SEGMENT_BYTES, self.segment_bytes.to_string()),
            (SEGMENT_MS, self.segment_ms.to_string()),
            (RETENTION_BYTES, limit(self.retention_bytes)),
            (RETENTION_MS, limit(self.retention_ms)),
            (OFFLOAD, self.offload.to_string()),
        ])
    }

    /// Refuses a key that does not exist.
    ///
    /// # Errors
    /// Where it is unknown; the error names those that are.
    pub fn check_key(key: &str) -> Result<(), TopicConfigError> {
        if TOPIC_KEYS.iter().any(|known| known.name == key) {
            Ok(())
        } else {
            Err(TopicConfigError::Unknown(key.to_owned()))
        }
    }

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
                RETENTION_BYTES => config.retention_bytes = limit(RETENTION_BYTES, value)?,
                RETENTION_MS => config.retention_ms = limit(RETENTION_MS, value)?,
                OFFLOAD => config.offload = switch(OFFLOAD, value)?,
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

    #[test]
    fn retention_and_offload_have_kafkas_defaults_and_its_way_to_say_unlimited() {
        let default = TopicConfig::default();
        assert_eq!(
            (default.retention_ms, default.retention_bytes),
            (Some(604_800_000), None)
        );
        assert!(default.offload);
        assert_eq!(parse("retention.ms", "-1").unwrap().retention_ms, None);
        assert_eq!(parse("retention.ms", "0").unwrap().retention_ms, Some(0));
        assert_eq!(
            parse("retention.bytes", "1000").unwrap().retention_bytes,
            Some(1_000)
        );
        assert!(!parse("forebay.offload", "false").unwrap().offload);
        for (key, value) in [
            ("retention.ms", "-2"),
            ("retention.ms", "9223372036854775808"),
            ("retention.bytes", "1GiB"),
            ("forebay.offload", "yes"),
        ] {
            let message = parse(key, value).unwrap_err().to_string();
            assert!(message.contains(key) && message.contains(value), "{message}");
        }
    }

    #[test]
    fn entries_name_every_key_and_are_read_back_as_they_are() {
        let config = TopicConfig {
            batch_bytes_max: 1 << 20,
            segment_bytes: 1 << 21,
            segment_ms: 5_000,
            retention_ms: None,
            retention_bytes: Some(7),
            offload: false,
        };
        let entries = config.entries();
        let known = TOPIC_KEYS.map(|key| key.name);
        assert!(entries.keys().eq(known.iter()), "{entries:?}");
        let given = entries
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value))
            .collect();
        assert_eq!(TopicConfig::parse(&given).unwrap(), config);
    }
}
