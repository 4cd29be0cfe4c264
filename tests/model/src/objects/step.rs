//! The steps of the objects model, in words.
#![allow(missing_docs, reason = "each step is put in words below")]

use std::fmt;

/// What happens between two states.
#[derive(Debug, Clone, Copy)]
pub enum Step {
    Grant {
        broker: usize,
    },
    SessionEnds {
        broker: usize,
    },
    Promise {
        broker: usize,
        floor: u8,
    },
    UploadRun {
        broker: usize,
        segment: usize,
        object: u8,
        revision: u8,
    },
    UploadManifest {
        broker: usize,
        object: u8,
        revision: u8,
    },
    Rewrite {
        broker: usize,
        object: u8,
    },
    Uploaded {
        broker: usize,
        object: u8,
    },
    GiveUp {
        broker: usize,
        object: u8,
    },
    TakeAgain {
        broker: usize,
        object: u8,
    },
    Send {
        broker: usize,
        object: u8,
        seen: u8,
    },
    Commit {
        broker: usize,
        object: u8,
    },
    Refuse {
        broker: usize,
        object: u8,
    },
    Trim {
        segment: usize,
    },
    Floor {
        floor: u8,
    },
    Marks {
        old: bool,
    },
    Delete {
        object: u8,
    },
    EndRound,
    Plan,
    NotFound,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Grant { broker } => write!(f, "broker {broker} takes the partition over"),
            Self::SessionEnds { broker } => write!(f, "the session of broker {broker} ends; it goes on"),
            Self::Promise { broker, floor } => {
                write!(
                    f,
                    "broker {broker} promises to name no new object older than {floor}"
                )
            }
            Self::UploadRun {
                broker,
                segment,
                object,
                revision,
            } => write!(
                f,
                "broker {broker} begins to upload segment {segment} as object {object} of revision {revision}"
            ),
            Self::UploadManifest {
                broker,
                object,
                revision,
            } => write!(
                f,
                "broker {broker} begins to upload a manifest as object {object} of revision {revision}"
            ),
            Self::Rewrite { broker, object } => {
                write!(f, "broker {broker} writes over the manifest, object {object}")
            }
            Self::Uploaded { broker, object } => {
                write!(f, "object {object} of broker {broker} is there, and verified")
            }
            Self::GiveUp { broker, object } => {
                write!(f, "broker {broker} does not learn that object {object} is there")
            }
            Self::TakeAgain { broker, object } => {
                write!(f, "broker {broker} tries again with the name of object {object}")
            }
            Self::Send { broker, object, seen } => write!(
                f,
                "broker {broker}, having read the record at {seen}, sends the change that names object {object}"
            ),
            Self::Commit { broker, object } => {
                write!(f, "the record names object {object} of broker {broker}")
            }
            Self::Refuse { broker, object } => {
                write!(
                    f,
                    "the metadata store refuses the change of broker {broker} for object {object}"
                )
            }
            Self::Trim { segment } => write!(f, "the nodes forget segment {segment}"),
            Self::Floor { floor } => write!(
                f,
                "the collector reads the sessions: nothing from revision {floor} on may go"
            ),
            Self::Marks { old: false } => write!(f, "the collector reads the records"),
            Self::Marks { old: true } => {
                write!(f, "the collector is given the records of an earlier revision")
            }
            Self::Delete { object } => write!(f, "the collector deletes object {object}"),
            Self::EndRound => write!(f, "the collector ends its round"),
            Self::Plan => write!(f, "a reader plans by the record"),
            Self::NotFound => write!(f, "the reader's plan leads nowhere"),
        }
    }
}
