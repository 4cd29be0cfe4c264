//! A real S3 server on loopback: SeaweedFS, with free ports and a temporary folder, ended by its process
//! id. `WEED_BINARY` names the binary; otherwise it is searched as `weed`.

use std::fs::File;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use tempfile::TempDir;

pub const ACCESS_KEY: &str = "testkey";
pub const SECRET: &str = "testsecret";
pub const BUCKET: &str = "tier";

const DEADLINE: Duration = Duration::from_secs(30);

/// What listens, in the order of the ports.
const PORTS: [&str; 10] = [
    "s3",
    "s3.grpc",
    "master",
    "master.grpc",
    "filer",
    "filer.grpc",
    "volume",
    "volume.grpc",
    "admin",
    "admin.grpc",
];

/// A server with one bucket. Killed when the last one who uses it is done.
pub struct Weed {
    child: Child,
    dir: TempDir,
    s3: u16,
    /// Sockets whose place cannot be chosen.
    sockets: Vec<PathBuf>,
}

/// The server that all tests of this process share.
pub fn weed() -> Arc<Weed> {
    static SHARED: Mutex<Weak<Weed>> = Mutex::new(Weak::new());
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(weed) = shared.upgrade() {
        return weed;
    }
    let weed = Arc::new(Weed::start());
    *shared = Arc::downgrade(&weed);
    weed
}

fn sockets(ports: &[u16]) -> Vec<PathBuf> {
    let grpc = PORTS.iter().zip(ports).filter_map(|(name, port)| {
        let part = name.strip_suffix(".grpc")?;
        Some(std::env::temp_dir().join(format!("seaweedfs-{part}-grpc-{port}.sock")))
    });
    grpc.collect()
}

impl Weed {
    fn start() -> Self {
        // All bound at once, so that they differ.
        let held: Vec<TcpListener> = (0..10)
            .map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap())
            .collect();
        let ports: Vec<u16> = held
            .iter()
            .map(|port| port.local_addr().unwrap().port())
            .collect();
        drop(held);
        let dir = tempfile::tempdir().unwrap();
        let log = File::create(dir.path().join("log")).unwrap();
        let data = dir.path().join("data");
        std::fs::create_dir(&data).unwrap();
        let binary = std::env::var("WEED_BINARY").unwrap_or_else(|_| "weed".to_owned());
        let mut command = Command::new(&binary);
        command
            .args(["-logtostderr", "mini", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"])
            .arg(format!("-dir={}", data.display()))
            .args(["-admin.ui=false", "-webdav=false", "-master.telemetry=false"])
            .args([
                "-s3.port.iceberg=0",
                "-s3.port.lance=0",
                "-s3.autoCreateBucket=false",
            ])
            .arg(format!(
                "-s3.localSocket={}",
                dir.path().join("s3.sock").display()
            ))
            .arg(format!(
                "-filer.localSocket={}",
                dir.path().join("filer.sock").display()
            ))
            .arg(format!("-bucket={BUCKET}"));
        for (name, port) in PORTS.iter().zip(&ports) {
            let (part, grpc) = name
                .split_once('.')
                .map_or((*name, ""), |(part, _)| (part, ".grpc"));
            command.arg(format!("-{part}.port{grpc}={port}"));
        }
        let child = command
            .env("AWS_ACCESS_KEY_ID", ACCESS_KEY)
            .env("AWS_SECRET_ACCESS_KEY", SECRET)
            .env("GOMEMLIMIT", "300MiB")
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| {
                panic!("{binary}: {error}; ./dev test installs it, WEED_BINARY names it")
            });
        let mut weed = Self {
            child,
            dir,
            s3: ports[0],
            sockets: sockets(&ports),
        };
        weed.wait();
        weed
    }

    /// Waits until the port is served; the first request waits for the bucket.
    fn wait(&mut self) {
        let started = Instant::now();
        while TcpStream::connect((Ipv4Addr::LOCALHOST, self.s3)).is_err() {
            let ended = self.child.try_wait().unwrap();
            assert!(
                ended.is_none() && started.elapsed() < DEADLINE,
                "weed does not serve ({ended:?}): {}",
                std::fs::read_to_string(self.dir.path().join("log")).unwrap()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.s3)
    }

    pub fn port(&self) -> u16 {
        self.s3
    }
}

impl Drop for Weed {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        for socket in &self.sockets {
            // Those of parts that never came up do not exist.
            std::fs::remove_file(socket).ok();
        }
    }
}
