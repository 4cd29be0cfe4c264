//! What an operator can set about a storage node.

use std::path::PathBuf;

use forebay_record::NodeId;
use forebay_runtime::config::{ByteSize, ConfigError, Validate};
use serde::{Deserialize, Serialize};

use crate::disk::DirectIo;
use crate::journal::files::{FILE_LEN_MIN, RESERVED_FILES};

/// Fewest files that a budget must have room for: one to write, one to go on with, the reserve.
const FILES_MIN: u64 = 2 + RESERVED_FILES as u64;
const COMMIT_BYTES: (u64, u64) = (64 << 10, 64 << 20);

/// Settings of one storage node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The folder of the journal. One node, one folder, one disk.
    pub data_dir: PathBuf,
    /// The node's number, unique in the cluster and never given to another node.
    pub node_id: u32,
    /// Size of a journal file.
    pub journal_file_bytes: ByteSize,
    /// Most bytes of one group commit.
    pub commit_bytes_max: ByteSize,
    /// Whether to bypass the page cache.
    pub direct_io: DirectIo,
    /// Most bytes of journal files; 0 stands for nine tenths of the file system.
    pub disk_budget_bytes: ByteSize,
    /// Failure domain, shown to placement.
    pub zone: String,
    /// Where brokers and proxies reach this node.
    pub data_address: String,
    /// Where the controller and tools reach this node.
    pub control_address: String,
    /// Whether to refuse the start where durable bytes are damaged: for a node that has the only
    /// copy, so that an operator decides.
    pub limbo_is_fatal: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: PathBuf::from("data"),
            node_id: 1,
            journal_file_bytes: ByteSize::gib(1),
            commit_bytes_max: ByteSize::mib(4),
            direct_io: DirectIo::Auto,
            disk_budget_bytes: ByteSize::bytes(0),
            zone: String::new(),
            data_address: String::new(),
            control_address: String::new(),
            limbo_is_fatal: false,
        }
    }
}

impl Config {
    /// The node's id.
    #[must_use]
    pub const fn node(&self) -> NodeId {
        NodeId(self.node_id)
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
        if file.as_u64() < FILE_LEN_MIN {
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
        let budget = self.disk_budget_bytes;
        if budget.as_u64() != 0 && budget.as_u64() / FILES_MIN < file.as_u64() {
            let reason = format!("{budget} is less than {FILES_MIN} journal files of {file}");
            return Err(ConfigError::invalid("disk_budget_bytes", reason));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
                    commit_bytes_max: ByteSize::kib(4),
                    ..base()
                },
                "commit_bytes_max",
            ),
            (
                Config {
                    disk_budget_bytes: ByteSize::gib(3),
                    ..base()
                },
                "disk_budget_bytes",
            ),
        ] {
            let text = config.validate().unwrap_err().to_string();
            assert!(text.contains(key), "{text}");
        }
    }
}
