//! A server of its own for each test, ingests beside it, and what the topic then holds.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use forebay_client::{Client, ClientConfig, ConsumerConfig, ConsumerRecord, StartPosition};
use forebay_tests::process::Process;
use rustix::process::{Pid, Signal, kill_process};

const DEADLINE: Duration = Duration::from_secs(60);

pub fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_forebay-under-test"))
}

/// A standalone server with a folder for files.
pub struct Bench {
    pub server: Process,
    pub folder: tempfile::TempDir,
    runtime: tokio::runtime::Runtime,
}

impl Bench {
    /// With topic `t` of that many partitions.
    pub fn start(partitions: u32) -> Self {
        Self::listening(partitions, "127.0.0.1:0")
    }

    pub fn listening(partitions: u32, address: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data").display().to_string();
        let args = ["standalone", "--data", &data, "--listen", address];
        let more = [
            "--admin-listen",
            "127.0.0.1:0",
            "--set",
            "storage.journal_file_bytes=16MiB",
        ];
        let args: Vec<_> = args.into_iter().chain(more).map(str::to_owned).collect();
        let server = Process::start("standalone", binary(), &args, folder.path()).unwrap();
        // Apart from data and logs, so that patterns find files of the test only.
        std::fs::create_dir(folder.path().join("files")).unwrap();
        let bench = Self {
            server,
            folder,
            runtime: tokio::runtime::Runtime::new().unwrap(),
        };
        bench.make_topic("t", partitions);
        bench
    }

    pub fn make_topic(&self, name: &str, partitions: u32) {
        let client = self.client();
        let admin = client.admin();
        let made = admin.create_topic(name, partitions, BTreeMap::new());
        self.runtime.block_on(made).unwrap();
    }

    pub fn delete_topic(&self, name: &str) {
        let admin = self.client().admin();
        self.runtime.block_on(admin.delete_topic(name)).unwrap();
    }

    fn client(&self) -> Client {
        let config = ClientConfig::new([self.server.grpc.to_string()]);
        self.runtime.block_on(Client::connect(config)).unwrap()
    }

    /// A path in the folder of files.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join("files").join(name)
    }

    fn log(&self, args: &[&str]) -> PathBuf {
        self.folder.path().join(format!("ingest-{}.log", args.len()))
    }

    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    pub fn append(&self, name: &str, bytes: impl AsRef<[u8]>) {
        let mut file = std::fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(self.path(name))
            .unwrap();
        file.write_all(bytes.as_ref()).unwrap();
    }

    /// The command `ingest`, to topic `t` unless the arguments name another; runs in the folder of files.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(binary());
        command.current_dir(self.path("")).arg("ingest").args(args);
        if !args.contains(&"--topic") {
            command.args(["--topic", "t"]);
        }
        command
            .args(["--server", &self.server.grpc.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Runs to its end.
    pub fn ingest(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Runs to its end, which must be a good one; its summary.
    pub fn ingested(&self, args: &[&str]) -> serde_json::Value {
        let args: Vec<_> = args.iter().copied().chain(["--format", "json"]).collect();
        summary(self.ingest(&args))
    }

    /// Starts one that goes on.
    pub fn start_ingest(&self, args: &[&str]) -> Running {
        let log = self.log(args);
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
            .unwrap();
        Running(self.command(args).stderr(log).spawn().unwrap())
    }

    /// What the ingests started with so many arguments said.
    pub fn said(&self, args: &[&str]) -> String {
        std::fs::read_to_string(self.log(args)).unwrap_or_default()
    }

    /// All records of a topic, by partition, in order.
    pub fn records(&self, topic: &str) -> BTreeMap<u32, Vec<ConsumerRecord>> {
        let client = self.client();
        self.runtime.block_on(async {
            let metadata = client.admin().metadata(&[topic]).await.unwrap();
            let mut consumer = client.consumer(ConsumerConfig::default()).unwrap();
            for partition in 0..metadata.topics[0].partitions {
                consumer
                    .assign(topic, partition, StartPosition::Earliest)
                    .await
                    .unwrap();
            }
            let mut found: BTreeMap<u32, Vec<_>> = BTreeMap::new();
            let mut until_end = consumer.until_end().await.unwrap();
            while let Some(batch) = until_end.next_batch().await.unwrap() {
                let partition = batch.partition;
                found
                    .entry(partition)
                    .or_default()
                    .extend(batch.into_iter().map(|record| record.unwrap()));
            }
            found
        })
    }

    /// The values of topic `t`, partition after partition.
    pub fn values(&self) -> Vec<Vec<u8>> {
        let records = self.records("t");
        let values = records.into_values().flatten();
        values.map(|record| record.value.unwrap().to_vec()).collect()
    }

    /// The values of topic `t` as text, each with a line feed.
    pub fn text(&self) -> String {
        let lines = self
            .values()
            .into_iter()
            .map(|value| String::from_utf8(value).unwrap() + "\n");
        lines.collect()
    }

    /// Records in topic `t`.
    pub fn count(&self) -> u64 {
        let admin = self.client().admin();
        let described = self.runtime.block_on(admin.describe_topic("t")).unwrap();
        let ends = described
            .partitions
            .iter()
            .map(|one| one.high_watermark.unwrap_or(0));
        ends.sum()
    }

    /// Waits until topic `t` has at least so many records.
    pub fn await_count(&self, wanted: u64) {
        await_that(&format!("{wanted} records"), || self.count() >= wanted);
    }

    /// Waits until the text of topic `t` is this.
    pub fn await_text(&self, wanted: &str) {
        let lines = wanted.lines().count() as u64;
        self.await_count(lines);
        let text = self.text();
        let differs = text
            .lines()
            .zip(wanted.lines())
            .find(|(found, wanted)| found != wanted);
        let (found, asked) = (text.lines().count(), wanted.lines().count());
        assert!(
            text == wanted,
            "{found} lines where {asked} are wanted, the first that differs: {differs:?}"
        );
    }
}

pub fn await_that(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !is_so() {
        assert!(Instant::now() < deadline, "not within {DEADLINE:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// An ingest that goes on; killed when dropped.
pub struct Running(pub Child);

impl Running {
    pub fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    pub fn signal(&self, signal: Signal) {
        let id = Pid::from_raw(i32::try_from(self.0.id()).unwrap()).unwrap();
        kill_process(id, signal).unwrap();
    }

    /// Asks it to end, and waits until it has; its exit code and what it printed.
    pub fn stop(mut self) -> (Option<i32>, String) {
        self.signal(Signal::TERM);
        let mut said = String::new();
        std::io::Read::read_to_string(&mut self.0.stdout.take().unwrap(), &mut said).unwrap();
        (self.0.wait().unwrap().code(), said)
    }

    /// Waits until it ends by itself; its exit code.
    pub fn wait(mut self) -> Option<i32> {
        let mut code = None;
        await_that("the ingest ends", || {
            code = self.0.try_wait().unwrap();
            code.is_some()
        });
        code.unwrap().code()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ended = self.0.kill();
        let _status = self.0.wait();
    }
}

/// The summary of one that ended well.
pub fn summary(output: Output) -> serde_json::Value {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{}: {said}", output.status);
    serde_json::from_slice(&output.stdout).unwrap()
}

/// What one that failed said.
pub fn complaint(output: &Output) -> String {
    assert!(!output.status.success(), "it ended well");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Numbered lines of different lengths.
pub fn lines(range: std::ops::Range<u32>) -> String {
    let line = |number: u32| format!("line {number:07} {}\n", "x".repeat((number as usize * 37) % 150));
    range.map(line).collect()
}
