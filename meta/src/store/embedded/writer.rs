//! The one thread that writes: takes what is queued, makes it durable, shows it, answers.
//!
//! A thread and not a task, since every commit waits for the disk. Requests that queue up while
//! one commit runs share the next one. Nothing is visible or answered before it is durable.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use parking_lot::RwLock;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::file::{Loaded, MetaFile, OpenError};
use super::plan::Plan;
use super::state::State;
use crate::store::error::{TxnError, Unavailable, Unknown};
use crate::store::types::{LeaseId, Revision, Txn, TxnReply};

/// Requests that share one commit.
const GROUP_MAX: usize = 256;
/// Lease ids of one opening of the file.
const LEASE_BITS: u32 = 32;

/// A request to the writer.
pub(super) enum Command {
    Txn {
        txn: Txn,
        reply: oneshot::Sender<Result<TxnReply, TxnError>>,
    },
    Revoke {
        lease: LeaseId,
        reply: Option<oneshot::Sender<Result<(), Unavailable>>>,
    },
    Stop,
}

/// What the writer and its readers share.
pub(super) struct Shared {
    pub(super) state: RwLock<State>,
    revision: watch::Sender<Revision>,
    stopped: OnceLock<String>,
    ended: CancellationToken,
}

impl Shared {
    /// Why no call is answered any more.
    pub(super) fn stopped(&self) -> Option<String> {
        self.stopped.get().cloned()
    }

    /// Wakes at every change, and when the store stops.
    pub(super) fn changes(&self) -> watch::Receiver<Revision> {
        self.revision.subscribe()
    }

    /// Completes when the thread is gone and the file is closed.
    pub(super) async fn ended(&self) {
        self.ended.cancelled().await;
    }

    /// From here on nothing is answered. The first reason stays.
    fn stop(&self, why: String) {
        let leases = {
            let mut state = self.state.write();
            let _ = self.stopped.set(why);
            state.end_leases()
        };
        for lost in leases {
            lost.cancel();
        }
        self.revision.send_modify(|_| {});
    }
}

/// What opening the file gives.
pub(super) struct Opened {
    pub(super) shared: Arc<Shared>,
    pub(super) first_lease: u64,
}

/// Starts the thread and waits until it has opened its file.
pub(super) async fn start(
    path: PathBuf,
    commands: mpsc::Receiver<Command>,
    open: impl FnOnce(&Path) -> Result<(MetaFile, Loaded), OpenError> + Send + 'static,
) -> Result<Opened, OpenError> {
    let (ready, opened) = oneshot::channel();
    let of_thread = path.clone();
    std::thread::Builder::new()
        .name("meta-writer".to_owned())
        .spawn(move || run(of_thread, open, commands, ready))
        .map_err(|source| OpenError::Io {
            path: path.clone(),
            source,
        })?;
    match opened.await {
        Ok(opened) => opened,
        Err(_) => Err(OpenError::Corrupt {
            path,
            what: "opening it was given up".to_owned(),
        }),
    }
}

fn run(
    path: PathBuf,
    open: impl FnOnce(&Path) -> Result<(MetaFile, Loaded), OpenError>,
    commands: mpsc::Receiver<Command>,
    ready: oneshot::Sender<Result<Opened, OpenError>>,
) {
    // The library asserts on content that its checksums should have ruled out.
    let opened = std::panic::catch_unwind(AssertUnwindSafe(|| open(&path)));
    let (file, loaded) = match opened {
        Ok(Ok(opened)) => opened,
        Ok(Err(error)) => {
            // Nobody waits any more: nobody is told.
            let _ = ready.send(Err(error));
            return;
        }
        Err(panic) => {
            let _ = ready.send(Err(OpenError::Corrupt {
                path,
                what: message(&*panic),
            }));
            return;
        }
    };
    let Loaded {
        entries,
        revision,
        openings,
    } = loaded;
    let shared = Arc::new(Shared {
        state: RwLock::new(State::new(entries, revision)),
        revision: watch::Sender::new(revision),
        stopped: OnceLock::new(),
        ended: CancellationToken::new(),
    });
    let first_lease = (openings << LEASE_BITS) | 1;
    if ready
        .send(Ok(Opened {
            shared: Arc::clone(&shared),
            first_lease,
        }))
        .is_ok()
    {
        let writer = Writer {
            file,
            shared: Arc::clone(&shared),
            commands,
        };
        let path = path.display();
        let why = match std::panic::catch_unwind(AssertUnwindSafe(|| writer.run())) {
            Ok(Ok(())) => format!("{path} is closed"),
            Ok(Err(error)) => format!("{path} failed: {error}"),
            Err(panic) => format!("{path} failed: {}", message(&*panic)),
        };
        shared.stop(why);
    }
    shared.ended.cancel();
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("panic").to_owned()
}

struct Writer {
    file: MetaFile,
    shared: Arc<Shared>,
    commands: mpsc::Receiver<Command>,
}

/// An answer that waits for the disk.
enum Answer {
    Txn(oneshot::Sender<Result<TxnReply, TxnError>>, TxnReply, bool),
    Revoke(oneshot::Sender<Result<(), Unavailable>>),
}

impl Writer {
    fn run(mut self) -> Result<(), redb::Error> {
        let mut group = Vec::with_capacity(GROUP_MAX);
        loop {
            let taken = self.commands.blocking_recv_many(&mut group, GROUP_MAX);
            let stop = taken == 0 || group.iter().any(|command| matches!(command, Command::Stop));
            self.commit(group.drain(..))?;
            if stop {
                return Ok(());
            }
        }
    }

    fn commit(&self, group: impl Iterator<Item = Command>) -> Result<(), redb::Error> {
        let mut answers = Vec::new();
        let done = {
            let state = self.shared.state.read();
            let mut plan = Plan::new(&state);
            for command in group {
                answers.extend(take(&mut plan, command));
            }
            plan.finish()
        };
        if !done.changes.is_empty()
            && let Err(error) = self.file.save(done.revision, &done.changes)
        {
            tracing::error!(%error, revision = %done.revision, "metadata file failed, no more calls");
            self.shared.stop(format!("the metadata file failed: {error}"));
            answers.into_iter().for_each(|answer| answer.failed(&error));
            return Err(error);
        }
        let lost = self
            .shared
            .state
            .write()
            .advance(done.revision, done.changes, &done.ended);
        lost.into_iter().for_each(|lost| lost.cancel());
        self.shared.revision.send_if_modified(|revision| {
            let moved = *revision != done.revision;
            *revision = done.revision;
            moved
        });
        answers.into_iter().for_each(Answer::done);
        Ok(())
    }
}

/// Plans one command; what is refused is answered at once.
fn take(plan: &mut Plan<'_>, command: Command) -> Option<Answer> {
    match command {
        Command::Txn { txn, reply } => {
            let before = plan.changes();
            match plan.txn(&txn) {
                Ok(outcome) => Some(Answer::Txn(reply, outcome, plan.changes() > before)),
                Err(refused) => {
                    // Whoever asked may have gone away, here and below.
                    let _ = reply.send(Err(refused.into()));
                    None
                }
            }
        }
        Command::Revoke { lease, reply } => {
            plan.revoke(lease);
            reply.map(Answer::Revoke)
        }
        Command::Stop => None,
    }
}

impl Answer {
    fn done(self) {
        match self {
            Self::Txn(reply, outcome, _) => {
                let _ = reply.send(Ok(outcome));
            }
            Self::Revoke(reply) => {
                let _ = reply.send(Ok(()));
            }
        }
    }

    fn failed(self, error: &redb::Error) {
        match self {
            Self::Txn(reply, _, changed) => {
                let error: TxnError = if changed {
                    Unknown(error.to_string()).into()
                } else {
                    Unavailable(error.to_string()).into()
                };
                let _ = reply.send(Err(error));
            }
            Self::Revoke(reply) => {
                let _ = reply.send(Err(Unavailable(error.to_string())));
            }
        }
    }
}
