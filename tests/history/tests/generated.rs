//! Histories of a log that is right pass, and no single lie about such a log passes.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use forebay_history::{ChainRecord, ChainSegment, Event, History, Produced, Rule, Rules, Value, check};
use proptest::prelude::*;

/// What happens next in a made history.
#[derive(Debug, Clone, Copy)]
enum Step {
    /// Sends a record that is answered as the number says, if at all.
    Produce {
        producer: u64,
        partition: u64,
        answer: u8,
    },
    /// A tailing reader is given the next records.
    Tail {
        reader: u64,
        partition: u64,
        records: u8,
    },
    /// The open segment is sealed, and another opened.
    Roll { partition: u64 },
    /// A reader scans all.
    Scan { partition: u64 },
    /// Retention drops a few records.
    Trim { partition: u64, records: u8 },
}

const PARTITIONS: u64 = 2;

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let partition = 0..PARTITIONS;
    let produce =
        (0..3_u64, partition.clone(), 0..10_u8).prop_map(|(producer, partition, answer)| Step::Produce {
            producer,
            partition,
            answer,
        });
    let tail = (0..2_u64, partition.clone(), 1..6_u8).prop_map(|(reader, partition, records)| Step::Tail {
        reader,
        partition,
        records,
    });
    let roll = partition.clone().prop_map(|partition| Step::Roll { partition });
    let scan = partition.clone().prop_map(|partition| Step::Scan { partition });
    let trim = (partition, 1..4_u8).prop_map(|(partition, records)| Step::Trim { partition, records });
    prop::collection::vec(
        prop_oneof![12 => produce, 6 => tail, 2 => roll, 1 => scan, 1 => trim],
        20..150,
    )
}

#[derive(Default)]
struct Partition {
    log: Vec<Value>,
    log_start: usize,
    sent: [u64; 3],
    tails: [Option<usize>; 2],
    segments: Vec<ChainSegment>,
    scans: u64,
}

#[derive(Default)]
struct Made {
    events: Vec<Event>,
    partitions: Vec<Partition>,
    values: u64,
    revision: u64,
}

impl Made {
    fn of(steps: &[Step]) -> History {
        let mut made = Self {
            partitions: (0..PARTITIONS).map(|_| Partition::default()).collect(),
            ..Self::default()
        };
        for partition in 0..PARTITIONS {
            made.roll(partition);
            for producer in 0..3 {
                made.produce(producer, partition, 0);
                made.produce(producer, partition, 0);
            }
        }
        for step in steps {
            made.step(*step);
        }
        for partition in 0..PARTITIONS {
            made.produce(0, partition, 0);
            made.produce(1, partition, 0);
        }
        made.events.push(Event::Quiesced);
        for partition in 0..PARTITIONS {
            made.roll(partition);
            for _ in 0..2 {
                made.scan(partition);
            }
        }
        let mut history = History::new();
        for (at, event) in (0..).zip(made.events) {
            history.push(at, event);
        }
        history
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Produce {
                producer,
                partition,
                answer,
            } => self.produce(producer, partition, answer),
            Step::Tail {
                reader,
                partition,
                records,
            } => self.tail(reader, partition, records),
            Step::Roll { partition } => self.roll(partition),
            Step::Scan { partition } => self.scan(partition),
            Step::Trim { partition, records } => {
                let of = &mut self.partitions[partition as usize];
                // Something is always kept, so that every lie finds its place.
                of.log_start = (of.log_start + usize::from(records)).min(of.log.len() - 3);
                let offset = of.log_start as u64;
                self.events.push(Event::RetentionAllowed {
                    partition,
                    until: offset,
                });
                self.events.push(Event::LogStartSeen { partition, offset });
            }
        }
    }

    fn produce(&mut self, producer: u64, partition: u64, answer: u8) {
        self.values += 1;
        let value = Value(self.values.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let of = &mut self.partitions[partition as usize];
        let sequence = of.sent[producer as usize];
        of.sent[producer as usize] += 1;
        let record = Produced {
            producer,
            partition,
            sequence,
        };
        let offset = of.log.len() as u64;
        self.events.push(Event::Begun { record, value });
        match answer {
            0..=5 => {
                of.log.push(value);
                self.events.push(Event::Acked {
                    record,
                    offset: Some(offset),
                });
            }
            6 => self.events.push(Event::Failed { record }),
            7 => {
                of.log.push(value);
                self.events.push(Event::Unknown { record });
            }
            8 => self.events.push(Event::Unknown { record }),
            _ => of.log.push(value),
        }
    }

    fn tail(&mut self, reader: u64, partition: u64, records: u8) {
        let of = &mut self.partitions[partition as usize];
        let next = match of.tails[reader as usize] {
            Some(next) if next >= of.log_start => next,
            _ => {
                self.events.push(Event::ScanBegun {
                    reader,
                    partition,
                    from: of.log_start as u64,
                });
                of.log_start
            }
        };
        let end = (next + usize::from(records)).min(of.log.len());
        for offset in next..end {
            self.events.push(Event::Read {
                reader,
                partition,
                offset: offset as u64,
                value: of.log[offset],
            });
        }
        of.tails[reader as usize] = Some(end);
    }

    fn scan(&mut self, partition: u64) {
        let of = &mut self.partitions[partition as usize];
        of.scans += 1;
        let reader = 100 + of.scans;
        self.events.push(Event::ScanBegun {
            reader,
            partition,
            from: of.log_start as u64,
        });
        for (offset, value) in of.log.iter().enumerate().skip(of.log_start) {
            self.events.push(Event::Read {
                reader,
                partition,
                offset: offset as u64,
                value: *value,
            });
        }
        self.events.push(Event::ScanEnded {
            reader,
            partition,
            until: of.log.len() as u64,
            log_start: Some(of.log_start as u64),
            high_watermark: Some(of.log.len() as u64),
        });
    }

    fn roll(&mut self, partition: u64) {
        self.revision += 1;
        let of = &mut self.partitions[partition as usize];
        let end = of.log.len() as u64;
        if let Some(open) = of.segments.last_mut() {
            if open.base == end {
                return;
            }
            open.end = Some(end);
        }
        let seq = of.segments.len() as u64 + 1;
        of.segments.push(ChainSegment {
            epoch: 1,
            seq,
            token: self.revision,
            base: end,
            end: None,
        });
        self.events.push(Event::Chain(ChainRecord {
            partition,
            revision: self.revision,
            epoch: 1,
            log_start: 0,
            offloaded_end: 0,
            segments: of.segments.clone(),
            gaps: Vec::new(),
        }));
    }
}

fn rules() -> Rules {
    Rules {
        final_scans_min: 2,
        ..Rules::default()
    }
}

/// The events at which a lie can be told, and one of them.
fn pick(events: &[Event], seed: usize, may: impl Fn(&Event) -> bool) -> usize {
    let places: Vec<_> = events
        .iter()
        .enumerate()
        .filter(|(_, event)| may(event))
        .map(|(index, _)| index)
        .collect();
    assert!(!places.is_empty(), "every made history has a place for every lie");
    places[seed % places.len()]
}

fn caught(events: Vec<Event>) -> Vec<Rule> {
    let mut history = History::new();
    for event in events {
        history.push(0, event);
    }
    let report = check(&history, &rules());
    report.violations.into_iter().map(|one| one.rule).collect()
}

/// Reads of the last scans: those that must show everything.
fn final_reads(events: &[Event]) -> usize {
    events.iter().position(|event| *event == Event::Quiesced).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn a_made_history_is_clean_and_no_lie_about_it_passes(steps in steps(), seed in any::<usize>()) {
        let history = Made::of(&steps);
        let report = check(&history, &rules());
        prop_assert!(report.is_clean(), "{:?}", report.violations);
        let events: Vec<_> = history.entries().iter().map(|entry| entry.event.clone()).collect();
        let quiet = final_reads(&events);

        // A value is changed on its way to a reader.
        let mut lie = events.clone();
        let at = pick(&lie, seed, |event| matches!(event, Event::Read { .. }));
        if let Event::Read { value, .. } = &mut lie[at] {
            value.0 ^= 1;
        }
        let found = caught(lie);
        prop_assert!(found.iter().any(|rule| matches!(rule, Rule::H1 | Rule::H2)) && found.contains(&Rule::H6), "{found:?}");

        // A reader is not given a record: it is passed over.
        let mut lie = events.clone();
        let at = quiet + pick(&lie[quiet..], seed, |event| matches!(event, Event::Read { .. }));
        lie.remove(at);
        let found = caught(lie);
        prop_assert!(found.contains(&Rule::H3), "{found:?}");

        // Two records change places for one reader.
        let mut lie = events.clone();
        let at = quiet + pick(&lie[quiet..], seed, |event| matches!(event, Event::Read { .. }));
        let other = if matches!(lie[at + 1], Event::Read { .. }) { at + 1 } else { at - 1 };
        if let (Event::Read { value: one, .. }, Event::Read { value: two, .. }) = (lie[at].clone(), lie[other].clone()) {
            for (place, new) in [(at, two), (other, one)] {
                if let Event::Read { value, .. } = &mut lie[place] {
                    *value = new;
                }
            }
            prop_assert!(!caught(lie).is_empty());
        }

        // An acknowledgement names another offset.
        let mut lie = events.clone();
        let at = pick(&lie, seed, |event| matches!(event, Event::Acked { record, offset: Some(offset) } if *offset >= dropped(&events, record.partition)));
        if let Event::Acked { offset: Some(offset), .. } = &mut lie[at] {
            *offset += 1;
        }
        prop_assert!(!caught(lie).is_empty());

        // The end of the log falls by an acknowledged record.
        let mut lie = events.clone();
        let at = quiet + pick(&lie[quiet..], seed, |event| matches!(event, Event::ScanEnded { .. }));
        if let Event::ScanEnded { until, high_watermark, .. } = &mut lie[at] {
            *until -= 1;
            *high_watermark = Some(*until);
        }
        lie.remove(at - 1);
        let found = caught(lie);
        prop_assert!(found.contains(&Rule::H1), "{found:?}");

        // A refusal of what is in the log.
        let mut lie = events.clone();
        let at = pick(&lie, seed, |event| matches!(event, Event::Acked { .. }));
        if let Event::Acked { record, .. } = lie[at] {
            let kept = lie.iter().any(|event| matches!(event, Event::Read { value, .. } if Some(*value) == lie.iter().find_map(|event| match event {
                Event::Begun { record: other, value } if *other == record => Some(*value),
                _ => None,
            })));
            lie[at] = Event::Failed { record };
            prop_assert!(!kept || caught(lie).contains(&Rule::H6));
        }

        // The log's beginning moves though nothing allows it.
        let mut lie = events.clone();
        lie.insert(0, Event::LogStartSeen { partition: 0, offset: 1 });
        prop_assert_eq!(caught(lie), [Rule::H8]);

        // The chain has a hole.
        let mut lie = events.clone();
        let at = pick(&lie, seed, |event| matches!(event, Event::Chain(record) if record.segments.len() > 1));
        if let Event::Chain(record) = &mut lie[at] {
            let of = 1 + seed % (record.segments.len() - 1);
            record.segments[of].base += 1;
        }
        prop_assert!(caught(lie).contains(&Rule::H9));

        // A record stands a second time at the end.
        let mut lie = events;
        let at = lie.iter().rposition(|event| matches!(event, Event::ScanEnded { .. })).unwrap();
        if let (Event::ScanEnded { reader, partition, until, high_watermark, .. }, Some(doubled)) = (&mut lie[at], report_value(&history)) {
            let (reader, partition, offset) = (*reader, *partition, *until);
            *until += 1;
            *high_watermark = Some(*until);
            lie.insert(at, Event::Read { reader, partition, offset, value: doubled });
            prop_assert!(caught(lie).iter().any(|rule| matches!(rule, Rule::H5 | Rule::H6)));
        }
    }
}

/// Below this nothing needs to be read any more.
fn dropped(events: &[Event], partition: u64) -> u64 {
    let allowed = events.iter().filter_map(|event| match event {
        Event::RetentionAllowed { partition: of, until } if *of == partition => Some(*until),
        _ => None,
    });
    allowed.max().unwrap_or(0)
}

/// A value that a reader was given in the last partition.
fn report_value(history: &History) -> Option<Value> {
    history
        .entries()
        .iter()
        .rev()
        .find_map(|entry| match entry.event {
            Event::Read { partition, value, .. } if partition == PARTITIONS - 1 => Some(value),
            _ => None,
        })
}

#[test]
fn a_million_events_are_checked_in_seconds() {
    let mut history = History::new();
    let records = 200_000;
    for sequence in 0..records {
        let record = Produced {
            producer: 1,
            partition: 0,
            sequence,
        };
        history.push(
            0,
            Event::Begun {
                record,
                value: Value(sequence),
            },
        );
        history.push(
            0,
            Event::Acked {
                record,
                offset: Some(sequence),
            },
        );
    }
    for reader in 0..3 {
        history.push(
            0,
            Event::ScanBegun {
                reader,
                partition: 0,
                from: 0,
            },
        );
        for offset in 0..records {
            history.push(
                0,
                Event::Read {
                    reader,
                    partition: 0,
                    offset,
                    value: Value(offset),
                },
            );
        }
        history.push(
            0,
            Event::ScanEnded {
                reader,
                partition: 0,
                until: records,
                log_start: Some(0),
                high_watermark: Some(records),
            },
        );
    }
    let begun = std::time::Instant::now();
    let report = check(&history, &rules());
    assert!(report.is_clean(), "{:?}", report.violations);
    assert_eq!(report.counts.reads, 3 * records);
    assert!(begun.elapsed().as_secs() < 30, "took {:?}", begun.elapsed());
}
