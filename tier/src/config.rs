//! Section `[object_store]`: where offloaded segments go, and how patient we are with it.

use forebay_runtime::config::{ByteSize, ConfigError, HumanDuration, Secret, Validate};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Smallest part of a multipart upload that S3 takes.
const PART_BYTES: (u64, u64) = (5 << 20, 1 << 30);
const TIMEOUT_MS: (u64, u64) = (10, 600_000);

/// Where offloaded segments go.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ObjectStoreConfig {
    /// `s3://bucket/prefix`, `file:///folder`, or `memory://` for a process that keeps nothing.
    /// Empty: segments stay on the storage nodes.
    pub url: String,
    /// `https://host:port` of a store that speaks S3; empty for the one of AWS.
    pub endpoint: String,
    /// Region of the bucket.
    pub region: String,
    /// Access key. Empty: the `AWS_*` variables of the environment, or the machine's role.
    pub access_key_id: String,
    /// Its secret.
    pub secret_access_key: Option<Secret<String>>,
    /// Token of temporary credentials.
    pub session_token: Option<Secret<String>>,
    /// Whether an endpoint without TLS may be used.
    pub allow_http: bool,
    /// Bucket in the path rather than in the host name; by default so where there is an endpoint.
    pub path_style: Option<bool>,
    /// Time for one try of one request.
    pub request_timeout: HumanDuration,
    /// Time for a connection.
    pub connect_timeout: HumanDuration,
    /// Time after which a request is not tried again.
    pub retry_timeout: HumanDuration,
    /// Size of the parts that a larger object is uploaded in.
    pub part_bytes: ByteSize,
    /// Uploads of one process at a time; each takes up to three parts of memory.
    pub uploads_max: u32,
    /// Time from one garbage collection to the next.
    pub gc_interval: HumanDuration,
    /// How long an object must have been garbage before it is deleted.
    pub gc_grace: HumanDuration,
}

impl Default for ObjectStoreConfig {
    fn default() -> Self {
        Self {
            url: String::new(),
            endpoint: String::new(),
            region: "us-east-1".to_owned(),
            access_key_id: String::new(),
            secret_access_key: None,
            session_token: None,
            allow_http: false,
            path_style: None,
            request_timeout: HumanDuration::secs(30),
            connect_timeout: HumanDuration::secs(5),
            retry_timeout: HumanDuration::secs(60),
            part_bytes: ByteSize::mib(8),
            uploads_max: 2,
            gc_interval: HumanDuration::secs(3600),
            gc_grace: HumanDuration::secs(24 * 3600),
        }
    }
}

/// What a configured URL means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// Nowhere: there is no offload.
    None,
    /// This process's memory.
    Memory,
    /// A folder, an absolute path.
    Folder(String),
    /// A bucket, and what its objects' keys begin with.
    S3 {
        /// The bucket.
        bucket: String,
        /// Without slashes at either end; may be empty.
        prefix: String,
    },
}

impl ObjectStoreConfig {
    /// What the URL means.
    ///
    /// # Errors
    /// Where it is no URL of a store that is supported.
    pub fn location(&self) -> Result<Location, ConfigError> {
        let url = self.url.as_str();
        let bad = |why: String| Err(ConfigError::invalid("url", why));
        if url.is_empty() {
            return Ok(Location::None);
        }
        let Some((scheme, rest)) = url.split_once("://") else {
            return bad(format!(
                "\"{url}\" is no URL: s3://bucket/prefix, file:///folder and memory:// are supported"
            ));
        };
        match scheme {
            "memory" if rest.is_empty() => Ok(Location::Memory),
            "memory" => bad(format!("\"{url}\" must be memory:// and nothing more")),
            "file" if rest.starts_with('/') && rest.len() > 1 => Ok(Location::Folder(rest.to_owned())),
            "file" => bad(format!(
                "\"{url}\" must name a folder from the root on, file:///folder"
            )),
            "s3" => {
                let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
                let prefix = prefix.trim_matches('/');
                let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
                if bucket.is_empty() || !bucket.chars().all(plain) {
                    return bad(format!(
                        "\"{url}\" names no bucket, s3://bucket/prefix is expected"
                    ));
                }
                let odd =
                    |part: &str| part.is_empty() || part == "." || part == ".." || !part.chars().all(plain);
                if !prefix.is_empty() && (prefix.len() > 128 || prefix.split('/').any(odd)) {
                    return bad(format!(
                        "the prefix in \"{url}\" must be letters, digits, -, _, . and /, at most 128"
                    ));
                }
                Ok(Location::S3 {
                    bucket: bucket.to_owned(),
                    prefix: prefix.to_owned(),
                })
            }
            "gs" | "az" | "azure" | "abfs" => bad(format!(
                "{scheme}:// is not supported: s3://, file:/// and memory:// are; Google's store can be \
                 reached as s3:// with endpoint https://storage.googleapis.com and HMAC keys"
            )),
            other => bad(format!(
                "{other}:// is not supported: s3://bucket/prefix, file:///folder and memory:// are"
            )),
        }
    }

    /// Whether segments are offloaded at all.
    #[must_use]
    pub fn is_enabled(&self) -> bool {
        !self.url.is_empty()
    }

    /// Whether buckets go into the path of requests.
    #[must_use]
    pub fn uses_path_style(&self) -> bool {
        self.path_style.unwrap_or(!self.endpoint.is_empty())
    }
}

impl Validate for ObjectStoreConfig {
    fn validate(&self) -> Result<(), ConfigError> {
        let location = self.location()?;
        let bad = |key: &str, why: String| Err(ConfigError::invalid(key, why));
        for (key, value) in [
            ("request_timeout", self.request_timeout),
            ("connect_timeout", self.connect_timeout),
            ("retry_timeout", self.retry_timeout),
        ] {
            let ms = value.as_millis();
            if !(TIMEOUT_MS.0..=TIMEOUT_MS.1).contains(&ms) {
                return bad(key, format!("{ms} ms must lie between 10ms and 10min"));
            }
        }
        if self.gc_interval.as_millis() < 1000 {
            return bad("gc_interval", "at least 1s".to_owned());
        }
        let part = self.part_bytes.as_u64();
        if !(PART_BYTES.0..=PART_BYTES.1).contains(&part) {
            return bad(
                "part_bytes",
                format!("{part} bytes must lie between 5MiB and 1GiB"),
            );
        }
        if !(1..=64).contains(&self.uploads_max) {
            return bad(
                "uploads_max",
                format!("{} must lie between 1 and 64", self.uploads_max),
            );
        }
        if self.access_key_id.is_empty() != self.secret_access_key.is_none() {
            let why = "access_key_id and secret_access_key belong together, one of them is missing";
            return bad("access_key_id", why.to_owned());
        }
        if !matches!(location, Location::S3 { .. }) {
            return Ok(());
        }
        if self.region.is_empty() {
            return bad("region", "must not be empty".to_owned());
        }
        match self.endpoint.split_once("://") {
            None if self.endpoint.is_empty() => Ok(()),
            Some(("https", host)) if !host.is_empty() => Ok(()),
            Some(("http", host)) if !host.is_empty() => {
                if self.allow_http {
                    return Ok(());
                }
                let why = format!(
                    "\"{}\" has no TLS: set object_store.allow_http = true to use it all the same",
                    self.endpoint
                );
                bad("endpoint", why)
            }
            _ => bad(
                "endpoint",
                format!(
                    "\"{}\" must be https://host:port or http://host:port",
                    self.endpoint
                ),
            ),
        }
    }
}

/// How a proxy caches objects. The cache holds nothing that the object store does not.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct CacheConfig {
    /// Blocks of objects kept in memory.
    pub memory_bytes: ByteSize,
    /// Blocks of objects kept on disk; only with `dir`.
    pub disk_bytes: ByteSize,
    /// Folder of the disk cache, for this process alone. Empty: memory only.
    pub dir: String,
}

impl Default for CacheConfig {
    fn default() -> Self {
        Self {
            memory_bytes: ByteSize::mib(128),
            disk_bytes: ByteSize::gib(8),
            dir: String::new(),
        }
    }
}

impl Validate for CacheConfig {
    fn validate(&self) -> Result<(), ConfigError> {
        let memory = self.memory_bytes.as_u64();
        if memory < 16 << 20 {
            let why = format!("{memory} bytes are too few, at least 16MiB");
            return Err(ConfigError::invalid("memory_bytes", why));
        }
        let disk = self.disk_bytes.as_u64();
        if !self.dir.is_empty() && disk < 64 << 20 {
            let why = format!("{disk} bytes are too few for a disk cache, at least 64MiB");
            return Err(ConfigError::invalid("disk_bytes", why));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn with(change: impl FnOnce(&mut ObjectStoreConfig)) -> Result<(), ConfigError> {
        let mut config = ObjectStoreConfig {
            url: "s3://tier/a/b/".to_owned(),
            ..ObjectStoreConfig::default()
        };
        change(&mut config);
        config.validate()
    }

    #[test]
    fn the_default_is_valid_and_offloads_nothing() {
        let config = ObjectStoreConfig::default();
        config.validate().unwrap();
        CacheConfig::default().validate().unwrap();
        assert!(!config.is_enabled());
        assert_eq!(config.location().unwrap(), Location::None);
    }

    #[test]
    fn urls_are_read_or_refused_with_what_is_supported() {
        let location = |url: &str| {
            ObjectStoreConfig {
                url: url.to_owned(),
                ..ObjectStoreConfig::default()
            }
            .location()
        };
        let s3 = |bucket: &str, prefix: &str| Location::S3 {
            bucket: bucket.to_owned(),
            prefix: prefix.to_owned(),
        };
        assert_eq!(location("memory://").unwrap(), Location::Memory);
        assert_eq!(
            location("file:///x/y").unwrap(),
            Location::Folder("/x/y".to_owned())
        );
        assert_eq!(location("s3://tier").unwrap(), s3("tier", ""));
        assert_eq!(location("s3://tier/a/b/").unwrap(), s3("tier", "a/b"));
        for url in [
            "gs://x",
            "az://x",
            "ftp://x",
            "x",
            "s3://",
            "s3:///p",
            "file://x/y",
            "memory://x",
            "s3://tier/../x",
            "s3://tier/a b",
            "file:///",
        ] {
            let message = location(url).unwrap_err().to_string();
            assert!(message.contains("url"), "{message}");
        }
        assert!(location("gs://x").unwrap_err().to_string().contains("s3://"));
    }

    #[test]
    fn what_cannot_work_is_refused_with_its_key() {
        with(|_| {}).unwrap();
        type Mistake = fn(&mut ObjectStoreConfig);
        let refused: [(&str, Mistake); 7] = [
            ("part_bytes", |c| c.part_bytes = ByteSize::mib(1)),
            ("uploads_max", |c| c.uploads_max = 0),
            ("request_timeout", |c| {
                c.request_timeout = HumanDuration::millis(0)
            }),
            ("access_key_id", |c| c.access_key_id = "a".to_owned()),
            ("endpoint", |c| c.endpoint = "http://h:1".to_owned()),
            ("endpoint", |c| c.endpoint = "h:1".to_owned()),
            ("region", |c| c.region = String::new()),
        ];
        for (key, change) in refused {
            let message = with(change).unwrap_err().to_string();
            assert!(message.contains(key), "{message}");
        }
        with(|c| {
            c.endpoint = "http://h:1".to_owned();
            c.allow_http = true;
        })
        .unwrap();
    }

    #[test]
    fn secrets_are_not_printed() {
        let config = ObjectStoreConfig {
            secret_access_key: Some(Secret::new("deep".to_owned())),
            ..ObjectStoreConfig::default()
        };
        assert!(!format!("{config:?}").contains("deep"));
    }
}
