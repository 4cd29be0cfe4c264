//! What one run of one subject showed, in the units that every table and JSON file uses.
//!
//! A subject hands in plain counts ([`Counts`]); rates and ratios are derived here once, so that
//! a CPU second per GiB means the same for a bare loop and for a cluster. A GiB is a GiB of
//! record batches acknowledged (or fetched), counted once however many replicas it has.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

const MIB: f64 = (1_u64 << 20) as f64;
const GIB: f64 = (1_u64 << 30) as f64;
/// Name of the role that makes the load; its CPU is shown apart.
pub const CLIENT: &str = "client";

/// Latencies of one run, in microseconds, to three digits.
#[derive(Debug)]
pub struct Latencies(Histogram<u64>);

impl Latencies {
    const LONGEST_US: u64 = 600_000_000;

    /// None yet; up to ten minutes each.
    ///
    /// # Errors
    /// Never with these bounds; the histogram's constructor checks them at run time.
    pub fn new() -> anyhow::Result<Self> {
        Ok(Self(Histogram::new_with_bounds(1, Self::LONGEST_US, 3)?))
    }

    /// Takes one in; longer than the bound counts as the bound.
    pub fn record(&mut self, latency: Duration) {
        let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        self.0.saturating_record(micros.clamp(1, Self::LONGEST_US));
    }

    /// The quantiles that are reported.
    #[must_use]
    pub fn quantiles(&self) -> Quantiles {
        Quantiles {
            p50: self.0.value_at_quantile(0.5),
            p99: self.0.value_at_quantile(0.99),
            p999: self.0.value_at_quantile(0.999),
            max: self.0.max(),
        }
    }
}

/// Latency in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quantiles {
    /// Half were at most this long.
    pub p50: u64,
    /// 99 of 100.
    pub p99: u64,
    /// 999 of 1000.
    pub p999: u64,
    /// The longest.
    pub max: u64,
}

/// What a load program tells its parent: its own share of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClientCounts {
    /// Bytes of record batches acknowledged or fetched.
    pub bytes: u64,
    /// Records in them.
    pub records: u64,
    /// From the first byte handed over to the last answer.
    pub elapsed: Duration,
    /// One per batch; none where nothing was timed singly.
    pub latency_us: Option<Quantiles>,
    /// User and system time of the load program in that span.
    pub cpu: Duration,
}

/// Plain counts of one run.
#[derive(Debug, Clone, PartialEq)]
pub struct Counts {
    /// The load program's.
    pub client: ClientCounts,
    /// CPU time by role, the client's left out; several processes of a role are summed.
    pub cpu: BTreeMap<String, Duration>,
    /// Most resident memory of any process of the role, in bytes.
    pub rss_peak: BTreeMap<String, u64>,
    /// What the disks did; none for a run that does not write.
    pub disk: Option<DiskCounts>,
}

/// What went to disk, summed over all nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DiskCounts {
    /// Bytes written, padding and headers included, preparation of new files left out.
    pub written: u64,
    /// Bytes written to prepare new files.
    pub zeroed: u64,
    /// Flushes.
    pub fsyncs: u64,
}

impl DiskCounts {
    /// What happened since `earlier`.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Self {
        Self {
            written: self.written.saturating_sub(earlier.written),
            zeroed: self.zeroed.saturating_sub(earlier.zeroed),
            fsyncs: self.fsyncs.saturating_sub(earlier.fsyncs),
        }
    }

    /// Both together.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self {
            written: self.written + other.written,
            zeroed: self.zeroed + other.zeroed,
            fsyncs: self.fsyncs + other.fsyncs,
        }
    }
}

/// One run, in the units of the report.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measurement {
    /// Bytes of record batches acknowledged or fetched.
    pub bytes: u64,
    /// Length of the run.
    pub seconds: f64,
    /// Throughput.
    pub mib_per_s: f64,
    /// Per batch, where it was timed.
    pub latency_us: Option<Quantiles>,
    /// CPU seconds per GiB by role, the client among them.
    pub cpu_s_per_gib: BTreeMap<String, f64>,
    /// Of all roles together, client included.
    pub cpu_s_per_gib_total: f64,
    /// Bytes written per byte acknowledged, over all replicas.
    pub written_per_byte: Option<f64>,
    /// Bytes of new files prepared per byte acknowledged.
    pub zeroed_per_byte: Option<f64>,
    /// Flushes a second over all nodes.
    pub fsyncs_per_s: Option<f64>,
    /// Peak resident memory in MiB by role, of the largest process of the role.
    pub rss_peak_mib: BTreeMap<String, f64>,
}

impl From<&Counts> for Measurement {
    fn from(counts: &Counts) -> Self {
        let client = &counts.client;
        let bytes = client.bytes.max(1) as f64;
        let seconds = client.elapsed.as_secs_f64().max(1e-9);
        let per_gib = |cpu: Duration| cpu.as_secs_f64() / (bytes / GIB);
        let mut cpu: BTreeMap<String, f64> = counts
            .cpu
            .iter()
            .map(|(role, cpu)| (role.clone(), per_gib(*cpu)))
            .collect();
        cpu.insert(CLIENT.to_owned(), per_gib(client.cpu));
        let disk = counts.disk;
        Self {
            bytes: client.bytes,
            seconds,
            mib_per_s: bytes / MIB / seconds,
            latency_us: client.latency_us,
            cpu_s_per_gib_total: cpu.values().sum(),
            cpu_s_per_gib: cpu,
            written_per_byte: disk.map(|disk| disk.written as f64 / bytes),
            zeroed_per_byte: disk.map(|disk| disk.zeroed as f64 / bytes),
            fsyncs_per_s: disk.map(|disk| disk.fsyncs as f64 / seconds),
            rss_peak_mib: counts
                .rss_peak
                .iter()
                .map(|(role, rss)| (role.clone(), *rss as f64 / MIB))
                .collect(),
        }
    }
}

impl Measurement {
    /// The median of each field by itself; none of none. A field that some rounds lack is the
    /// median of those that have it.
    #[must_use]
    pub fn median(rounds: &[Self]) -> Option<Self> {
        let of = |field: &dyn Fn(&Self) -> Option<f64>| {
            median(&rounds.iter().filter_map(field).collect::<Vec<_>>())
        };
        let latency = |field: &dyn Fn(&Quantiles) -> u64| {
            of(&|round| round.latency_us.as_ref().map(|latency| field(latency) as f64))
                .map(|micros| micros as u64)
        };
        Some(Self {
            bytes: of(&|round| Some(round.bytes as f64))? as u64,
            seconds: of(&|round| Some(round.seconds))?,
            mib_per_s: of(&|round| Some(round.mib_per_s))?,
            latency_us: latency(&|latency| latency.p50)
                .zip(latency(&|latency| latency.p99))
                .zip(latency(&|latency| latency.p999).zip(latency(&|latency| latency.max)))
                .map(|((p50, p99), (p999, max))| Quantiles { p50, p99, p999, max }),
            cpu_s_per_gib: medians(rounds.iter().map(|round| &round.cpu_s_per_gib)),
            cpu_s_per_gib_total: of(&|round| Some(round.cpu_s_per_gib_total))?,
            written_per_byte: of(&|round| round.written_per_byte),
            zeroed_per_byte: of(&|round| round.zeroed_per_byte),
            fsyncs_per_s: of(&|round| round.fsyncs_per_s),
            rss_peak_mib: medians(rounds.iter().map(|round| &round.rss_peak_mib)),
        })
    }
}

fn medians<'a>(maps: impl Iterator<Item = &'a BTreeMap<String, f64>>) -> BTreeMap<String, f64> {
    let mut values = BTreeMap::<&str, Vec<f64>>::new();
    for (key, value) in maps.flatten() {
        values.entry(key).or_default().push(*value);
    }
    values
        .into_iter()
        .filter_map(|(key, values)| Some((key.to_owned(), median(&values)?)))
        .collect()
}

/// The middle value, or the mean of the two in the middle; none of none.
#[must_use]
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let upper = *sorted.get(sorted.len() / 2)?;
    if sorted.len() % 2 == 1 {
        return Some(upper);
    }
    sorted
        .get(sorted.len() / 2 - 1)
        .map(|lower| f64::midpoint(*lower, upper))
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing
    )]

    use super::*;

    #[test]
    fn the_median_of_an_even_number_lies_between_the_middle_two() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0]), Some(3.0));
        assert_eq!(median(&[5.0, 1.0, 3.0]), Some(3.0));
        assert_eq!(median(&[4.0, 1.0, 3.0, 2.0]), Some(2.5));
    }

    #[test]
    fn rates_are_per_gib_acknowledged_once_and_the_client_counts_as_a_role() {
        let counts = Counts {
            client: ClientCounts {
                bytes: 1 << 29,
                records: 1 << 19,
                elapsed: Duration::from_secs(2),
                latency_us: None,
                cpu: Duration::from_millis(250),
            },
            cpu: BTreeMap::from([("storage".to_owned(), Duration::from_millis(500))]),
            rss_peak: BTreeMap::from([("storage".to_owned(), 64 << 20)]),
            disk: Some(DiskCounts {
                written: 3 << 29,
                zeroed: 1 << 29,
                fsyncs: 600,
            }),
        };
        let measured = Measurement::from(&counts);
        assert_eq!(measured.mib_per_s, 256.0);
        assert_eq!(measured.cpu_s_per_gib["storage"], 1.0);
        assert_eq!(measured.cpu_s_per_gib[CLIENT], 0.5);
        assert_eq!(measured.cpu_s_per_gib_total, 1.5);
        assert_eq!(measured.written_per_byte, Some(3.0));
        assert_eq!(measured.zeroed_per_byte, Some(1.0));
        assert_eq!(measured.fsyncs_per_s, Some(300.0));
        assert_eq!(measured.rss_peak_mib["storage"], 64.0);
    }
}
