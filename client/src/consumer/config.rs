//! How a consumer fetches.

use std::time::Duration;

use crate::config::ConfigError;

const FETCH_BYTES_MOST: usize = 64 << 20;

/// What to do when a position is below the first offset kept or beyond the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnOutOfRange {
    /// Report it, with the offsets that there are.
    #[default]
    Fail,
    /// Go on at the first offset kept.
    Earliest,
    /// Go on at the end.
    Latest,
}

/// How a consumer fetches.
#[derive(Debug, Clone)]
pub struct ConsumerConfig {
    /// A fetch is answered as soon as this much is there.
    pub min_bytes: usize,
    /// About as much as one fetch brings, 64 MiB at most. With `prefetch`, twice this is held.
    pub max_bytes: usize,
    /// How long a fetch waits for `min_bytes`.
    pub max_wait: Duration,
    /// Whether the next fetch is under way while the last one is consumed.
    pub prefetch: bool,
    /// What to do when a position does not exist.
    pub on_out_of_range: OnOutOfRange,
    /// How long one fetch may take beyond `max_wait`.
    pub request_timeout: Duration,
    /// How long a partition, or the service, may fail in a row before that is reported.
    pub retry_timeout: Duration,
    /// What the records of one batch may decompress to.
    pub decompressed_bytes_max: usize,
}

impl Default for ConsumerConfig {
    fn default() -> Self {
        Self {
            min_bytes: 1,
            max_bytes: 8 << 20,
            max_wait: Duration::from_millis(500),
            prefetch: true,
            on_out_of_range: OnOutOfRange::Fail,
            request_timeout: Duration::from_secs(30),
            retry_timeout: Duration::from_secs(60),
            decompressed_bytes_max: 64 << 20,
        }
    }
}

impl ConsumerConfig {
    pub(crate) fn validate(&self) -> Result<(), ConfigError> {
        let (least, hour) = (Duration::from_millis(1), Duration::from_secs(3600));
        ConfigError::check("max_bytes", &self.max_bytes, &1, &FETCH_BYTES_MOST)?;
        ConfigError::check("min_bytes", &self.min_bytes, &0, &self.max_bytes)?;
        ConfigError::check("max_wait", &self.max_wait, &Duration::ZERO, &hour)?;
        ConfigError::check("request_timeout", &self.request_timeout, &least, &hour)?;
        ConfigError::check(
            "retry_timeout",
            &self.retry_timeout,
            &Duration::ZERO,
            &(hour * 24),
        )?;
        ConfigError::check(
            "decompressed_bytes_max",
            &self.decompressed_bytes_max,
            &1,
            &(1 << 30),
        )
    }
}
