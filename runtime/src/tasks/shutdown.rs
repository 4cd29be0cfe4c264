//! Ending a process in order: stages, each with a deadline.
//!
//! A stage that misses its deadline or fails is reported and does not keep the later ones from
//! running: what can still be flushed is flushed. What is still running is named.

use std::fmt;
use std::future::Future;
use std::time::Duration;

use futures_util::future::{BoxFuture, join_all};

use super::{BoxError, Tasks};

/// One step of an ordered shutdown.
pub struct Stage {
    name: String,
    deadline: Duration,
    work: Work,
}

enum Work {
    Cancel(Vec<Tasks>),
    Wait(Vec<Tasks>),
    Run(BoxFuture<'static, Result<(), BoxError>>),
}

/// What went wrong in one stage.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    /// The deadline passed.
    #[error("{stage}: still running after {deadline:?}: {}", .running.join(", "))]
    StillRunning {
        /// Name of the stage.
        stage: String,
        /// The time it had.
        deadline: Duration,
        /// Full names of the tasks that did not end; the stage's own name if it runs a future.
        running: Vec<String>,
    },
    /// The stage's future returned an error.
    #[error("{stage}: failed")]
    Failed {
        /// Name of the stage.
        stage: String,
        /// Its error.
        source: BoxError,
    },
}

/// The stages that did not end well, in order.
#[derive(Debug, thiserror::Error)]
pub struct ShutdownError {
    /// Never empty.
    pub stages: Vec<StageError>,
}

impl fmt::Display for ShutdownError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("shutdown was not clean")?;
        for stage in &self.stages {
            write!(f, "; {}", super::error_chain(stage))?;
        }
        Ok(())
    }
}

impl Stage {
    /// Cancels the groups and waits for their tasks.
    pub fn cancel(
        name: impl Into<String>,
        deadline: Duration,
        groups: impl IntoIterator<Item = Tasks>,
    ) -> Self {
        let work = Work::Cancel(groups.into_iter().collect());
        Self {
            name: name.into(),
            deadline,
            work,
        }
    }

    /// Waits for the groups' tasks to end by themselves. What is left at the deadline is reported
    /// and goes on until a later stage cancels it.
    pub fn wait(
        name: impl Into<String>,
        deadline: Duration,
        groups: impl IntoIterator<Item = Tasks>,
    ) -> Self {
        let work = Work::Wait(groups.into_iter().collect());
        Self {
            name: name.into(),
            deadline,
            work,
        }
    }

    /// Runs a future, which is dropped at the deadline. It is not polled before its stage begins.
    pub fn run<F, E>(name: impl Into<String>, deadline: Duration, future: F) -> Self
    where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<BoxError>,
    {
        let work = Work::Run(Box::pin(async move { future.await.map_err(Into::into) }));
        Self {
            name: name.into(),
            deadline,
            work,
        }
    }

    async fn execute(self) -> Result<(), StageError> {
        let Self {
            name: stage,
            deadline,
            work,
        } = self;
        let groups = match work {
            Work::Run(future) => {
                return match tokio::time::timeout(deadline, future).await {
                    Ok(Ok(())) => Ok(()),
                    Ok(Err(source)) => Err(StageError::Failed { stage, source }),
                    Err(_elapsed) => {
                        let running = vec![stage.clone()];
                        Err(StageError::StillRunning {
                            stage,
                            deadline,
                            running,
                        })
                    }
                };
            }
            Work::Cancel(groups) => {
                groups.iter().for_each(Tasks::cancel);
                groups
            }
            Work::Wait(groups) => groups,
        };
        let all = join_all(groups.iter().map(Tasks::wait));
        if tokio::time::timeout(deadline, all).await.is_ok() {
            return Ok(());
        }
        let running: Vec<String> = groups.iter().flat_map(Tasks::running).collect();
        if running.is_empty() {
            // The last task ended between the deadline and the look at the list.
            return Ok(());
        }
        Err(StageError::StillRunning {
            stage,
            deadline,
            running,
        })
    }
}

/// Goes through the stages, one after the other.
///
/// Cancel safety: dropping this leaves the remaining stages undone; run it to its end.
pub async fn shutdown_ordered(stages: impl IntoIterator<Item = Stage>) -> Result<(), ShutdownError> {
    let mut failed = Vec::new();
    for stage in stages {
        let name = stage.name.clone();
        let started = tokio::time::Instant::now();
        let result = stage.execute().await;
        let elapsed_ms = started.elapsed().as_millis();
        match result {
            Ok(()) => tracing::info!(stage = name, elapsed_ms, "shutdown stage done"),
            Err(error) => {
                // Not logged here: whoever called gets all of them at the end.
                failed.push(error);
            }
        }
    }
    if failed.is_empty() {
        Ok(())
    } else {
        Err(ShutdownError { stages: failed })
    }
}
