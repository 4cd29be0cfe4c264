//! The raw pipe as its parent sees it: five processes that stay, and a client for each run.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use super::node::NodeCounts;
use crate::measure::{CLIENT, ClientCounts, Counts, DiskCounts};
use crate::pack::Load;
use crate::process::{Leave, Process, Usage, cpu_between, usage_by_role};

/// Filling a new file takes seconds on a slow disk; everything else is quick.
const START_MAX: Duration = Duration::from_secs(300);
const ANSWER_MAX: Duration = Duration::from_secs(10);
const RUN_MAX: Duration = Duration::from_secs(600);
const POLL: Duration = Duration::from_millis(1);
const NODES: usize = 3;

/// A running pipe.
#[derive(Debug)]
pub struct Pipe {
    program: PathBuf,
    nodes: Vec<Process>,
    broker: Process,
    proxy: Process,
    proxy_address: String,
}

impl Pipe {
    /// Starts nodes, broker and proxy. `program` is this program: it plays all roles. The nodes'
    /// files stay in `folder`, to be used again.
    ///
    /// # Errors
    /// Where one of them does not start.
    pub fn start(program: &Path, folder: &Path, file_bytes: u64) -> anyhow::Result<Self> {
        let mut nodes = Vec::with_capacity(NODES);
        let mut broker = role(program, "broker");
        for index in 1..=NODES {
            let mut command = role(program, "node");
            command
                .arg("--file")
                .arg(folder.join(format!("pipe-node-{index}.log")));
            command.args(["--file-bytes", &file_bytes.to_string()]);
            let (node, address) = listen(&format!("pipe node {index}"), command)?;
            broker.args(["--node", &address]);
            nodes.push(node);
        }
        let (broker, broker_address) = listen("pipe broker", broker)?;
        let mut proxy = role(program, "proxy");
        proxy.args(["--broker", &broker_address]);
        let (proxy, proxy_address) = listen("pipe proxy", proxy)?;
        Ok(Self {
            program: program.to_owned(),
            nodes,
            broker,
            proxy,
            proxy_address,
        })
    }

    /// Whether all nodes write past the page cache.
    ///
    /// # Errors
    /// Where a node does not answer.
    pub fn is_direct(&mut self) -> anyhow::Result<bool> {
        Ok(self.node_counts()?.iter().all(|counts| counts.direct))
    }

    /// Sends one load through.
    ///
    /// # Errors
    /// Where any process fails or does not answer in time.
    pub fn run(&mut self, load: &Load) -> anyhow::Result<Counts> {
        let mut command = role(&self.program, "client");
        command
            .args(["--proxy", &self.proxy_address])
            .args(load_arguments(load));
        let mut client = Process::spawn("pipe client", command, Leave::InputCloses, None)?;
        client.await_line("ready", RUN_MAX)?;
        let disk_before = self.settled_disk()?;
        let before = self.usage(true)?;
        client.tell("go")?;
        let counts: ClientCounts = serde_json::from_str(&client.await_line("done", RUN_MAX)?)?;
        let disk = self.settled_disk()?.since(disk_before);
        let after = self.usage(false)?;
        let client_peak = client.usage()?.rss_peak;
        client.stop()?;
        let cpu = cpu_between(&before, &after);
        let roles = after.into_iter().map(|(role, usage)| (role, usage.rss_peak));
        let rss_peak = roles.chain([(CLIENT.to_owned(), client_peak)]).collect();
        Ok(Counts {
            client: counts,
            cpu,
            rss_peak,
            disk: Some(disk),
        })
    }

    /// Stops all processes, those that depend on others first.
    ///
    /// # Errors
    /// Where one of them left with a failure.
    pub fn stop(self) -> anyhow::Result<()> {
        self.proxy.stop()?;
        self.broker.stop()?;
        self.nodes.into_iter().try_for_each(Process::stop)
    }

    fn node_counts(&mut self) -> anyhow::Result<Vec<NodeCounts>> {
        let ask = |node: &mut Process| {
            node.tell("counts")?;
            Ok(serde_json::from_str(&node.await_line("counts", ANSWER_MAX)?)?)
        };
        self.nodes.iter_mut().map(ask).collect()
    }

    /// What the disks did, once the third replica has caught up with the quorum.
    fn settled_disk(&mut self) -> anyhow::Result<DiskCounts> {
        let deadline = Instant::now() + ANSWER_MAX;
        loop {
            let counts = self.node_counts()?;
            let frames = || counts.iter().map(|node| node.frames);
            if frames().min() == frames().max() {
                return Ok(counts
                    .iter()
                    .fold(DiskCounts::default(), |sum, node| sum.plus(node.disk)));
            }
            if Instant::now() > deadline {
                bail!(
                    "nodes hold {:?} frames after {ANSWER_MAX:?}",
                    frames().collect::<Vec<_>>()
                );
            }
            std::thread::sleep(POLL);
        }
    }

    fn usage(&self, forget_peak: bool) -> anyhow::Result<BTreeMap<String, Usage>> {
        let roles = [("proxy", &self.proxy), ("broker", &self.broker)];
        let nodes = self.nodes.iter().map(|node| ("storage", node));
        usage_by_role(roles.into_iter().chain(nodes), forget_peak)
    }
}

/// The load as another program's arguments.
pub fn load_arguments(load: &Load) -> Vec<String> {
    vec![
        format!("--batch-bytes={}", load.batch_bytes),
        format!("--partitions={}", load.partitions),
        format!("--bytes={}", load.bytes),
        format!("--warm-up-bytes={}", load.warm_up_bytes),
    ]
}

fn role(program: &Path, name: &str) -> Command {
    let mut command = Command::new(program);
    command.args(["role", name]);
    command
}

fn listen(name: &str, command: Command) -> anyhow::Result<(Process, String)> {
    let mut process = Process::spawn(name, command, Leave::InputCloses, None)?;
    let address = process
        .await_line("listening", START_MAX)
        .with_context(|| format!("{name} did not start"))?;
    Ok((process, address))
}
