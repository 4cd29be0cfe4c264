//! The folder that the quickstart works in.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use tempfile::TempDir;

/// What the kernel calls file systems that live in memory.
const TMPFS_MAGIC: u64 = 0x0102_1994;
const RAMFS_MAGIC: u64 = 0x8584_58f6;

/// Makes a folder, removed when it is dropped. `TMPDIR` says where; without it a place that is
/// on disk is preferred, because many systems keep `/tmp` in memory.
pub fn make() -> anyhow::Result<TempDir> {
    let chosen = std::env::var_os("TMPDIR")
        .filter(|folder| !folder.is_empty())
        .map(PathBuf::from);
    let on_disk = Path::new("/var/tmp");
    let mut builder = tempfile::Builder::new();
    builder.prefix("forebay-quickstart-");
    if chosen.is_none()
        && !is_in_memory(on_disk)
        && let Ok(folder) = builder.tempdir_in(on_disk)
    {
        return Ok(folder);
    }
    let place = chosen.unwrap_or_else(std::env::temp_dir);
    builder
        .tempdir_in(&place)
        .with_context(|| format!("cannot make a folder in {}", place.display()))
}

/// Whether what is written there never reaches a disk. A folder that cannot be asked is taken to
/// be on one.
pub fn is_in_memory(folder: &Path) -> bool {
    // The field's type differs between architectures.
    #[allow(clippy::cast_sign_loss, clippy::unnecessary_cast)]
    rustix::fs::statfs(folder).is_ok_and(|found| [TMPFS_MAGIC, RAMFS_MAGIC].contains(&(found.f_type as u64)))
}
