//! The steps of the log model, in words.
#![allow(missing_docs, reason = "each step is put in words below")]

use std::fmt;

use super::state::{Entries, Txn};

/// What happens between two states.
#[derive(Debug, Clone, Copy)]
pub enum Step {
    Accept {
        broker: usize,
        value: u8,
        offset: u8,
        segment: u8,
    },
    Commit {
        broker: usize,
        value: u8,
        offset: u8,
        segment: u8,
    },
    Learn {
        node: usize,
        committed: u8,
        segment: u8,
    },
    Change {
        broker: usize,
        sealed: u8,
        end: u8,
        segment: u8,
        carried: Entries,
    },
    Roll {
        broker: usize,
        sealed: u8,
        end: u8,
        segment: u8,
    },
    Grant {
        broker: usize,
        epoch: u8,
        segment: u8,
    },
    Fence {
        broker: usize,
        node: usize,
        segment: u8,
        tail: Entries,
        authoritative: bool,
    },
    Ask {
        broker: usize,
        node: usize,
    },
    Carry {
        broker: usize,
        carried: Entries,
        base: u8,
        segment: u8,
    },
    ShowCarry {
        broker: usize,
    },
    Linked {
        broker: usize,
        txn: Txn,
    },
    NotLinked {
        broker: usize,
    },
    SendTxn {
        broker: usize,
        txn: Txn,
    },
    StoreDecides {
        broker: usize,
        done: bool,
    },
    Answer {
        broker: usize,
    },
    GiveUp {
        broker: usize,
    },
    Resolve {
        broker: usize,
    },
    Offload {
        broker: usize,
        segment: u8,
        node: usize,
    },
    BeginRepair {
        segment: u8,
        from: usize,
        to: usize,
    },
    Copy {
        segment: u8,
        to: usize,
    },
    AbandonRepair,
    Replace {
        segment: u8,
        from: usize,
        to: usize,
        done: bool,
    },
    Store {
        node: usize,
        offset: u8,
        value: u8,
        segment: u8,
    },
    Sync {
        node: usize,
    },
    Trim {
        node: usize,
        segment: u8,
        live: bool,
    },
    Wipe {
        node: usize,
    },
    Rot {
        node: usize,
        segment: u8,
        keep: u8,
    },
    Crash {
        node: usize,
    },
    RestartBroker {
        broker: usize,
    },
    ReplaceReplica {
        from: usize,
        to: usize,
    },
}

impl Step {
    pub(super) fn link(broker: usize, txn: &Txn, done: bool) -> Self {
        if done {
            Self::Linked { broker, txn: *txn }
        } else {
            Self::NotLinked { broker }
        }
    }
}

/// Values in brackets.
struct Values<'a>(&'a Entries);

impl fmt::Display for Values<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[")?;
        for (index, value) in self.0.as_slice().iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            write!(f, "{comma}v{value}")?;
        }
        f.write_str("]")
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Accept {
                broker,
                value,
                offset,
                segment,
            } => {
                write!(
                    f,
                    "broker {broker} accepts v{value} at offset {offset} and sends it to the replicas of segment {segment}"
                )
            }
            Self::Commit {
                broker,
                value,
                offset,
                segment,
            } => {
                write!(
                    f,
                    "broker {broker} commits and acknowledges v{value} at offset {offset} in segment {segment}"
                )
            }
            Self::Learn {
                node,
                committed,
                segment,
            } => {
                write!(
                    f,
                    "node {node} learns that segment {segment} is committed up to {committed}"
                )
            }
            Self::Change {
                broker,
                sealed,
                end,
                segment,
                carried,
            } => write!(
                f,
                "broker {broker} freezes segment {sealed} at {end} and prepares segment {segment} with {}",
                Values(&carried)
            ),
            Self::Roll {
                broker,
                sealed,
                end,
                segment,
            } => write!(
                f,
                "broker {broker} lets segment {sealed} drain to {end} and prepares segment {segment}"
            ),
            Self::Grant {
                broker,
                epoch,
                segment,
            } => {
                write!(
                    f,
                    "broker {broker} is granted epoch {epoch}; segment {segment} is open"
                )
            }
            Self::Fence {
                broker,
                node,
                segment,
                tail,
                authoritative,
            } => {
                let evidence = if authoritative {
                    ""
                } else {
                    ", which is no evidence"
                };
                write!(
                    f,
                    "broker {broker} closes segment {segment} on node {node}: {}{evidence}",
                    Values(&tail)
                )
            }
            Self::Ask { broker, node } => write!(f, "broker {broker} asks node {node}, before it is closed"),
            Self::Carry {
                broker,
                carried,
                base,
                segment,
            } => write!(
                f,
                "broker {broker} prepares segment {segment} at {base} and carries {}",
                Values(&carried)
            ),
            Self::ShowCarry { broker } => write!(f, "broker {broker} shows what it carried"),
            Self::Linked { broker, txn } => write!(
                f,
                "the record changes for broker {broker}: segment {} ends at {}, segment {} is linked",
                txn.sealed, txn.sealed_end, txn.linked
            ),
            Self::NotLinked { broker } => write!(f, "the record refuses broker {broker}, which stops"),
            Self::SendTxn { broker, txn } => write!(
                f,
                "broker {broker} sends the change of revision {}: segment {} ends at {}, segment {} is linked",
                txn.seen, txn.sealed, txn.sealed_end, txn.linked
            ),
            Self::StoreDecides { broker, done } => {
                let verb = if done { "applies" } else { "refuses" };
                write!(f, "the metadata store {verb} a change of broker {broker}")
            }
            Self::Answer { broker } => write!(f, "broker {broker} hears the store's answer"),
            Self::GiveUp { broker } => write!(f, "broker {broker} waits for the store in vain"),
            Self::Resolve { broker } => write!(f, "broker {broker} settles what became of its change"),
            Self::Offload {
                broker,
                segment,
                node,
            } => {
                write!(
                    f,
                    "broker {broker} offloads segment {segment}, copied from node {node}"
                )
            }
            Self::BeginRepair { segment, from, to } => {
                write!(
                    f,
                    "a worker begins to replace node {from} by node {to} in segment {segment}"
                )
            }
            Self::Copy { segment, to } => write!(f, "segment {segment} is copied to node {to}"),
            Self::AbandonRepair => f.write_str("the repair finds no copy any more"),
            Self::Replace {
                segment,
                from,
                to,
                done,
            } => {
                let verb = if done { "replaces" } else { "does not replace" };
                write!(
                    f,
                    "the record {verb} node {from} by node {to} in segment {segment}"
                )
            }
            Self::Store {
                node,
                offset,
                value,
                segment,
            } => {
                write!(
                    f,
                    "node {node} stores v{value} at offset {offset} of segment {segment}"
                )
            }
            Self::Sync { node } => write!(f, "node {node} syncs and acknowledges"),
            Self::Trim { node, segment, live } => {
                let writer = if live { ", which has a writer" } else { "" };
                write!(f, "node {node} deletes segment {segment}{writer}")
            }
            Self::Wipe { node } => write!(f, "node {node} loses its disk and comes back empty"),
            Self::Rot { node, segment, keep } => {
                write!(
                    f,
                    "node {node} restarts and can read {keep} entries of segment {segment} only"
                )
            }
            Self::Crash { node } => write!(f, "node {node} crashes and restarts"),
            Self::RestartBroker { broker } => {
                write!(f, "broker {broker} restarts and goes on with its segment")
            }
            Self::ReplaceReplica { from, to } => {
                write!(
                    f,
                    "the owner puts node {to} in the place of node {from}, in the open segment"
                )
            }
        }
    }
}
