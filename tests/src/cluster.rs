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
    settings: String,
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
        let folder = tempfile::tempdir()?;
        let etcd = Etcd::start()?;
        let mut cluster = Self {
            brokers: Vec::new(),
            nodes: Vec::new(),
            proxies: Vec::new(),
            etcd,
            folder,
            settings: settings.to_owned(),
        };
        for id in 1..=nodes {
            let extra = format!(
                "[storage]\nid = {id}\ndata_dir = \"{}\"\ndata_listen = \"tcp://127.0.0.1:0\"\njournal_file_bytes = \"64MiB\"\n",
                cluster.folder.path().join(format!("node{id}")).display()
            );
            let process = cluster.launch(binary, &format!("node{id}"), "storage", &extra)?;
            cluster.nodes.push(process);
        }
        for id in 1..=brokers {
            cluster.add_broker(binary, id)?;
        }
        let process = cluster.launch(binary, "proxy1", "proxy", "")?;
        cluster.proxies.push(process);
        Ok(cluster)
    }

    /// Starts one more broker, which is a controller too; 0 for one that is given its id.
    ///
    /// # Errors
    /// Where it does not start.
    pub fn add_broker(&mut self, binary: &Path, id: u32) -> anyhow::Result<()> {
        let extra =
            format!("[broker]\nid = {id}\ndata_listen = \"tcp://127.0.0.1:0\"\nsession_ttl = \"3s\"\n");
        let name = format!("broker{}", self.brokers.len() + 1);
        let process = self.launch(binary, &name, "broker,controller", &extra)?;
        self.brokers.push(process);
        Ok(())
    }

    fn launch(&self, binary: &Path, name: &str, roles: &str, extra: &str) -> anyhow::Result<Process> {
        let config = format!(
            "[metadata]\netcd = [\"{}\"]\n[listen]\ngrpc = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\n{extra}{}",
            self.etcd.endpoint(),
            self.settings
        );
        let path = self.folder.path().join(format!("{name}.toml"));
        std::fs::write(&path, config)?;
        let args = ["serve", "--roles", roles, "--config"]
            .map(str::to_owned)
            .into_iter();
        let args: Vec<_> = args.chain([path.display().to_string()]).collect();
        Process::start(name, binary, &args, self.folder.path())
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
