//! Child processes: started, asked, watched and stopped, each by its own id.
//!
//! A child that is ours answers questions on its standard output and leaves when its standard
//! input closes, so it cannot outlive this process. A child of the product is told to leave by
//! SIGTERM. Nothing waits without a deadline, and a child that is dropped is killed.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};

/// How long a child may take to leave before it is killed.
const LEAVE_MAX: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(5);
const LINES_MAX: usize = 1024;
/// `/proc` counts CPU time in these on every Linux architecture.
const TICK: Duration = Duration::from_millis(10);

/// How a child is asked to leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leave {
    /// By closing its standard input.
    InputCloses,
    /// By SIGTERM.
    Terminate,
}

/// A running child.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    input: Option<ChildStdin>,
    lines: Receiver<String>,
    leave: Leave,
}

/// What a process has used so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// User and system time, in steps of 10 ms.
    pub cpu: Duration,
    /// Most resident memory since the process began or [`Process::forget_peak`], in bytes.
    pub rss_peak: u64,
}

impl Process {
    /// Starts a child. Its standard error is ours, or the end of the file `log`.
    ///
    /// # Errors
    /// Where it cannot be started.
    pub fn spawn(name: &str, mut command: Command, leave: Leave, log: Option<&Path>) -> anyhow::Result<Self> {
        if let Some(path) = log {
            let file = std::fs::OpenOptions::new().create(true).append(true).open(path)?;
            command.stderr(file);
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command
            .spawn()
            .with_context(|| format!("cannot start {name}: {}", command.get_program().display()))?;
        let output = child.stdout.take().context("no standard output")?;
        let (sender, lines) = sync_channel(LINES_MAX);
        std::thread::Builder::new()
            .name(format!("lines of {name}"))
            .spawn(move || {
                for line in BufReader::new(output).lines() {
                    // The end of either side ends the other's interest.
                    let Ok(line) = line else { return };
                    if sender.send(line).is_err() {
                        return;
                    }
                }
            })?;
        Ok(Self {
            name: name.to_owned(),
            input: child.stdin.take(),
            child,
            lines,
            leave,
        })
    }

    /// The child's id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits for a line that starts with `word`, passing over others, and returns the rest of it.
    ///
    /// # Errors
    /// Where the child ends or the time is up first.
    pub fn await_line(&mut self, word: &str, within: Duration) -> anyhow::Result<String> {
        let deadline = Instant::now() + within;
        loop {
            match self
                .lines
                .recv_timeout(deadline.saturating_duration_since(Instant::now()))
            {
                Ok(line) => {
                    if let Some(rest) = line.strip_prefix(word) {
                        return Ok(rest.trim().to_owned());
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    bail!("{} did not say {word:?} within {within:?}", self.name)
                }
                Err(RecvTimeoutError::Disconnected) => {
                    let status = self.child.wait()?;
                    bail!("{} ended with {status} before it said {word:?}", self.name)
                }
            }
        }
    }

    /// Sends one line.
    ///
    /// # Errors
    /// Where the child no longer reads.
    pub fn tell(&mut self, line: &str) -> anyhow::Result<()> {
        let input = self
            .input
            .as_mut()
            .with_context(|| format!("{} was told to leave", self.name))?;
        writeln!(input, "{line}").with_context(|| format!("{} no longer reads", self.name))
    }

    /// Fails where the child has ended.
    ///
    /// # Errors
    /// Says how it ended.
    pub fn check(&mut self) -> anyhow::Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("{} ended with {status}", self.name),
        }
    }

    /// CPU time and memory so far.
    ///
    /// # Errors
    /// Where `/proc` does not tell.
    pub fn usage(&self) -> anyhow::Result<Usage> {
        let id = self.id();
        let stat = std::fs::read_to_string(format!("/proc/{id}/stat"))?;
        let status = std::fs::read_to_string(format!("/proc/{id}/status"))?;
        let cpu = cpu_of_stat(&stat).with_context(|| format!("/proc/{id}/stat has no CPU time"))?;
        let rss_peak = peak_of_status(&status).with_context(|| format!("/proc/{id}/status has no VmHWM"))?;
        Ok(Usage { cpu, rss_peak })
    }

    /// Starts the search for the most resident memory anew.
    ///
    /// # Errors
    /// Where the kernel does not let us.
    pub fn forget_peak(&self) -> anyhow::Result<()> {
        const RESET_PEAK: &str = "5";
        std::fs::write(format!("/proc/{}/clear_refs", self.id()), RESET_PEAK)
            .with_context(|| format!("cannot reset the memory peak of {}", self.name))
    }

    /// Waits until the child ends well; gives what it used in all and what it said. The most memory
    /// is what was seen last before its end, which is looked at every few milliseconds.
    ///
    /// # Errors
    /// Where it fails or takes too long.
    pub fn await_end(mut self, within: Duration) -> anyhow::Result<(Usage, String)> {
        let deadline = Instant::now() + within;
        let mut used = Usage::default();
        // Not waited for yet, a child that ended still shows its CPU time, and no memory.
        while let Ok(now) = self.usage() {
            used = now;
            if Instant::now() > deadline {
                bail!("{} did not end within {within:?}", self.name);
            }
            std::thread::sleep(POLL);
        }
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.id()))?;
        used.cpu = cpu_of_stat(&stat).with_context(|| format!("{} left no CPU time", self.name))?;
        let status = self.child.wait()?;
        let said: Vec<_> = self.lines.iter().collect();
        if !status.success() {
            bail!("{} ended with {status}", self.name);
        }
        Ok((used, said.join("\n")))
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// Where there is no such process.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let id = i32::try_from(self.id()).ok().and_then(Pid::from_raw);
        kill_process(id.context("no process id")?, signal)
            .with_context(|| format!("{} takes no signal", self.name))
    }

    /// Ends the child at once, as the loss of its machine would, and waits for its end.
    ///
    /// # Errors
    /// Where it has ended already.
    pub fn kill(mut self) -> anyhow::Result<()> {
        self.check()?;
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Asks the child to leave and waits for it; kills it where it takes too long.
    ///
    /// # Errors
    /// Where it had to be killed, or left with a failure.
    pub fn stop(mut self) -> anyhow::Result<()> {
        drop(self.input.take());
        if self.leave == Leave::Terminate && self.child.try_wait()?.is_none() {
            self.signal(Signal::TERM)?;
        }
        let deadline = Instant::now() + LEAVE_MAX;
        loop {
            match self.child.try_wait()? {
                Some(status) if status.success() => return Ok(()),
                // etcd puts the signal's own action back and dies of it once it has closed.
                Some(status) if self.leave == Leave::Terminate && ended_by_term(status) => return Ok(()),
                Some(status) => bail!("{} ended with {status}", self.name),
                None if Instant::now() > deadline => {
                    bail!("{} did not leave within {LEAVE_MAX:?}", self.name)
                }
                None => std::thread::sleep(POLL),
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // A child that has been waited for is not signalled again.
        if matches!(self.child.try_wait(), Ok(None)) && self.child.kill().is_ok() {
            self.child.wait().ok();
        }
    }
}

/// What processes have used so far, by role: CPU time summed, memory of the largest. With
/// `forget_peak` the search for the most memory starts anew.
///
/// # Errors
/// Where `/proc` does not tell.
pub fn usage_by_role<'a>(
    processes: impl Iterator<Item = (&'a str, &'a Process)>,
    forget_peak: bool,
) -> anyhow::Result<BTreeMap<String, Usage>> {
    let mut roles = BTreeMap::<String, Usage>::new();
    for (role, process) in processes {
        if forget_peak {
            process.forget_peak()?;
        }
        let used = process.usage()?;
        let sum = roles.entry(role.to_owned()).or_default();
        sum.cpu += used.cpu;
        sum.rss_peak = sum.rss_peak.max(used.rss_peak);
    }
    Ok(roles)
}

/// CPU time by role between two answers of [`usage_by_role`].
#[must_use]
pub fn cpu_between(
    before: &BTreeMap<String, Usage>,
    after: &BTreeMap<String, Usage>,
) -> BTreeMap<String, Duration> {
    let since = |(role, used): (&String, &Usage)| {
        let before = before.get(role).copied().unwrap_or_default();
        (role.clone(), used.cpu.saturating_sub(before.cpu))
    };
    after.iter().map(since).collect()
}

/// CPU time of this process so far.
#[must_use]
pub fn own_cpu() -> Duration {
    clock(rustix::time::ClockId::ProcessCPUTime)
}

/// CPU time of this thread so far.
#[must_use]
pub fn thread_cpu() -> Duration {
    clock(rustix::time::ClockId::ThreadCPUTime)
}

fn clock(id: rustix::time::ClockId) -> Duration {
    Duration::try_from(rustix::time::clock_gettime(id)).unwrap_or_default()
}

/// Fields 14 and 15, user and system time; the name in field 2 may contain anything.
fn cpu_of_stat(stat: &str) -> Option<Duration> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace().skip(11);
    let user: u32 = fields.next()?.parse().ok()?;
    let system: u32 = fields.next()?.parse().ok()?;
    Some(TICK * user.checked_add(system)?)
}

fn peak_of_status(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

fn ended_by_term(status: std::process::ExitStatus) -> bool {
    std::os::unix::process::ExitStatusExt::signal(&status) == Some(Signal::TERM.as_raw())
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing
    )]

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(20);

    fn cat(leave: Leave) -> Process {
        Process::spawn("cat", Command::new("cat"), leave, None).unwrap()
    }

    #[test]
    fn a_process_name_with_brackets_does_not_shift_the_fields() {
        let stat = "42 (a b) c) S 1 42 42 0 -1 4194560 100 0 0 0 7 5 0 0 20 0 1 0 100 1000 10";
        assert_eq!(cpu_of_stat(stat), Some(Duration::from_millis(120)));
        assert_eq!(cpu_of_stat("nonsense"), None);
        assert_eq!(peak_of_status("Name:\tx\nVmHWM:\t    2048 kB\n"), Some(2 << 20));
        assert_eq!(peak_of_status("Name:\tx\n"), None);
    }

    #[test]
    fn a_child_answers_and_leaves_when_its_input_closes() {
        let mut child = cat(Leave::InputCloses);
        child.tell("something else").unwrap();
        child.tell("answer 42").unwrap();
        assert_eq!(child.await_line("answer", DEADLINE).unwrap(), "42");
        assert!(child.usage().unwrap().rss_peak > 0);
        child.check().unwrap();
        child.stop().unwrap();
    }

    #[test]
    fn what_a_child_used_and_said_is_known_after_its_end() {
        let mut command = Command::new("sh");
        command.args([
            "-c",
            "echo one; i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done; echo two",
        ]);
        let child = Process::spawn("sh", command, Leave::Terminate, None).unwrap();
        let (used, said) = child.await_end(DEADLINE).unwrap();
        assert_eq!(said, "one\ntwo");
        assert!(used.cpu > Duration::ZERO && used.rss_peak > 0, "{used:?}");
        let child = Process::spawn("false", Command::new("false"), Leave::Terminate, None).unwrap();
        assert!(child.await_end(DEADLINE).is_err());
    }

    #[test]
    fn a_child_that_ends_early_is_named() {
        let mut child =
            Process::spawn("the broker", Command::new("false"), Leave::InputCloses, None).unwrap();
        let error = child.await_line("listening", DEADLINE).unwrap_err().to_string();
        assert!(error.contains("the broker ended with exit status: 1"), "{error}");
    }

    #[test]
    fn a_child_that_says_nothing_is_given_up_in_time() {
        let mut child = cat(Leave::Terminate);
        let error = child
            .await_line("listening", Duration::from_millis(10))
            .unwrap_err()
            .to_string();
        assert!(error.contains("did not say"), "{error}");
    }
}
