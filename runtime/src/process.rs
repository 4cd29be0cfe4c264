//! What a process takes from its machine, read when somebody asks.
//!
//! CPU time, memory, threads and open files come from the kernel, tasks and queues from tokio.
//! What the kernel does not tell is left out of the page rather than shown as zero.

use std::fs;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use rustix::time::{ClockId, clock_gettime};
use tokio::runtime::Handle;

use crate::clock::Clock;
use crate::metrics::{Description, Metrics};

const CPU: (&str, &str) = (
    "forebay_process_cpu_seconds",
    "CPU time that the process has used",
);
const RESIDENT: (&str, &str) = ("forebay_process_resident_memory_bytes", "Memory in RAM");
const THREADS: (&str, &str) = ("forebay_process_threads", "Threads of the operating system");
const OPEN_FDS: (&str, &str) = ("forebay_process_open_fds", "Open files and sockets");
const MAX_FDS: (&str, &str) = (
    "forebay_process_max_fds",
    "Files and sockets that may be open at once",
);
const START: (&str, &str) = (
    "forebay_process_start_time_seconds",
    "When the process started, seconds since 1970",
);
const TASKS: (&str, &str) = ("forebay_tokio_tasks", "Tasks that are alive");
const WORKERS: (&str, &str) = ("forebay_tokio_workers", "Threads that run tasks");
const BUSY: (&str, &str) = (
    "forebay_tokio_busy_seconds",
    "Time that the threads which run tasks were busy",
);
const QUEUE: (&str, &str) = ("forebay_tokio_queue_tasks", "Tasks that wait for any thread");

#[derive(Debug)]
struct Process {
    started_seconds: f64,
    runtime: Handle,
}

/// Shows the process and its runtime; call it inside the runtime.
pub fn register(metrics: &Metrics, clock: &dyn Clock) {
    let process = Process {
        started_seconds: Duration::from_millis(u64::try_from(clock.now_unix_ms()).unwrap_or_default())
            .as_secs_f64(),
        runtime: Handle::current(),
    };
    let describe = |(name, help): (&str, &str), kind: &'static str| Description {
        name: match kind {
            "counter" => format!("{name}_total"),
            _ => name.to_owned(),
        },
        kind,
        labels: Vec::new(),
        help: help.to_owned(),
    };
    let gauges = [RESIDENT, THREADS, OPEN_FDS, MAX_FDS, START, TASKS, WORKERS, QUEUE];
    let descriptions = [CPU, BUSY]
        .map(|one| describe(one, "counter"))
        .into_iter()
        .chain(gauges.map(|one| describe(one, "gauge")));
    metrics.collect("process", process, descriptions.collect());
    let labels = ["version", "profile"];
    let profile = if cfg!(debug_assertions) {
        "debug"
    } else {
        "release"
    };
    metrics
        .gauges("build_info", "1, with what the process was built from", labels)
        .with([env!("CARGO_PKG_VERSION"), profile])
        .set(1);
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let cpu = clock_gettime(ClockId::ProcessCPUTime);
        counter(&mut encoder, CPU, cpu.tv_sec as f64 + cpu.tv_nsec as f64 / 1e9)?;
        gauge(&mut encoder, START, Some(self.started_seconds))?;
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let kib = field(&status, "VmRSS:");
        gauge(&mut encoder, RESIDENT, kib.map(|kib| kib * 1024.0))?;
        gauge(&mut encoder, THREADS, field(&status, "Threads:"))?;
        let open = fs::read_dir("/proc/self/fd").map(Iterator::count).ok();
        gauge(&mut encoder, OPEN_FDS, open.map(|open| open as f64))?;
        let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
        gauge(&mut encoder, MAX_FDS, field(&limits, "Max open files"))?;
        let tokio = self.runtime.metrics();
        let busy: Duration = (0..tokio.num_workers())
            .map(|worker| tokio.worker_total_busy_duration(worker))
            .sum();
        counter(&mut encoder, BUSY, busy.as_secs_f64())?;
        gauge(&mut encoder, TASKS, Some(tokio.num_alive_tasks() as f64))?;
        gauge(&mut encoder, WORKERS, Some(tokio.num_workers() as f64))?;
        gauge(&mut encoder, QUEUE, Some(tokio.global_queue_depth() as f64))
    }
}

/// The first number after a name at the beginning of a line.
fn field(text: &str, name: &str) -> Option<f64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    rest.split_whitespace().next()?.parse().ok()
}

fn counter(
    encoder: &mut DescriptorEncoder<'_>,
    (name, help): (&str, &str),
    value: f64,
) -> Result<(), std::fmt::Error> {
    let metric = ConstCounter::new(value);
    metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)
}

fn gauge(
    encoder: &mut DescriptorEncoder<'_>,
    (name, help): (&str, &str),
    value: Option<f64>,
) -> Result<(), std::fmt::Error> {
    let Some(value) = value else { return Ok(()) };
    let metric = ConstGauge::new(value);
    metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::clock::SystemClock;

    #[tokio::test]
    async fn a_process_shows_what_it_takes() {
        let metrics = Metrics::new();
        register(&metrics, &SystemClock::new());
        // Twice in one process is once on the page.
        register(&metrics, &SystemClock::new());
        let text = metrics.encode().unwrap();
        let value = |name: &str| -> f64 {
            let found: Vec<_> = text
                .lines()
                .filter_map(|line| line.strip_prefix(name)?.strip_prefix(' '))
                .collect();
            assert_eq!(found.len(), 1, "{name} in {text}");
            found.first().unwrap().parse().unwrap()
        };
        assert!(value("forebay_process_resident_memory_bytes") > 1e6);
        assert!(value("forebay_process_cpu_seconds_total") > 0.0);
        assert!(value("forebay_process_threads") >= 1.0);
        assert!(value("forebay_process_open_fds") < value("forebay_process_max_fds"));
        assert!(value("forebay_process_start_time_seconds") > 1.7e9);
        assert!(text.contains("forebay_build_info{version=\""), "{text}");
        for described in metrics.describe() {
            assert!(text.contains(&described.name), "{} in {text}", described.name);
        }
    }

    #[test]
    fn fields_are_read_by_name() {
        let text = "Name:\tx\nVmRSS:\t  12 kB\nMax open files            1024                 4096   files\n";
        assert_eq!(field(text, "VmRSS:"), Some(12.0));
        assert_eq!(field(text, "Max open files"), Some(1024.0));
        assert_eq!(field(text, "Threads:"), None);
    }
}
