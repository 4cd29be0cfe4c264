//! A program that is killed, paused and started again while others go on.
//!
//! Unlike [`crate::process::Process`] nobody waits until it is ready, and its end is no failure:
//! whoever holds it looks whether it still runs and decides what that means. It is killed when it
//! is dropped, also while it is paused.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use anyhow::Context as _;
use rustix::process::{Pid, Signal};

/// A program, running or not.
#[derive(Debug)]
pub struct Service {
    name: String,
    command: Vec<String>,
    log: PathBuf,
    child: Option<Child>,
}

impl Service {
    /// A program that is not started yet: its path and arguments, and the file that gets what it says.
    #[must_use]
    pub fn new(name: impl Into<String>, command: Vec<String>, log: PathBuf) -> Self {
        Self {
            name: name.into(),
            command,
            log,
            child: None,
        }
    }

    /// Starts it; one that runs is left as it is.
    ///
    /// # Errors
    /// Where the system cannot start it.
    pub fn start(&mut self) -> anyhow::Result<()> {
        if self.child.is_some() {
            return Ok(());
        }
        let (program, args) = self.command.split_first().context("no program to start")?;
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log)?;
        let child = Command::new(program)
            .args(args)
            .env_remove("FOREBAY_SERVER")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {}: {program}", self.name))?;
        self.child = Some(child);
        Ok(())
    }

    /// What it is called.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it says what it does.
    #[must_use]
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Its process id, while it runs.
    #[must_use]
    pub fn id(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// How it ended, once: none while it runs or after it was told.
    ///
    /// # Errors
    /// Where the system cannot say.
    pub fn ended(&mut self) -> std::io::Result<Option<ExitStatus>> {
        let Some(child) = &mut self.child else {
            return Ok(None);
        };
        let status = child.try_wait()?;
        if status.is_some() {
            self.child = None;
        }
        Ok(status)
    }

    /// Sends it a signal; nothing where it does not run.
    ///
    /// # Errors
    /// Where the system refuses.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let Some(id) = self.id() else { return Ok(()) };
        let id = Pid::from_raw(i32::try_from(id)?).context("process id 0")?;
        match rustix::process::kill_process(id, signal) {
            // It ended by itself and nobody has asked yet.
            Err(rustix::io::Errno::SRCH) => Ok(()),
            other => other.with_context(|| format!("{} cannot be signalled", self.name)),
        }
    }

    /// Ends it as `kill -9` does, and waits until it is gone.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.kill();
    }
}
