//! A whole Forebay as separate processes: etcd, storage nodes, brokers that are controllers too, a proxy.

use std::path::Path;

use anyhow::Context as _;
use forebay_client::{Client, ClientConfig};

use crate::etcd::Etcd;
use crate::process::Process;

/// A running cluster; everything in it ends when it is dropped.
#[derive(Debug)]
pub struct Cluster {
    /// Brokers, in the order in which they were started.
    pub brokers: Vec<Process>,
    /// Storage nodes, from number 1.
    pub nodes: Vec<Process>,
    /// Proxies.
    pub proxies: Vec<Process>,
    /// The metadata store.
    pub etcd: Etcd,
    folder: tempfile::TempDir,
    settings: Settings,
}

/// What a cluster's processes are configured with, besides what tells them apart.
#[derive(Debug, Default, Clone)]
pub struct Settings {
    /// Sections of configuration that every process gets.
    pub all: String,
    /// Keys of brokers' own section.
    pub broker: String,
    /// Keys of storage nodes' own section.
    pub storage: String,
    /// Zones of storage nodes in turn, and the first for everything else; none for no zones.
    pub zones: Vec<String>,
}

impl Cluster {
    /// Starts etcd, `nodes` storage nodes, `brokers` brokers and one proxy.
    ///
    /// # Errors
    /// Where one of them does not start.
    pub fn start(binary: &Path, nodes: u32, brokers: u32) -> anyhow::Result<Self> {
        Self::start_with(binary, nodes, brokers, "")
    }

    /// The same with sections of configuration that every process gets.
    ///
    /// # Errors
    /// Where one of them does not start.
    pub fn start_with(binary: &Path, nodes: u32, brokers: u32, settings: &str) -> anyhow::Result<Self> {
        let settings = Settings {
            all: settings.to_owned(),
            ..Settings::default()
        };
        Self::start_as(binary, nodes, brokers, settings)
    }

    /// The same with all that can be set.
    ///
    /// # Errors
    /// Where one of them does not start.
    pub fn start_as(binary: &Path, nodes: u32, brokers: u32, settings: Settings) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let etcd = Etcd::start()?;
        let mut cluster = Self {
            brokers: Vec::new(),
            nodes: Vec::new(),
            proxies: Vec::new(),
            etcd,
            folder,
            settings,
        };
        for id in 1..=nodes {
            cluster.add_node(binary, id)?;
        }
        for id in 1..=brokers {
            cluster.add_broker(binary, id)?;
        }
        cluster.add_proxy(binary)?;
        Ok(cluster)
    }

    /// Starts one more storage node.
    ///
    /// # Errors
    /// Where it does not start.
    pub fn add_node(&mut self, binary: &Path, id: u32) -> anyhow::Result<()> {
        let extra = format!(
            "[storage]\nid = {id}\ndata_dir = \"{}\"\ndata_listen = \"tcp://127.0.0.1:0\"\njournal_file_bytes = \"64MiB\"\n{}\n",
            self.folder.path().join(format!("node{id}")).display(),
            self.settings.storage
        );
        let place = usize::try_from(id)?.saturating_sub(1);
        let process = self.launch(binary, &format!("node{id}"), "storage", &extra, place)?;
        self.nodes.push(process);
        Ok(())
    }

    /// Starts one more broker, which is a controller too; 0 for one that is given its id.
    ///
    /// # Errors
    /// Where it does not start.
    pub fn add_broker(&mut self, binary: &Path, id: u32) -> anyhow::Result<()> {
        self.add_broker_with(binary, id, &[])
    }

    /// The same with settings of its own, each as in `--set`.
    ///
    /// # Errors
    /// Where it does not start.
    pub fn add_broker_with(&mut self, binary: &Path, id: u32, own: &[String]) -> anyhow::Result<()> {
        let extra = format!(
            "[broker]\nid = {id}\ndata_listen = \"tcp://127.0.0.1:0\"\nsession_ttl = \"3s\"\n{}\n",
            self.settings.broker
        );
        let name = format!("broker{}", self.brokers.len() + 1);
        let process = self.launch_with(binary, &name, "broker,controller", &extra, 0, own)?;
        self.brokers.push(process);
        Ok(())
    }

    /// Starts one more proxy.
    ///
    /// # Errors
    /// Where it does not start.
    pub fn add_proxy(&mut self, binary: &Path) -> anyhow::Result<()> {
        let name = format!("proxy{}", self.proxies.len() + 1);
        let process = self.launch(binary, &name, "proxy", "", 0)?;
        self.proxies.push(process);
        Ok(())
    }

    fn launch(
        &self,
        binary: &Path,
        name: &str,
        roles: &str,
        extra: &str,
        place: usize,
    ) -> anyhow::Result<Process> {
        self.launch_with(binary, name, roles, extra, place, &[])
    }

    fn launch_with(
        &self,
        binary: &Path,
        name: &str,
        roles: &str,
        extra: &str,
        place: usize,
        own: &[String],
    ) -> anyhow::Result<Process> {
        let zones = &self.settings.zones;
        let zone = zones.get(place % zones.len().max(1)).map_or("", String::as_str);
        let config = format!(
            "[metadata]\netcd = [\"{}\"]\n[listen]\ngrpc = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\nzone = \"{zone}\"\n{extra}{}",
            self.etcd.endpoint(),
            self.settings.all
        );
        let path = self.folder.path().join(format!("{name}.toml"));
        std::fs::write(&path, config)?;
        let args = ["serve", "--roles", roles, "--config"]
            .map(str::to_owned)
            .into_iter();
        let own = own.iter().flat_map(|one| ["--set".to_owned(), one.clone()]);
        let args: Vec<_> = args.chain([path.display().to_string()]).chain(own).collect();
        Process::start(name, binary, &args, self.folder.path())
    }

    /// Ends all processes but etcd as `kill -9` does.
    pub fn kill_all(&mut self) {
        for process in self.processes() {
            process.kill();
        }
    }

    fn processes(&mut self) -> impl Iterator<Item = &mut Process> {
        let (brokers, nodes, proxies) = (&mut self.brokers, &mut self.nodes, &mut self.proxies);
        brokers.iter_mut().chain(nodes).chain(proxies)
    }

    /// Configuration file of the process with a name, as `node1`.
    #[must_use]
    pub fn config(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(format!("{name}.toml"))
    }

    /// Folder that holds every process's data, configuration and log.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// A client of the proxies.
    ///
    /// # Errors
    /// Where none answers.
    pub async fn client(&self) -> anyhow::Result<Client> {
        let endpoints: Vec<_> = self.proxies.iter().map(|proxy| proxy.grpc.to_string()).collect();
        Client::connect(ClientConfig::new(endpoints))
            .await
            .context("no proxy answers")
    }
}
