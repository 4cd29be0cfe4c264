//! What this machine lets us break, found out by trying.

use std::process::{Command, Stdio};

use anyhow::Context as _;

/// What can be done here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Abilities {
    /// Network namespaces, bridges and packet filters.
    pub network: bool,
    /// Errors injected into system calls of a running process.
    pub syscalls: bool,
    /// File systems of a given size.
    pub mounts: bool,
}

impl Abilities {
    /// Tries each.
    #[must_use]
    pub fn probe() -> Self {
        let name = format!("forebay-probe-{}", std::process::id());
        let network = run("ip", &["netns", "add", &name]).is_ok()
            && run(
                "ip",
                &["netns", "exec", &name, "nft", "add", "table", "inet", "probe"],
            )
            .is_ok()
            && run("ip", &["link", "add", &bridge(), "type", "bridge"]).is_ok();
        // Whatever of it was made.
        let _ = run("ip", &["netns", "del", &name]);
        let _ = run("ip", &["link", "del", &bridge()]);
        Self {
            network,
            syscalls: run("strace", &["-e", "inject=fdatasync:error=EIO:when=9+", "true"]).is_ok(),
            mounts: probe_mount(),
        }
    }

    /// What is left out, for the log; empty where nothing is.
    #[must_use]
    pub fn missing(&self) -> Vec<&'static str> {
        [
            (
                self.network,
                "partitions and loss (needs root, `ip netns` and nft)",
            ),
            (self.syscalls, "failing fsync (needs strace)"),
            (self.mounts, "full disks (needs the right to mount)"),
        ]
        .into_iter()
        .filter(|(is, _)| !is)
        .map(|(_, what)| what)
        .collect()
    }
}

fn bridge() -> String {
    format!("fbp{}", std::process::id())
}

fn probe_mount() -> bool {
    let Ok(folder) = tempfile::tempdir() else {
        return false;
    };
    let path = folder.path().display().to_string();
    let mounted = run("mount", &["-t", "tmpfs", "-o", "size=1m", "tmpfs", &path]).is_ok();
    mounted && run("umount", &[&path]).is_ok()
}

/// Runs a command that must succeed and say nothing.
///
/// # Errors
/// With what it said.
pub fn run(program: &str, args: &[&str]) -> anyhow::Result<()> {
    let output = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {program}"))?;
    anyhow::ensure!(
        output.status.success(),
        "{program} {} ended with {}: {}",
        args.join(" "),
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}
