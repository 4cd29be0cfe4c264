//! How the product is started: the command lines and configuration files of its processes.
//!
//! Everything listens on ports of loopback that the system picks. Each process logs to a file
//! beside its data, whose last lines are shown where it fails to start.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Context;

use super::report::STANDALONE;
use super::scrape;
use crate::process::{Leave, Process};

const READY_MAX: Duration = Duration::from_secs(120);
const STORAGE_NODES: usize = 3;
const STORAGE: &str = "storage";
const ANY_PORT: &str = "127.0.0.1:0";

/// A started process of the product, or etcd.
#[derive(Debug)]
pub struct Member {
    /// Its role in the report.
    pub role: &'static str,
    /// The process.
    pub process: Process,
    /// Where its metrics are; none for etcd.
    pub metrics: Option<SocketAddr>,
    /// Whether it writes the log to disk.
    pub stores: bool,
}

/// A running deployment: its members, those that others depend on first.
#[derive(Debug)]
pub struct Deployment {
    /// In the order in which they were started.
    pub members: Vec<Member>,
    /// Where clients connect.
    pub endpoint: String,
    /// Where etcd is, if there is one.
    pub etcd: Option<String>,
    /// Folders of the storage nodes of a cluster.
    pub folders: Vec<PathBuf>,
}

/// What a cluster's configuration files say besides addresses.
#[derive(Debug, Default)]
pub struct ClusterOptions {
    /// Further lines of the section `[storage]`.
    pub storage: String,
    /// Sections of every process.
    pub common: String,
}

impl Deployment {
    /// All roles in one process.
    pub fn standalone(forebay: &Path, folder: &Path) -> anyhow::Result<Self> {
        let mut command = Command::new(forebay);
        command.arg("standalone").arg("--data").arg(folder.join("data"));
        command.args(["--listen", ANY_PORT, "--admin-listen", ANY_PORT]);
        let (member, grpc) = start(STANDALONE, STANDALONE, command, folder, true)?;
        Ok(Self {
            members: vec![member],
            endpoint: format!("http://{grpc}"),
            etcd: None,
            folders: Vec::new(),
        })
    }

    /// etcd, three storage nodes, a broker with the controller, and a proxy.
    pub fn cluster(
        forebay: &Path,
        etcd: &Path,
        folder: &Path,
        options: &ClusterOptions,
    ) -> anyhow::Result<Self> {
        let (etcd, etcd_endpoint) = start_etcd(etcd, folder)?;
        let serve = |role, id, roles: &str, settings: &str| {
            let name = format!("{role}-{id}");
            let text = format!(
                "[metadata]\netcd = [\"{etcd_endpoint}\"]\n[listen]\ngrpc = \"{ANY_PORT}\"\nadmin = \"{ANY_PORT}\"\n{}{settings}",
                options.common
            );
            let config = folder.join(format!("{name}.toml"));
            std::fs::write(&config, text)?;
            let mut command = Command::new(forebay);
            command.args(["serve", "--roles", roles, "--config"]).arg(config);
            start(role, &name, command, folder, role == STORAGE)
        };
        let mut members = vec![etcd];
        let mut folders = Vec::new();
        for id in 1..=STORAGE_NODES {
            let data = folder.join(format!("{STORAGE}-{id}"));
            let settings = format!(
                "[storage]\nid = {id}\ndata_dir = \"{}\"\ndata_listen = \"tcp://{ANY_PORT}\"\n{}",
                data.display(),
                options.storage
            );
            folders.push(data);
            members.push(serve(STORAGE, id, STORAGE, &settings)?.0);
        }
        let settings = format!("[broker]\nid = 1\ndata_listen = \"tcp://{ANY_PORT}\"\n");
        members.push(serve("broker", 1, "broker,controller", &settings)?.0);
        let (proxy, grpc) = serve("proxy", 1, "proxy", "")?;
        members.push(proxy);
        Ok(Self {
            members,
            endpoint: format!("http://{grpc}"),
            etcd: Some(etcd_endpoint),
            folders,
        })
    }

    /// Stops all members, those that depend on others first.
    pub fn stop(mut self) -> anyhow::Result<()> {
        while let Some(member) = self.members.pop() {
            member.process.stop()?;
        }
        Ok(())
    }
}

/// Starts etcd; also gives its endpoint.
pub(crate) fn start_etcd(etcd: &Path, folder: &Path) -> anyhow::Result<(Member, String)> {
    let (client, peer) = (free_port()?, free_port()?);
    let (client_url, peer_url) = (format!("http://{client}"), format!("http://{peer}"));
    let mut command = Command::new(etcd);
    command
        .args(["--name", "bench"])
        .arg("--data-dir")
        .arg(folder.join("etcd"));
    command.args([
        "--listen-client-urls",
        &client_url,
        "--advertise-client-urls",
        &client_url,
    ]);
    command.args([
        "--listen-peer-urls",
        &peer_url,
        "--initial-advertise-peer-urls",
        &peer_url,
    ]);
    command.args(["--initial-cluster", &format!("bench={peer_url}")]);
    let log = folder.join("etcd.log");
    let mut process = Process::spawn("etcd", command, Leave::Terminate, Some(&log))?;
    scrape::await_port(&mut process, client, READY_MAX).with_context(|| last_lines(&log))?;
    Ok((
        Member {
            role: "etcd",
            process,
            metrics: None,
            stores: false,
        },
        client_url,
    ))
}

/// Starts a process of the product and waits until it is ready; also gives its gRPC address.
pub(crate) fn start(
    role: &'static str,
    name: &str,
    command: Command,
    folder: &Path,
    stores: bool,
) -> anyhow::Result<(Member, SocketAddr)> {
    let log = folder.join(format!("{name}.log"));
    let mut process = Process::spawn(name, command, Leave::Terminate, Some(&log))?;
    let line = process
        .await_line("forebay is ready:", READY_MAX)
        .with_context(|| last_lines(&log))?;
    let (grpc, admin) = addresses(&line).with_context(|| format!("{name} says it is ready at {line:?}"))?;
    scrape::await_ready(&mut process, admin, READY_MAX).with_context(|| last_lines(&log))?;
    Ok((
        Member {
            role,
            process,
            metrics: Some(admin),
            stores,
        },
        grpc,
    ))
}

/// Reads `grpc 127.0.0.1:1, admin 127.0.0.1:2`.
fn addresses(line: &str) -> Option<(SocketAddr, SocketAddr)> {
    let (grpc, admin) = line.trim().strip_prefix("grpc ")?.split_once(", admin ")?;
    Some((grpc.parse().ok()?, admin.parse().ok()?))
}

fn last_lines(log: &Path) -> String {
    const SHOWN: usize = 20;
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines = text.lines().collect::<Vec<_>>();
    let last = lines.get(lines.len().saturating_sub(SHOWN)..).unwrap_or_default();
    format!("{} ends with:\n{}", log.display(), last.join("\n"))
}

/// A port that was free a moment ago: etcd must know its own beforehand.
fn free_port() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind(ANY_PORT)?.local_addr()?)
}
