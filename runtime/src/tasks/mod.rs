//! Named, tracked and cancellable tasks, in groups that can be stopped in order.
//!
//! 1. A role makes one root [`Tasks`] and a child group for each thing that stops on its own.
//! 2. [`Tasks::spawn`] starts a task; nothing that a group started is ever out of its sight.
//! 3. The end begins with a signal, with [`Tasks::request_shutdown`], or with the failure of a
//!    task started by [`Tasks::spawn_critical`]; `main` waits for it in
//!    [`Tasks::shutdown_requested`].
//! 4. [`shutdown_ordered`] goes through the stages (stop intake, drain, flush, leave), each with a
//!    deadline, and says by name what did not end in time.
//!
//! Cancelling is a request: a task sees it through its token and ends by itself, at a place where
//! nothing it accepted is lost. [`Tasks::abort`] is for simulating a crash, not for stopping.

mod shutdown;
mod signal;
#[cfg(test)]
mod tests;

use std::any::Any;
use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use futures_util::FutureExt;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinHandle};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

pub use shutdown::{ShutdownError, Stage, StageError, shutdown_ordered};
pub use signal::{Signal, shutdown_signal};

/// Any error of a task or a stage.
pub type BoxError = Box<dyn Error + Send + Sync + 'static>;

/// A group of tasks. Clones are handles to the same group.
#[derive(Clone)]
pub struct Tasks {
    group: Arc<Group>,
}

/// Why the process should stop.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ShutdownReason {
    /// Somebody asked for it.
    #[error("{0}")]
    Requested(String),
    /// A critical task ended with an error or a panic.
    #[error("task {task} failed: {reason}")]
    TaskFailed {
        /// Full name of the task.
        task: String,
        /// Its error with all sources, or its panic message.
        reason: String,
    },
}

struct Group {
    name: String,
    token: CancellationToken,
    /// Cancelled by an abort, here or above: what starts afterwards is aborted at once.
    aborted: CancellationToken,
    tracker: TaskTracker,
    running: Mutex<BTreeMap<u64, Running>>,
    children: Mutex<Vec<Weak<Group>>>,
    parent: Option<Arc<Group>>,
    process: Arc<Process>,
}

/// Shared by a root and all groups below it.
struct Process {
    next_task: AtomicU64,
    /// The first reason stays; later ones are only logged.
    shutdown: watch::Sender<Option<ShutdownReason>>,
}

struct Running {
    name: String,
    abort: Option<AbortHandle>,
}

/// Lives inside a task's future: when that is dropped, for whatever reason, the task is over.
struct Entry {
    id: u64,
    group: Arc<Group>,
    _ancestors: Vec<TaskTrackerToken>,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.group.running.lock().remove(&self.id);
    }
}

impl Tasks {
    /// A root group; its name is the first part of every task's name.
    pub fn new(name: impl Into<String>) -> Self {
        let process = Process {
            next_task: AtomicU64::new(0),
            shutdown: watch::Sender::new(None),
        };
        let tokens = (CancellationToken::new(), CancellationToken::new());
        Self::with(name.into(), tokens, None, Arc::new(process))
    }

    /// A group below this one: cancelled with it, waited for with it, and on its own.
    pub fn group(&self, name: impl AsRef<str>) -> Self {
        let child = Self::with(
            self.full_name(name.as_ref()),
            (self.group.token.child_token(), self.group.aborted.child_token()),
            Some(Arc::clone(&self.group)),
            Arc::clone(&self.group.process),
        );
        let mut children = self.group.children.lock();
        children.retain(|child| child.strong_count() > 0);
        children.push(Arc::downgrade(&child.group));
        child
    }

    fn with(
        name: String,
        (token, aborted): (CancellationToken, CancellationToken),
        parent: Option<Arc<Group>>,
        process: Arc<Process>,
    ) -> Self {
        let group = Group {
            name,
            token,
            aborted,
            tracker: TaskTracker::new(),
            running: Mutex::default(),
            children: Mutex::default(),
            parent,
            process,
        };
        Self {
            group: Arc::new(group),
        }
    }

    /// Starts a task. Its panic is logged and ends only this task. The handle may be dropped.
    pub fn spawn<F>(&self, name: impl AsRef<str>, task: F) -> JoinHandle<()>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let full_name = self.full_name(name.as_ref());
        self.start(full_name.clone(), async move {
            if let Err(panic) = AssertUnwindSafe(task).catch_unwind().await {
                tracing::error!(task = full_name, reason = panic_message(&*panic), "task panicked");
            }
        })
    }

    /// Starts a task without which the process makes no sense: its error or panic requests the
    /// shutdown of the whole process group, with the reason. Ending well is allowed at any time.
    pub fn spawn_critical<F, E>(&self, name: impl AsRef<str>, task: F) -> JoinHandle<()>
    where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<BoxError>,
    {
        let full_name = self.full_name(name.as_ref());
        let process = Arc::clone(&self.group.process);
        self.start(full_name.clone(), async move {
            let reason = match AssertUnwindSafe(task).catch_unwind().await {
                Ok(Ok(())) => return,
                Ok(Err(error)) => error_chain(&*error.into()),
                Err(panic) => format!("panicked: {}", panic_message(&*panic)),
            };
            process.request(ShutdownReason::TaskFailed {
                task: full_name,
                reason,
            });
        })
    }

    fn start<F>(&self, full_name: String, task: F) -> JoinHandle<()>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let id = self.group.process.next_task.fetch_add(1, Ordering::Relaxed);
        let entry = Entry {
            id,
            group: Arc::clone(&self.group),
            _ancestors: self.ancestors(),
        };
        self.group.running.lock().insert(
            id,
            Running {
                name: full_name,
                abort: None,
            },
        );
        let handle = self.group.tracker.spawn(async move {
            let _entry = entry;
            task.await;
        });
        // The task may be over by now and its entry gone.
        if let Some(running) = self.group.running.lock().get_mut(&id) {
            running.abort = Some(handle.abort_handle());
        }
        // Looked at after the handle is in the list: an abort either finds it there or is seen here.
        if self.group.aborted.is_cancelled() {
            handle.abort();
        }
        handle
    }

    fn ancestors(&self) -> Vec<TaskTrackerToken> {
        let above = |group: &Arc<Group>| group.parent.clone();
        std::iter::successors(above(&self.group), above)
            .map(|group| group.tracker.token())
            .collect()
    }

    /// The token that tells this group's tasks to end.
    pub fn token(&self) -> CancellationToken {
        self.group.token.clone()
    }

    /// Tells every task of this group and of the groups below to end.
    pub fn cancel(&self) {
        self.group.token.cancel();
    }

    /// Whether [`Tasks::cancel`] was called here or above.
    pub fn is_cancelled(&self) -> bool {
        self.group.token.is_cancelled()
    }

    /// Waits until no task of this group or of the groups below is left. Does not cancel.
    ///
    /// Cancel safety: only waits.
    pub async fn wait(&self) {
        self.group.tracker.close();
        self.group.tracker.wait().await;
    }

    /// Full names of the tasks of this group and of the groups below that are not over, sorted.
    pub fn running(&self) -> Vec<String> {
        let mut names = Vec::new();
        self.group.visit(&mut |running| names.push(running.name.clone()));
        names.sort();
        names
    }

    /// Drops every task of this group and of the groups below at its next await, as a crash would.
    /// What is started afterwards is dropped likewise.
    pub fn abort(&self) {
        self.group.aborted.cancel();
        let mut handles = Vec::new();
        self.group
            .visit(&mut |running| handles.extend(running.abort.clone()));
        // Outside the lock: aborting may drop the future here, and with it its entry.
        handles.iter().for_each(AbortHandle::abort);
    }

    /// Asks `main` to begin the shutdown. The first reason is the one that is kept.
    pub fn request_shutdown(&self, reason: impl Into<String>) {
        self.group
            .process
            .request(ShutdownReason::Requested(reason.into()));
    }

    /// Waits until a shutdown is requested or a critical task of this process group failed.
    ///
    /// Cancel safety: only waits.
    pub async fn shutdown_requested(&self) -> ShutdownReason {
        let mut seen = self.group.process.shutdown.subscribe();
        loop {
            if let Some(reason) = seen.borrow_and_update().clone() {
                return reason;
            }
            if seen.changed().await.is_err() {
                // Unreachable while `self` keeps the sender; if it were not, nobody could ask.
                std::future::pending::<()>().await;
            }
        }
    }

    /// The reason of the shutdown, if one is requested.
    pub fn shutdown_reason(&self) -> Option<ShutdownReason> {
        self.group.process.shutdown.borrow().clone()
    }

    fn full_name(&self, name: &str) -> String {
        format!("{}/{name}", self.group.name)
    }
}

impl fmt::Debug for Tasks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tasks")
            .field("name", &self.group.name)
            .field("running", &self.running())
            .finish_non_exhaustive()
    }
}

impl Group {
    fn visit(&self, each: &mut dyn FnMut(&Running)) {
        self.running.lock().values().for_each(&mut *each);
        let children: Vec<_> = self.children.lock().iter().filter_map(Weak::upgrade).collect();
        for child in children {
            child.visit(each);
        }
    }
}

impl Process {
    fn request(&self, reason: ShutdownReason) {
        match &reason {
            ShutdownReason::Requested(_) => tracing::info!(%reason, "shutdown requested"),
            ShutdownReason::TaskFailed { .. } => tracing::error!(%reason, "shutdown requested"),
        }
        self.shutdown.send_if_modified(|current| {
            let first = current.is_none();
            if first {
                *current = Some(reason);
            }
            first
        });
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no message")
}

/// An error and its sources on one line.
pub(crate) fn error_chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}
