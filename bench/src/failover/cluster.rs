//! A cluster whose members may be killed, paused and started again, each by its own id.
//!
//! The controller is a process of its own, so that killing a broker kills nothing else; or every broker is
//! a controller too.

use std::collections::BTreeMap;
use std::io::{Read, Seek, SeekFrom};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

use crate::process::Process;
use crate::produce::deploy::{Member, start, start_etcd};
use crate::produce::scrape;

const ANY_PORT: &str = "127.0.0.1:0";
const POLL: Duration = Duration::from_millis(1);
/// How long a member may take to be seen by another.
const SEEN_MAX: Duration = Duration::from_secs(30);

/// Where controllers run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Controllers {
    /// One, in a process of its own, which evens out loads or does not.
    Apart {
        /// Whether it does.
        rebalance: bool,
    },
    /// One in each broker's process. They do not even out loads.
    WithBrokers,
}

/// A running cluster.
pub struct Cluster {
    etcd: Member,
    etcd_endpoint: String,
    controller: Option<Member>,
    /// Brokers by number.
    pub brokers: BTreeMap<u32, Member>,
    /// Storage nodes by number.
    pub nodes: BTreeMap<u32, Member>,
    proxy: Member,
    /// Where clients connect.
    pub endpoint: String,
    forebay: PathBuf,
    folder: PathBuf,
}

impl Cluster {
    /// Starts all of it.
    pub fn start(
        forebay: &Path,
        etcd: &Path,
        folder: &Path,
        nodes: u32,
        brokers: u32,
        controllers: Controllers,
    ) -> anyhow::Result<Self> {
        let (etcd, etcd_endpoint) = start_etcd(etcd, folder)?;
        let launch =
            |role, name: &str, settings: &str| launch(forebay, folder, &etcd_endpoint, role, name, settings);
        let mut started = BTreeMap::new();
        for id in 1..=nodes {
            started.insert(
                id,
                launch("storage", &format!("storage-{id}"), &storage(folder, id))?.0,
            );
        }
        let controller = match controllers {
            Controllers::Apart { rebalance } => {
                let settings = format!("[controller]\nrebalance = {rebalance}\n");
                Some(launch("controller", "controller", &settings)?.0)
            }
            Controllers::WithBrokers => None,
        };
        let (proxy, grpc) = launch("proxy", "proxy", "")?;
        let mut cluster = Self {
            etcd,
            etcd_endpoint,
            controller,
            brokers: BTreeMap::new(),
            nodes: started,
            proxy,
            endpoint: format!("http://{grpc}"),
            forebay: forebay.to_owned(),
            folder: folder.to_owned(),
        };
        for id in 1..=brokers {
            cluster.add_broker(id)?;
        }
        Ok(cluster)
    }

    /// Starts a broker and waits until it has sessions with all storage nodes.
    pub fn add_broker(&mut self, id: u32) -> anyhow::Result<()> {
        let (roles, more) = match self.controller {
            Some(_) => ("broker", ""),
            None => ("broker,controller", "[controller]\nrebalance = false\n"),
        };
        let settings = format!("[broker]\nid = {id}\ndata_listen = \"tcp://{ANY_PORT}\"\n{more}");
        let member = self.launch(roles, &format!("broker-{id}"), &settings)?;
        self.brokers.insert(id, member);
        self.await_nodes()
    }

    /// Starts a storage node again, over its old folder.
    pub fn add_node(&mut self, id: u32) -> anyhow::Result<()> {
        let member = self.launch("storage", &format!("storage-{id}"), &storage(&self.folder, id))?;
        self.nodes.insert(id, member);
        self.await_nodes()
    }

    /// Waits until every broker has a session with every storage node.
    pub fn await_nodes(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + SEEN_MAX;
        loop {
            let connected = self.broker_metric("forebay_broker_nodes_connected")?;
            if connected
                .values()
                .all(|count| *count as usize == self.nodes.len())
            {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "brokers have sessions with {connected:?} of {} storage nodes",
                self.nodes.len()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn launch(&self, role: &'static str, name: &str, settings: &str) -> anyhow::Result<Member> {
        Ok(launch(
            &self.forebay,
            &self.folder,
            &self.etcd_endpoint,
            role,
            name,
            settings,
        )?
        .0)
    }

    /// A metric of every broker.
    pub fn broker_metric(&self, name: &str) -> anyhow::Result<BTreeMap<u32, f64>> {
        metric_of(&self.brokers, name)
    }

    /// A metric, summed over storage nodes.
    pub fn node_metric(&self, name: &str) -> anyhow::Result<f64> {
        Ok(metric_of(&self.nodes, name)?.values().sum())
    }

    /// What the controller logs from now on: the one that is apart, or a broker's.
    pub fn controller_log(&self, broker: u32) -> anyhow::Result<LogTail> {
        match self.controller {
            Some(_) => LogTail::open(self.folder.join("controller.log")),
            None => self.broker_log(broker),
        }
    }

    /// What a broker logs from now on.
    pub fn broker_log(&self, id: u32) -> anyhow::Result<LogTail> {
        LogTail::open(self.folder.join(format!("broker-{id}.log")))
    }

    /// Runs the product's command line against this cluster.
    pub fn command(&self, arguments: &[&str]) -> anyhow::Result<()> {
        let output = Command::new(&self.forebay)
            .args(["--server", &self.endpoint])
            .args(arguments)
            .output()?;
        ensure!(
            output.status.success(),
            "forebay {} failed: {}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(())
    }

    /// Stops everything in order.
    pub fn stop(self) -> anyhow::Result<()> {
        self.proxy.process.stop()?;
        for (_, broker) in self.brokers {
            broker.process.stop()?;
        }
        if let Some(controller) = self.controller {
            controller.process.stop()?;
        }
        for (_, node) in self.nodes {
            node.process.stop()?;
        }
        self.etcd.process.stop()
    }
}

fn storage(folder: &Path, id: u32) -> String {
    format!(
        "[storage]\nid = {id}\ndata_dir = \"{}\"\ndata_listen = \"tcp://{ANY_PORT}\"\njournal_file_bytes = \"64MiB\"\n",
        folder.join(format!("storage-{id}")).display()
    )
}

fn launch(
    forebay: &Path,
    folder: &Path,
    etcd: &str,
    role: &'static str,
    name: &str,
    settings: &str,
) -> anyhow::Result<(Member, SocketAddr)> {
    let text = format!(
        "[metadata]\netcd = [\"{etcd}\"]\n[listen]\ngrpc = \"{ANY_PORT}\"\nadmin = \"{ANY_PORT}\"\n{settings}"
    );
    let config = folder.join(format!("{name}.toml"));
    std::fs::write(&config, text)?;
    let mut command = Command::new(forebay);
    command.args(["serve", "--roles", role, "--config"]).arg(config);
    start(role, name, command, folder, role == "storage")
}

fn metric_of(members: &BTreeMap<u32, Member>, name: &str) -> anyhow::Result<BTreeMap<u32, f64>> {
    members
        .iter()
        .map(|(id, member)| {
            let address = member.metrics.context("no metrics")?;
            let value = scrape::sum(&scrape::metrics(address)?, name);
            Ok((
                *id,
                value.with_context(|| format!("{address} has no metric {name}"))?,
            ))
        })
        .collect()
}

/// Kills a member at once, as a lost machine would, and waits for its end.
pub fn kill(member: Member) -> anyhow::Result<Instant> {
    let Member { process, .. } = member;
    let at = Instant::now();
    process.kill()?;
    Ok(at)
}

/// The end of a log file that is being written.
pub struct LogTail {
    path: PathBuf,
    at: u64,
    text: String,
}

impl LogTail {
    fn open(path: PathBuf) -> anyhow::Result<Self> {
        let at = std::fs::metadata(&path)?.len();
        Ok(Self {
            path,
            at,
            text: String::new(),
        })
    }

    /// Waits until one of some texts is logged; when that was seen.
    pub fn await_any(&mut self, texts: &[String], within: Duration) -> anyhow::Result<Instant> {
        let deadline = Instant::now() + within;
        loop {
            let mut file = std::fs::File::open(&self.path)?;
            file.seek(SeekFrom::Start(self.at))?;
            let mut new = Vec::new();
            file.read_to_end(&mut new)?;
            self.at += new.len() as u64;
            self.text.push_str(&String::from_utf8_lossy(&new));
            if texts.iter().any(|text| self.text.contains(text.as_str())) {
                return Ok(Instant::now());
            }
            if Instant::now() > deadline {
                bail!("{} does not say {texts:?} within {within:?}", self.path.display());
            }
            std::thread::sleep(POLL);
        }
    }
}

/// Asks a process to stop or to go on.
pub fn pause(process: &Process, paused: bool) -> anyhow::Result<()> {
    use rustix::process::Signal;
    process.signal(if paused { Signal::STOP } else { Signal::CONT })
}
