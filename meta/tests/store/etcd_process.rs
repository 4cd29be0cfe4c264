//! Real etcd members on loopback, with free ports and temporary directories, ended by their process
//! ids.

use std::fs::File;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// One member. Killed when dropped.
pub struct Etcd {
    child: Option<Child>,
    dir: TempDir,
    client: u16,
    peer: u16,
    name: String,
    /// All members with their addresses.
    cluster: String,
    token: String,
}

fn free_ports() -> (u16, u16) {
    let bind = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let (one, two) = (bind(), bind());
    (one.local_addr().unwrap().port(), two.local_addr().unwrap().port())
}

impl Etcd {
    /// Starts one; it answers a moment later.
    pub fn start() -> Self {
        Self::start_cluster(1).remove(0)
    }

    /// Starts the members of one cluster.
    pub fn start_cluster(members: usize) -> Vec<Self> {
        let ports: Vec<(u16, u16)> = (0..members).map(|_| free_ports()).collect();
        let address = |(n, (_, peer)): (usize, &(u16, u16))| format!("m{n}=http://127.0.0.1:{peer}");
        let cluster = ports
            .iter()
            .enumerate()
            .map(address)
            .collect::<Vec<_>>()
            .join(",");
        let mut cluster: Vec<Self> = ports
            .into_iter()
            .enumerate()
            .map(|(n, (client, peer))| Self {
                child: None,
                dir: tempfile::tempdir().unwrap(),
                client,
                peer,
                name: format!("m{n}"),
                cluster: cluster.clone(),
                token: "first".to_owned(),
            })
            .collect();
        cluster.iter_mut().for_each(Self::run);
        cluster
    }

    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.client)
    }

    pub fn port(&self) -> u16 {
        self.client
    }

    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    pub fn scratch(&self) -> &Path {
        self.dir.path()
    }

    /// Runs it again on the same ports and data.
    pub fn run(&mut self) {
        assert!(self.child.is_none(), "it runs already");
        let client = self.endpoint();
        let peer = format!("http://127.0.0.1:{}", self.peer);
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.dir.path().join("log"))
            .unwrap();
        let child = Command::new("etcd")
            .args(["--name", &self.name, "--logger", "zap", "--log-level", "warn"])
            .args(["--heartbeat-interval", "20", "--election-timeout", "200"])
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
            .args(["--initial-cluster", &self.cluster])
            .args(["--initial-cluster-token", &self.token])
            .args(["--experimental-watch-progress-notify-interval", "1s"])
            .arg("--data-dir")
            .arg(self.data())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("etcd is installed");
        self.child = Some(child);
    }

    /// Kill -9.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Removes the data and takes another cluster id, as a rebuilt etcd has.
    pub fn wipe(&mut self) {
        self.kill();
        std::fs::remove_dir_all(self.data()).unwrap();
        self.token = "second".to_owned();
    }

    /// Stops or continues the process without ending it. When this returns it has stopped: a thread that
    /// runs at the moment of the signal may answer for a while yet.
    pub fn signal(&self, name: &str) {
        let pid = self.child.as_ref().unwrap().id().to_string();
        let status = Command::new("kill").args([name, &pid]).status().unwrap();
        assert!(status.success());
        if name == "-STOP" {
            let begun = Instant::now();
            while !has_stopped(&pid) {
                assert!(begun.elapsed() < Duration::from_secs(10), "etcd does not stop");
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
}

/// Whether all threads of a process are stopped.
fn has_stopped(pid: &str) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    threads.flatten().all(|thread| {
        // "1234 (name) T ...": a thread that has ended meanwhile does nothing more.
        let stat = std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        stat.rsplit_once(')')
            .is_none_or(|(_, rest)| rest.trim_start().starts_with('T'))
    })
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Copies a directory with all below it.
pub fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}
