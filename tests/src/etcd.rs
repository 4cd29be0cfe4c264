//! One etcd member, and what any member of a cluster is started with.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;

/// One member of an etcd cluster.
#[derive(Debug, Clone)]
pub struct Member {
    /// Its name among the members.
    pub name: String,
    /// Folder of its data.
    pub data: PathBuf,
    /// URL for clients.
    pub client: String,
    /// URL for the other members.
    pub peer: String,
}

impl Member {
    /// What etcd is started with, the first time and every other time; `all` has this one too.
    #[must_use]
    pub fn args(&self, all: &[Self]) -> Vec<String> {
        let cluster: Vec<_> = all
            .iter()
            .map(|member| format!("{}={}", member.name, member.peer))
            .collect();
        let data = self.data.display().to_string();
        let cluster = cluster.join(",");
        [
            ("--name", self.name.as_str()),
            ("--data-dir", &data),
            ("--listen-client-urls", &self.client),
            ("--advertise-client-urls", &self.client),
            ("--listen-peer-urls", &self.peer),
            ("--initial-advertise-peer-urls", &self.peer),
            ("--initial-cluster", &cluster),
            ("--initial-cluster-state", "new"),
        ]
        .into_iter()
        .flat_map(|(flag, value)| [flag.to_owned(), value.to_owned()])
        .collect()
    }
}

/// A running etcd, killed when dropped.
#[derive(Debug)]
pub struct Etcd {
    child: Child,
    client_port: u16,
    peer_port: u16,
    folder: tempfile::TempDir,
}

fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

impl Etcd {
    /// Starts a member of its own.
    ///
    /// # Errors
    /// Where etcd is not installed or does not come up.
    pub fn start() -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let (client_port, peer_port) = (free_port()?, free_port()?);
        let child = launch(&folder, client_port, peer_port)?;
        let mut etcd = Self {
            child,
            client_port,
            peer_port,
            folder,
        };
        etcd.wait_until_up()?;
        Ok(etcd)
    }

    /// Its client endpoint.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.client_port)
    }

    /// Ends it as a power cut would.
    pub fn kill(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Starts it again over its data.
    ///
    /// # Errors
    /// Where it does not come up.
    pub fn restart(&mut self) -> anyhow::Result<()> {
        self.child = launch(&self.folder, self.client_port, self.peer_port)?;
        self.wait_until_up()
    }

    /// Writes a snapshot of everything it holds.
    ///
    /// # Errors
    /// Where `etcdctl` is not installed or fails.
    pub fn save(&self, path: &Path) -> anyhow::Result<()> {
        let endpoint = format!("--endpoints={}", self.endpoint());
        etcdctl(&[&endpoint, "snapshot", "save", &path.display().to_string()])
    }

    /// Goes back to a snapshot; ends and starts it.
    ///
    /// # Errors
    /// Where `etcdctl` fails, or it does not come up.
    pub fn restore(&mut self, path: &Path) -> anyhow::Result<()> {
        self.kill();
        let data = self.folder.path().join("data");
        std::fs::remove_dir_all(&data)?;
        let peer = format!("http://127.0.0.1:{}", self.peer_port);
        etcdctl(&[
            "snapshot",
            "restore",
            &path.display().to_string(),
            "--name=n1",
            &format!("--data-dir={}", data.display()),
            &format!("--initial-cluster=n1={peer}"),
            &format!("--initial-advertise-peer-urls={peer}"),
        ])?;
        self.restart()
    }

    fn wait_until_up(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + Duration::from_secs(20);
        let address = ([127, 0, 0, 1], self.client_port).into();
        loop {
            if std::net::TcpStream::connect_timeout(&address, Duration::from_millis(200)).is_ok() {
                return Ok(());
            }
            if let Some(status) = self.child.try_wait()? {
                anyhow::bail!("etcd ended with {status}");
            }
            anyhow::ensure!(
                Instant::now() < deadline,
                "etcd does not answer on port {}",
                self.client_port
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn etcdctl(args: &[&str]) -> anyhow::Result<()> {
    let done = Command::new("etcdctl")
        .env("ETCDCTL_API", "3")
        .args(args)
        .stdin(Stdio::null())
        .output()
        .context("cannot start etcdctl; `./dev test` installs it")?;
    anyhow::ensure!(
        done.status.success(),
        "etcdctl {args:?}: {}",
        String::from_utf8_lossy(&done.stderr)
    );
    Ok(())
}

fn launch(folder: &tempfile::TempDir, client_port: u16, peer_port: u16) -> anyhow::Result<Child> {
    let member = Member {
        name: "n1".to_owned(),
        data: folder.path().join("data"),
        client: format!("http://127.0.0.1:{client_port}"),
        peer: format!("http://127.0.0.1:{peer_port}"),
    };
    let log = std::fs::File::create(folder.path().join("etcd.log"))?;
    Command::new("etcd")
        .args(member.args(std::slice::from_ref(&member)))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .context("cannot start etcd; `./dev test` installs it")
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.kill();
    }
}
