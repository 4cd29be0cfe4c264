//! One Forebay process.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;

/// A running process of the product, killed when dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    binary: PathBuf,
    args: Vec<String>,
    log: PathBuf,
    child: Child,
    /// Where its gRPC services are.
    pub grpc: SocketAddr,
    /// Where its metrics and health are.
    pub admin: SocketAddr,
}

impl Process {
    /// Starts the binary with these arguments and waits for the line that tells its addresses.
    ///
    /// # Errors
    /// Where it ends instead; the error has its log's end.
    pub fn start(name: &str, binary: &Path, args: &[String], folder: &Path) -> anyhow::Result<Self> {
        let log = folder.join(format!("{name}.log"));
        let (child, grpc, admin) = launch(name, binary, args, &log)?;
        Ok(Self {
            name: name.to_owned(),
            binary: binary.to_owned(),
            args: args.to_vec(),
            log,
            child,
            grpc,
            admin,
        })
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Everything it logged.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Ends it as `kill -9` does, and waits until it is gone.
    pub fn kill(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Asks it to stop, and waits until it has.
    ///
    /// # Errors
    /// Where it does not stop within 30 seconds, or ends with another code than 0.
    pub fn stop(&mut self) -> anyhow::Result<()> {
        let id = i32::try_from(self.child.id())?;
        let id = rustix::process::Pid::from_raw(id).context("process id 0")?;
        rustix::process::kill_process(id, rustix::process::Signal::TERM)?;
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            if let Some(status) = self.child.try_wait()? {
                anyhow::ensure!(
                    status.success(),
                    "{} ended with {status}:\n{}",
                    self.name,
                    tail(&self.log)
                );
                return Ok(());
            }
            anyhow::ensure!(
                Instant::now() < deadline,
                "{} does not stop:\n{}",
                self.name,
                tail(&self.log)
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Starts it again with the same arguments.
    ///
    /// # Errors
    /// As [`Process::start`].
    pub fn restart(&mut self) -> anyhow::Result<()> {
        let (child, grpc, admin) = launch(&self.name, &self.binary, &self.args, &self.log)?;
        self.child = child;
        self.grpc = grpc;
        self.admin = admin;
        Ok(())
    }
}

fn launch(
    name: &str,
    binary: &Path,
    args: &[String],
    log: &Path,
) -> anyhow::Result<(Child, SocketAddr, SocketAddr)> {
    let errors = std::fs::OpenOptions::new().create(true).append(true).open(log)?;
    let mut child = Command::new(binary)
        .args(args)
        .env_remove("FOREBAY_SERVER")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(errors)
        .spawn()
        .with_context(|| format!("cannot start {}", binary.display()))?;
    let out = child.stdout.take().context("no standard output")?;
    let mut line = String::new();
    BufReader::new(out).read_line(&mut line)?;
    match addresses(&line) {
        Some((grpc, admin)) => Ok((child, grpc, admin)),
        None => {
            let _ = child.kill();
            let status = child.wait()?;
            anyhow::bail!("{name} did not start ({status}), said {line:?}:\n{}", tail(log))
        }
    }
}

/// Reads `forebay is ready: grpc 127.0.0.1:1, admin 127.0.0.1:2`.
fn addresses(line: &str) -> Option<(SocketAddr, SocketAddr)> {
    let rest = line.trim().strip_prefix("forebay is ready: grpc ")?;
    let (grpc, admin) = rest.split_once(", admin ")?;
    Some((grpc.parse().ok()?, admin.parse().ok()?))
}

fn tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    lines
        .iter()
        .skip(lines.len().saturating_sub(40))
        .copied()
        .collect::<Vec<_>>()
        .join("\n")
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}
