//! The cluster of a round: three etcd members, four storage nodes, three brokers, two proxies.
//!
//! Each is a process of its own at an address that it keeps: in a network namespace where there is
//! a [`Network`], else on loopback. [`Site::supervise`] does what a supervisor does: what ends by
//! itself is started again and counted. What a fault holds down stays down until it is let go.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use forebay_runtime::random::{OsRandom, Random};
use forebay_tests::etcd::Member as EtcdMember;
use forebay_tests::service::Service;

use crate::abilities::run;
use crate::network::Network;
use crate::plan::{KINDS, Kind, Target};

/// A process that ended by itself is started again after so long.
const RESTART_AFTER: Duration = Duration::from_millis(300);
/// Size of a storage node's file system that is to be full.
const SMALL_DISK: &str = "size=96m";
/// Ports are taken from below those that the system gives to outgoing connections: one that is free
/// now must be free again when its process comes back.
const PORTS: (u64, u64) = (12_000, 32_000);

/// Where one process listens.
#[derive(Debug, Clone, Copy)]
pub struct Address {
    /// Its host.
    pub host: IpAddr,
    /// Clients of etcd, or gRPC.
    pub main: u16,
    /// etcd's peers, or metrics and health.
    pub second: u16,
    /// The data protocol.
    pub data: u16,
}

impl Address {
    /// Where it is spoken to.
    #[must_use]
    pub const fn main(&self) -> SocketAddr {
        SocketAddr::new(self.host, self.main)
    }
}

#[derive(Debug)]
struct Member {
    service: Service,
    address: Address,
    /// Its place in the network.
    place: usize,
    /// A fault keeps it down.
    held: bool,
    /// When it was seen to have ended by itself.
    ended: Option<Instant>,
}

/// The processes of a round.
#[derive(Debug)]
pub struct Site {
    members: BTreeMap<Target, Member>,
    /// Dropped after the processes in it.
    network: Option<Network>,
    folder: PathBuf,
    binary: PathBuf,
    small_disk: Option<Mount>,
    /// What ended by itself, and how.
    pub exits: Vec<String>,
    next_node_id: u32,
}

#[derive(Debug)]
struct Mount(PathBuf);

impl Drop for Mount {
    fn drop(&mut self) {
        // A lazy unmount: a process that is just being killed may still have files open.
        let _ = run("umount", &["-l", &self.0.display().to_string()]);
    }
}

fn free_port() -> anyhow::Result<u16> {
    for _ in 0..200 {
        let port = u16::try_from(OsRandom.range(PORTS.0, PORTS.1))?;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(port);
        }
    }
    anyhow::bail!("no free port between {} and {}", PORTS.0, PORTS.1)
}

impl Site {
    /// Starts all, without waiting for any of them.
    ///
    /// # Errors
    /// Where the system cannot.
    pub fn start(
        binary: &Path,
        folder: &Path,
        network: Option<Network>,
        small_disk: Option<u8>,
    ) -> anyhow::Result<Self> {
        let mut site = Self {
            members: BTreeMap::new(),
            network,
            folder: folder.to_owned(),
            binary: binary.to_owned(),
            small_disk: None,
            exits: Vec::new(),
            next_node_id: u32::from(Kind::Storage.count()) + 1,
        };
        let targets: Vec<_> = targets().collect();
        let mut addresses = BTreeMap::new();
        for (place, target) in targets.iter().enumerate() {
            addresses.insert(*target, site.address(place)?);
        }
        if let Some(number) = small_disk {
            let path = site.node_folder(number);
            std::fs::create_dir_all(&path)?;
            let text = path.display().to_string();
            run("mount", &["-t", "tmpfs", "-o", SMALL_DISK, "tmpfs", &text])?;
            site.small_disk = Some(Mount(path));
        }
        let etcd: BTreeMap<_, _> = addresses
            .iter()
            .filter(|(target, _)| target.kind == Kind::Etcd)
            .map(|(target, address)| (*target, site.etcd_member(*target, address)))
            .collect();
        let all: Vec<_> = etcd.values().cloned().collect();
        for (place, target) in targets.into_iter().enumerate() {
            let address = *addresses.get(&target).context("every process has an address")?;
            let mut command = match etcd.get(&target) {
                Some(member) => {
                    let mut command = vec!["etcd".to_owned()];
                    command.extend(member.args(&all));
                    command
                }
                None => site.forebay(target, &address, &all)?,
            };
            if let Some(network) = &site.network {
                let space = network.space(place);
                let prefix = ["ip", "netns", "exec", &space].map(str::to_owned);
                command.splice(0..0, prefix);
            }
            let log = site.folder.join(format!("{target}.log"));
            let mut service = Service::new(target.to_string(), command, log);
            service.start()?;
            let member = Member {
                service,
                address,
                place,
                held: false,
                ended: None,
            };
            site.members.insert(target, member);
        }
        Ok(site)
    }

    fn address(&self, place: usize) -> anyhow::Result<Address> {
        Ok(match &self.network {
            Some(network) => Address {
                host: network.address(place),
                main: 7450,
                second: 7451,
                data: 7460,
            },
            None => Address {
                host: Ipv4Addr::LOCALHOST.into(),
                main: free_port()?,
                second: free_port()?,
                data: free_port()?,
            },
        })
    }

    fn etcd_member(&self, target: Target, address: &Address) -> EtcdMember {
        EtcdMember {
            name: target.to_string(),
            data: self.folder.join(target.to_string()),
            client: format!("http://{}", address.main()),
            peer: format!("http://{}:{}", address.host, address.second),
        }
    }

    fn node_folder(&self, number: u8) -> PathBuf {
        self.folder.join(format!("disk{number}"))
    }

    fn config_path(&self, target: Target) -> PathBuf {
        self.folder.join(format!("{target}.toml"))
    }

    fn forebay(&self, target: Target, address: &Address, etcd: &[EtcdMember]) -> anyhow::Result<Vec<String>> {
        let endpoints: Vec<_> = etcd.iter().map(|member| format!("{:?}", member.client)).collect();
        let (host, number) = (address.host, target.number);
        let listen = |port| format!("tcp://{host}:{port}");
        let (roles, own) = match target.kind {
            Kind::Storage => (
                "storage",
                format!(
                    "[storage]\nid = {number}\ndata_dir = \"{}\"\ndata_listen = \"{}\"\njournal_file_bytes = \"4MiB\"\n\
                     disk_budget_bytes = \"{}\"\ntrim_grace = \"3s\"\n",
                    self.node_folder(number).join("data").display(),
                    listen(address.data),
                    if self
                        .small_disk
                        .as_ref()
                        .is_some_and(|mount| mount.0 == self.node_folder(number))
                    {
                        "80MiB"
                    } else {
                        "256MiB"
                    },
                ),
            ),
            Kind::Broker => (
                "broker,controller",
                format!(
                    "[broker]\nid = {number}\ndata_listen = \"{}\"\nsession_ttl = \"5s\"\n",
                    listen(address.data)
                ),
            ),
            Kind::Proxy | Kind::Etcd => ("proxy", format!("[proxy]\nid = \"proxy{number}\"\n")),
        };
        let config = format!(
            "[metadata]\netcd = [{}]\n[listen]\ngrpc = \"{}\"\nadmin = \"{host}:{}\"\n\
             [object_store]\nurl = \"file://{}\"\n{own}",
            endpoints.join(", "),
            address.main(),
            address.second,
            self.folder.join("objects").display(),
        );
        std::fs::create_dir_all(self.folder.join("objects"))?;
        let path = self.config_path(target);
        std::fs::write(&path, config)?;
        Ok([
            self.binary.display().to_string(),
            "serve".to_owned(),
            "--roles".to_owned(),
            roles.to_owned(),
            "--config".to_owned(),
            path.display().to_string(),
        ]
        .into())
    }

    /// Starts again what ended by itself and is not held down.
    ///
    /// # Errors
    /// Where the system cannot.
    pub fn supervise(&mut self) -> anyhow::Result<()> {
        for (target, member) in &mut self.members {
            if let Some(status) = member.service.ended()? {
                member.ended = Some(Instant::now());
                self.exits.push(format!("{target}: {status}"));
            }
            let rested = member.ended.is_none_or(|at| at.elapsed() >= RESTART_AFTER);
            if !member.held && rested && member.service.id().is_none() {
                member.ended = None;
                member.service.start()?;
            }
        }
        Ok(())
    }

    fn member(&mut self, target: Target) -> anyhow::Result<&mut Member> {
        self.members
            .get_mut(&target)
            .with_context(|| format!("there is no {target}"))
    }

    /// Kills a process and keeps it down until [`Site::release`].
    ///
    /// # Errors
    /// Where there is no such process.
    pub fn hold(&mut self, target: Target) -> anyhow::Result<()> {
        let member = self.member(target)?;
        member.held = true;
        member.service.kill();
        Ok(())
    }

    /// Lets a process that was held down start again.
    ///
    /// # Errors
    /// Where it cannot be started.
    pub fn release(&mut self, target: Target) -> anyhow::Result<()> {
        let member = self.member(target)?;
        member.held = false;
        member.ended = None;
        member.service.start()
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// Where the system refuses.
    pub fn signal(&mut self, target: Target, signal: rustix::process::Signal) -> anyhow::Result<()> {
        self.member(target)?.service.signal(signal)
    }

    /// The process id of a process that runs.
    ///
    /// # Errors
    /// Where there is no such process.
    pub fn id(&mut self, target: Target) -> anyhow::Result<Option<u32>> {
        Ok(self.member(target)?.service.id())
    }

    /// Does something to the place of a process in the network; nothing where there is none.
    ///
    /// # Errors
    /// Where the system refuses.
    pub fn network(
        &mut self,
        target: Target,
        act: impl FnOnce(&Network, usize) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let place = self.member(target)?.place;
        self.network
            .as_ref()
            .map_or(Ok(()), |network| act(network, place))
    }

    /// Place of a process in the network.
    ///
    /// # Errors
    /// Where there is no such process.
    pub fn place(&mut self, target: Target) -> anyhow::Result<usize> {
        Ok(self.member(target)?.place)
    }

    /// Gives a storage node whose disk is gone a new id; its folder must be removed by then.
    ///
    /// # Errors
    /// Where its configuration cannot be changed.
    pub fn rename_node(&mut self, number: u8) -> anyhow::Result<u32> {
        let target = Target {
            kind: Kind::Storage,
            number,
        };
        let id = self.next_node_id;
        self.next_node_id += 1;
        let path = self.config_path(target);
        let config = std::fs::read_to_string(&path)?;
        let renamed = config.replacen(&format!("\nid = {number}\n"), &format!("\nid = {id}\n"), 1);
        anyhow::ensure!(renamed != config, "{} names no id", path.display());
        std::fs::write(&path, renamed)?;
        Ok(id)
    }

    /// Folder of a storage node's disk.
    #[must_use]
    pub fn disk(&self, number: u8) -> PathBuf {
        self.node_folder(number)
    }

    /// Where the processes of a kind are spoken to, by number.
    #[must_use]
    pub fn addresses(&self, kind: Kind) -> Vec<SocketAddr> {
        self.members
            .iter()
            .filter(|(target, _)| target.kind == kind)
            .map(|(_, member)| member.address.main())
            .collect()
    }

    /// How often a process's log has a text.
    ///
    /// # Errors
    /// Where there is no such process, or its log cannot be read.
    pub fn says(&mut self, target: Target, text: &str) -> anyhow::Result<usize> {
        let log = self.member(target)?.service.log().to_owned();
        let said = std::fs::read(&log).with_context(|| format!("cannot read {}", log.display()))?;
        Ok(String::from_utf8_lossy(&said).matches(text).count())
    }

    /// What should not be in a log and is: panics, of any process.
    #[must_use]
    pub fn panics(&self) -> Vec<String> {
        let mut found = Vec::new();
        for (target, member) in &self.members {
            let text = std::fs::read_to_string(member.service.log()).unwrap_or_default();
            let lines = text.lines().filter(|line| line.contains("panicked at"));
            found.extend(lines.take(3).map(|line| format!("{target}: {line}")));
        }
        found
    }
}

/// All processes of a cluster.
pub fn targets() -> impl Iterator<Item = Target> {
    KINDS
        .into_iter()
        .flat_map(|kind| (1..=kind.count()).map(move |number| Target { kind, number }))
}
