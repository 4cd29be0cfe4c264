//! What an operator can set about a storage node.

use std::path::PathBuf;

use forebay_record::NodeId;
use forebay_runtime::config::{ByteSize, ConfigError, HumanDuration, Validate};
use serde::{Deserialize, Serialize};

use crate::disk::DirectIo;
use crate::journal::files::{FILE_LEN_MIN, RESERVED_FILES};

/// Fewest files that a budget must have room for: one to write, one to go on with, the reserve.
const FILES_MIN: u64 = 2 + RESERVED_FILES as u64;
const COMMIT_BYTES: (u64, u64) = (64 << 10, 64 << 20);
/// A slower scrub would never come to an end.
const SCRUB_RATE_MIN: u64 = 64 << 10;
/// What the superblock and the lock take of a budget.
const SIDE_FILES_BYTES: u64 = 64 << 10;
/// Files of a budget, where their size is not set.
const FILES_WANTED: u64 = 32;
/// Smallest and largest file then. The smallest takes batches as large as topics allow by default.
const FILE_BYTES: (u64, u64) = (16 << 20, 1 << 30);

/// Settings of one storage node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The folder of the journal. One node, one folder, one disk.
    pub data_dir: PathBuf,
    /// The node's number, unique in the cluster and never given to another node.
    pub node_id: u32,
    /// Size of a journal file. 0 stands for a 32nd of the budget, rounded down to a power of two, but
    /// not less than 16 MiB and not more than 1 GiB.
    pub journal_file_bytes: ByteSize,
    /// Most bytes of one group commit.
    pub commit_bytes_max: ByteSize,
    /// Whether to bypass the page cache.
    pub direct_io: DirectIo,
    /// Most bytes in the folder: files in use, prepared and reserved ones. 0 stands for nine tenths of
    /// the file system.
    pub disk_budget_bytes: ByteSize,
    /// Failure domain, shown to placement.
    pub zone: String,
    /// Where brokers and proxies reach this node.
    pub data_address: String,
    /// Where the controller and tools reach this node.
    pub control_address: String,
    /// How long a segment that nobody needs any more stays for readers that catch up, once the disk
    /// is more than 60 % full; five times as long before, not at all from 75 % on.
    pub trim_grace: HumanDuration,
    /// How often all live frames are read back from the disk to see whether they are right; 0 for never.
    pub scrub_interval: HumanDuration,
    /// Most bytes that are read for that in a second.
    pub scrub_rate: ByteSize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: PathBuf::from("data"),
            node_id: 1,
            journal_file_bytes: ByteSize::bytes(0),
            commit_bytes_max: ByteSize::mib(4),
            direct_io: DirectIo::Auto,
            disk_budget_bytes: ByteSize::bytes(0),
            zone: String::new(),
            data_address: String::new(),
            control_address: String::new(),
            trim_grace: HumanDuration::secs(120),
            scrub_interval: HumanDuration::secs(6 * 3600),
            scrub_rate: ByteSize::mib(32),
        }
    }
}

impl Config {
    /// The node's id.
    #[must_use]
    pub const fn node(&self) -> NodeId {
        NodeId(self.node_id)
    }

    /// Bytes of a journal file within a budget.
    pub(crate) fn file_bytes(&self, budget_bytes: u64) -> u64 {
        match self.journal_file_bytes.as_u64() {
            0 => {
                let share = (budget_bytes / FILES_WANTED).max(1);
                let (least, most) = FILE_BYTES;
                (1_u64 << share.ilog2()).clamp(least, most)
            }
            bytes => bytes,
        }
    }

    /// Bytes of a budget that journal files may take.
    pub(crate) const fn files_bytes_max(budget_bytes: u64) -> u64 {
        budget_bytes.saturating_sub(SIDE_FILES_BYTES)
    }
}

impl Validate for Config {
    fn validate(&self) -> Result<(), ConfigError> {
        if self.node_id == 0 {
            return Err(ConfigError::invalid("node_id", "0 is not allowed, at least 1"));
        }
        if self.data_dir.as_os_str().is_empty() {
            return Err(ConfigError::invalid("data_dir", "must not be empty"));
        }
        let file = self.journal_file_bytes;
        if file.as_u64() != 0 && file.as_u64() < FILE_LEN_MIN {
            let least = ByteSize::bytes(FILE_LEN_MIN);
            return Err(ConfigError::invalid(
                "journal_file_bytes",
                format!("{file} is below {least}"),
            ));
        }
        let (least, most) = COMMIT_BYTES;
        if !(least..=most).contains(&self.commit_bytes_max.as_u64()) {
            let range = format!("{} to {}", ByteSize::bytes(least), ByteSize::bytes(most));
            let reason = format!("{} is outside {range}", self.commit_bytes_max);
            return Err(ConfigError::invalid("commit_bytes_max", reason));
        }
        let rate = self.scrub_rate;
        if rate.as_u64() < SCRUB_RATE_MIN {
            let least = ByteSize::bytes(SCRUB_RATE_MIN);
            return Err(ConfigError::invalid(
                "scrub_rate",
                format!("{rate} is below {least}"),
            ));
        }
        match self.disk_budget_bytes.as_u64() {
            0 => Ok(()),
            budget => self.check_budget(budget),
        }
    }
}

impl Config {
    /// Whether the journal can work within a budget.
    ///
    /// # Errors
    /// Where it has room for too few files.
    pub(crate) fn check_budget(&self, budget_bytes: u64) -> Result<(), ConfigError> {
        let file = self.file_bytes(budget_bytes);
        if Self::files_bytes_max(budget_bytes) / FILES_MIN >= file {
            return Ok(());
        }
        let (budget, file) = (ByteSize::bytes(budget_bytes), ByteSize::bytes(file));
        let least = ByteSize::bytes(FILES_MIN * file.as_u64() + SIDE_FILES_BYTES);
        let reason =
            format!("{budget} is too little for {FILES_MIN} journal files of {file}, which take {least}");
        Err(ConfigError::invalid("disk_budget_bytes", reason))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::files::frame_bytes_max;

    #[test]
    fn a_bad_value_names_its_key() {
        let base = Config::default;
        base().validate().unwrap();
        for (config, key) in [
            (Config { node_id: 0, ..base() }, "node_id"),
            (
                Config {
                    data_dir: PathBuf::new(),
                    ..base()
                },
                "data_dir",
            ),
            (
                Config {
                    journal_file_bytes: ByteSize::kib(4),
                    ..base()
                },
                "journal_file_bytes",
            ),
            (
                Config {
                    scrub_rate: ByteSize::bytes(0),
                    ..base()
                },
                "scrub_rate",
            ),
            (
                Config {
                    commit_bytes_max: ByteSize::kib(4),
                    ..base()
                },
                "commit_bytes_max",
            ),
            (
                Config {
                    disk_budget_bytes: ByteSize::gib(4),
                    journal_file_bytes: ByteSize::gib(1),
                    ..base()
                },
                "disk_budget_bytes",
            ),
        ] {
            let text = config.validate().unwrap_err().to_string();
            assert!(text.contains(key), "{text}");
        }
    }

    #[test]
    fn the_smallest_file_where_its_size_is_not_set_takes_the_largest_default_batch() {
        let batch = forebay_meta::model::TopicConfig::default().batch_bytes_max;
        assert!(frame_bytes_max(FILE_BYTES.0) >= batch as usize);
    }

    #[test]
    fn files_fit_a_small_budget_where_their_size_is_not_set() {
        let file = |budget: ByteSize| ByteSize::bytes(Config::default().file_bytes(budget.as_u64()));
        assert_eq!(file(ByteSize::mib(64)), ByteSize::mib(16));
        assert_eq!(file(ByteSize::mib(512)), ByteSize::mib(16));
        assert_eq!(file(ByteSize::gib(3)), ByteSize::mib(64));
        assert_eq!(file(ByteSize::gib(32)), ByteSize::gib(1));
        assert_eq!(file(ByteSize::gib(4000)), ByteSize::gib(1));
        let small = |budget| Config {
            disk_budget_bytes: budget,
            ..Config::default()
        };
        small(ByteSize::mib(65)).validate().unwrap();
        let text = small(ByteSize::mib(60)).validate().unwrap_err().to_string();
        assert!(text.contains("60MiB") && text.contains("16MiB"), "{text}");
    }
}
