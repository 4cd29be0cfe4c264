//! Doing a fault and undoing it.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use forebay_runtime::random::{Random, SeededRandom};
use rustix::process::Signal;

use crate::plan::{Fault, Kind, Target};
use crate::site::{Site, targets};

const BLOCK_BYTES: usize = 4096;
/// What a storage node logs whose write or fdatasync failed.
const DEAD_JOURNAL: &str = "the journal is dead";
/// With records being written, a node comes to its next fdatasync within this.
const FAILED_SYNC_NOTICED: Duration = Duration::from_secs(3);

/// A fault that is going on.
#[derive(Debug)]
pub struct Active {
    fault: Fault,
    /// Who is paused or held, where the fault itself does not say.
    target: Option<Target>,
    /// The tracer that makes system calls fail.
    tracer: Option<Child>,
    /// The tracer could not attach.
    tracer_failed: bool,
    /// How often the log said before that the journal is dead.
    said: usize,
    began: Instant,
    /// What fills a disk.
    ballast: Option<PathBuf>,
    /// What else there is to say.
    pub note: Option<String>,
}

const fn node(number: u8) -> Target {
    Target {
        kind: Kind::Storage,
        number,
    }
}

impl Active {
    fn of(fault: Fault) -> Self {
        Self {
            fault,
            target: None,
            tracer: None,
            tracer_failed: false,
            said: 0,
            began: Instant::now(),
            ballast: None,
            note: None,
        }
    }

    /// Begins a fault. `random` chooses what the plan leaves open: which bit.
    ///
    /// # Errors
    /// Where the system refuses.
    pub fn begin(site: &mut Site, fault: Fault, random: &SeededRandom) -> anyhow::Result<Self> {
        let mut active = Self::of(fault);
        match fault {
            Fault::Kill(target) => site.hold(target)?,
            Fault::Pause(target) => site.signal(target, Signal::STOP)?,
            Fault::PauseLeader => {
                let leader = etcd_leader(site)?;
                active.note = Some(format!("the leader is {leader}"));
                active.target = Some(leader);
                site.signal(leader, Signal::STOP)?;
            }
            Fault::Isolate(target) => site.network(target, |network, place| network.isolate(place))?,
            Fault::Cut(from, to) => {
                let from = site.place(from)?;
                site.network(to, |network, place| network.cut(from, place))?;
            }
            Fault::Lose(target, percent) => {
                site.network(target, |network, place| network.lose(place, percent))?;
            }
            Fault::FailSync(number) => {
                active.said = site.says(node(number), DEAD_JOURNAL)?;
                active.tracer = fail_syncs(site, number)?;
            }
            Fault::FillDisk(number) => active.ballast = Some(fill(&site.disk(number))?),
            Fault::WipeDisk(number) => {
                site.hold(node(number))?;
                let data = site.disk(number).join("data");
                std::fs::remove_dir_all(&data).with_context(|| format!("cannot wipe {}", data.display()))?;
                let id = site.rename_node(number)?;
                active.note = Some(format!("node{number} comes back with id {id}"));
            }
            Fault::FlipBit(number) => {
                site.hold(node(number))?;
                active.note = flip_bit(&site.disk(number).join("data"), random)?;
            }
            Fault::NoEtcd => {
                for target in targets().filter(|target| target.kind == Kind::Etcd) {
                    site.hold(target)?;
                }
            }
            Fault::PowerCut => {
                for target in targets().filter(|target| target.kind != Kind::Proxy) {
                    site.hold(target)?;
                }
            }
        }
        Ok(active)
    }

    /// Undoes it.
    ///
    /// # Errors
    /// Where the system refuses.
    pub fn end(mut self, site: &mut Site) -> anyhow::Result<()> {
        match self.fault {
            Fault::Kill(target) => site.release(target),
            Fault::Pause(target) => site.signal(target, Signal::CONT),
            Fault::PauseLeader => self
                .target
                .map_or(Ok(()), |leader| site.signal(leader, Signal::CONT)),
            Fault::Isolate(target) | Fault::Cut(_, target) | Fault::Lose(target, _) => {
                site.network(target, |network, place| network.heal(place))
            }
            Fault::FailSync(number) => {
                // A node with a dead journal serves reads until somebody restarts it.
                let noticed = site.says(node(number), DEAD_JOURNAL)? > self.said;
                let long = self.began.elapsed() >= FAILED_SYNC_NOTICED;
                site.hold(node(number))?;
                self.stop_tracer();
                site.release(node(number))?;
                anyhow::ensure!(
                    noticed || !long || self.tracer_failed,
                    "node{number} did not notice that its fdatasync failed"
                );
                Ok(())
            }
            Fault::FillDisk(_) => match self.ballast.take() {
                Some(ballast) => std::fs::remove_file(ballast).context("the ballast cannot be removed"),
                None => Ok(()),
            },
            Fault::WipeDisk(number) | Fault::FlipBit(number) => site.release(node(number)),
            Fault::NoEtcd => targets()
                .filter(|target| target.kind == Kind::Etcd)
                .try_for_each(|target| site.release(target)),
            Fault::PowerCut => targets()
                .filter(|target| target.kind != Kind::Proxy)
                .try_for_each(|target| site.release(target)),
        }
    }

    fn stop_tracer(&mut self) {
        if let Some(mut tracer) = self.tracer.take() {
            // It ends with the process that it traces; else it lets it go when it is told to end.
            let id = i32::try_from(tracer.id())
                .ok()
                .and_then(rustix::process::Pid::from_raw);
            if let Some(id) = id {
                let _ = rustix::process::kill_process(id, Signal::TERM);
            }
            self.tracer_failed = tracer.wait().is_ok_and(|status| status.code() == Some(1));
        }
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.stop_tracer();
    }
}

/// The member that leads etcd, as the first that answers says.
fn etcd_leader(site: &Site) -> anyhow::Result<Target> {
    let addresses = site.addresses(Kind::Etcd);
    for address in &addresses {
        let output = Command::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .args(["--dial-timeout=1s", "--command-timeout=1s", "--endpoints"])
            .arg(address.to_string())
            .args(["endpoint", "status", "-w", "json"])
            .output()
            .context("cannot run etcdctl")?;
        let Ok(answer) = serde_json::from_slice::<serde_json::Value>(&output.stdout) else {
            continue;
        };
        let status = answer.get(0).and_then(|one| one.get("Status"));
        let leader = status.and_then(|status| status.get("leader"));
        let own = status.and_then(|status| status.get("header")?.get("member_id"));
        if leader.is_some() && leader == own {
            let number = addresses.iter().position(|other| other == address).unwrap_or(0);
            return Ok(Target {
                kind: Kind::Etcd,
                number: u8::try_from(number + 1)?,
            });
        }
    }
    anyhow::bail!("no member of etcd says that it leads")
}

/// Makes every fdatasync of a storage node fail from now on; none where it does not run.
fn fail_syncs(site: &mut Site, number: u8) -> anyhow::Result<Option<Child>> {
    let Some(id) = site.id(node(number))? else {
        return Ok(None);
    };
    let tracer = Command::new("strace")
        .args(["-f", "-qq", "-e", "trace=fdatasync"])
        .args(["-e", "inject=fdatasync:error=EIO:when=1+"])
        .args(["-o", "/dev/null", "-p", &id.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("cannot run strace")?;
    Ok(Some(tracer))
}

/// Takes all the room that is left in a file system.
fn fill(folder: &Path) -> anyhow::Result<PathBuf> {
    let path = folder.join("ballast");
    let mut file = std::fs::File::create(&path)?;
    let chunk = vec![0xa5_u8; 1 << 20];
    let mut step = chunk.as_slice();
    while !step.is_empty() {
        match std::io::Write::write_all(&mut file, step) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::StorageFull => {
                step = step.get(..step.len() / 2).unwrap_or_default();
            }
            Err(error) => return Err(error).with_context(|| format!("cannot fill {}", folder.display())),
        }
    }
    Ok(path)
}

/// Flips a bit among the bytes of a stopped node's journal that were written before the newest
/// ones: damage there cannot be taken for a write that a crash tore. Says where; none where the
/// journal is too short.
fn flip_bit(data: &Path, random: &SeededRandom) -> anyhow::Result<Option<String>> {
    let mut files: Vec<_> = std::fs::read_dir(data)?
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .filter(|path| {
            let name = path.file_name().and_then(|name| name.to_str());
            name.is_some_and(|name| name.starts_with("journal-"))
        })
        .collect();
    files.sort();
    let newest = files.pop();
    let (path, newest) = if files.is_empty() {
        match newest {
            Some(path) => (path, true),
            None => return Ok(None),
        }
    } else {
        let index = usize::try_from(random.range(0, files.len() as u64))?;
        (files.swap_remove(index), false)
    };
    let mut bytes = std::fs::read(&path)?;
    let written: Vec<_> = bytes
        .chunks(BLOCK_BYTES)
        .enumerate()
        .filter(|(_, block)| block.iter().any(|byte| *byte != 0))
        .map(|(index, _)| index)
        .collect();
    // Of the newest file only the older half, behind the header.
    let (from, until) = if newest {
        (1, written.len() / 2)
    } else {
        (0, written.len())
    };
    if from >= until {
        return Ok(None);
    }
    let index = usize::try_from(random.range(from as u64, until as u64))?;
    let block = written.get(index).copied().unwrap_or(0);
    let at = block * BLOCK_BYTES + usize::try_from(random.range(0, BLOCK_BYTES as u64))?;
    let bit = random.range(0, 8);
    if let Some(byte) = bytes.get_mut(at) {
        *byte ^= 1 << bit;
    }
    std::fs::write(&path, bytes)?;
    let name = path
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    Ok(Some(format!("bit {bit} of byte {at} of {name}")))
}
