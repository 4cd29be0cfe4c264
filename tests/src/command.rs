//! The command line as a user types it, and waiting for what it leads to.

use std::io;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// How long [`wait_until`] waits.
const PATIENCE: Duration = Duration::from_secs(90);
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Runs a verb against a server, with nothing to read from.
///
/// # Errors
/// Where the program cannot be started.
pub fn cli(binary: &Path, server: &str, args: &[&str]) -> io::Result<Output> {
    Command::new(binary)
        .args(args)
        .args(["--server", server])
        .stdin(Stdio::null())
        .output()
}

/// All that a command said.
#[must_use]
pub fn text(output: &Output) -> String {
    let said = [&output.stdout[..], &output.stderr[..]].concat();
    String::from_utf8_lossy(&said).into_owned()
}

/// Waits until what is asked for is so, a minute and a half at most.
///
/// # Errors
/// Where it is not so by then; `what` says what was waited for.
pub async fn wait_until<F: Future<Output = bool>>(
    what: &str,
    mut is_so: impl FnMut() -> F,
) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !is_so().await {
        anyhow::ensure!(Instant::now() < deadline, "{what}: not in time");
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(())
}
