//! One etcd member.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;

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

fn launch(folder: &tempfile::TempDir, client_port: u16, peer_port: u16) -> anyhow::Result<Child> {
    let client = format!("http://127.0.0.1:{client_port}");
    let peer = format!("http://127.0.0.1:{peer_port}");
    let log = std::fs::File::create(folder.path().join("etcd.log"))?;
    Command::new("etcd")
        .args(["--name", "n1", "--data-dir"])
        .arg(folder.path().join("data"))
        .args([
            "--listen-client-urls",
            &client,
            "--advertise-client-urls",
            &client,
        ])
        .args([
            "--listen-peer-urls",
            &peer,
            "--initial-advertise-peer-urls",
            &peer,
        ])
        .args([
            "--initial-cluster",
            &format!("n1={peer}"),
            "--initial-cluster-state",
            "new",
        ])
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
