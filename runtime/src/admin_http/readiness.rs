//! What the components of a process say about their own health.
//!
//! A process without any component is not ready: it has only just begun. Dead is final.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::watch;

/// The health of one process; clones share it.
#[derive(Debug, Clone)]
pub struct Readiness {
    board: Arc<watch::Sender<Board>>,
}

/// One component's entry. Clones speak for the same component; dropping them changes nothing.
#[derive(Debug, Clone)]
pub struct Component {
    board: Arc<watch::Sender<Board>>,
    id: u64,
}

#[derive(Debug, Default)]
struct Board {
    next_id: u64,
    draining: Option<String>,
    entries: BTreeMap<u64, Entry>,
}

#[derive(Debug)]
struct Entry {
    name: String,
    health: Health,
}

#[derive(Debug, PartialEq)]
enum Health {
    Ready,
    NotReady(String),
    Dead(String),
}

impl Default for Readiness {
    fn default() -> Self {
        Self::new()
    }
}

impl Readiness {
    /// A process without components: alive and not ready.
    pub fn new() -> Self {
        Self {
            board: Arc::new(watch::Sender::new(Board::default())),
        }
    }

    /// Registers a component, which is not ready until it says so.
    pub fn component(&self, name: impl Into<String>) -> Component {
        let mut id = 0;
        self.board.send_modify(|board| {
            id = board.next_id;
            board.next_id += 1;
            let health = Health::NotReady("starting".to_owned());
            board.entries.insert(
                id,
                Entry {
                    name: name.into(),
                    health,
                },
            );
        });
        Component {
            board: Arc::clone(&self.board),
            id,
        }
    }

    /// Makes the process not ready from now on, whatever its components say: the first step of a
    /// shutdown.
    pub fn drain(&self, reason: impl Into<String>) {
        self.board
            .send_modify(|board| board.draining = Some(reason.into()));
    }

    /// What keeps the process from being ready, one line each; empty when it is ready.
    pub fn not_ready(&self) -> Vec<String> {
        self.board.borrow().not_ready()
    }

    /// The components that are dead, one line each.
    pub fn dead(&self) -> Vec<String> {
        let board = self.board.borrow();
        let dead = board.entries.values().filter_map(|entry| match &entry.health {
            Health::Dead(reason) => Some(format!("{}: {reason}", entry.name)),
            Health::Ready | Health::NotReady(_) => None,
        });
        dead.collect()
    }

    /// Whether work may be sent here.
    pub fn is_ready(&self) -> bool {
        self.not_ready().is_empty()
    }

    /// Waits until the process is ready.
    ///
    /// Cancel safety: only waits.
    pub async fn wait_ready(&self) {
        let mut changes = self.board.subscribe();
        if changes
            .wait_for(|board| board.not_ready().is_empty())
            .await
            .is_err()
        {
            // Unreachable while `self` keeps the sender; if it were not, readiness cannot come.
            std::future::pending::<()>().await;
        }
    }
}

impl Board {
    fn not_ready(&self) -> Vec<String> {
        let mut wrong: Vec<String> = self
            .draining
            .iter()
            .map(|reason| format!("draining: {reason}"))
            .collect();
        if self.entries.is_empty() {
            wrong.push("no component has started".to_owned());
        }
        wrong.extend(self.entries.values().filter_map(|entry| match &entry.health {
            Health::Ready => None,
            Health::NotReady(reason) | Health::Dead(reason) => Some(format!("{}: {reason}", entry.name)),
        }));
        wrong
    }
}

impl Component {
    /// This component can do its work.
    pub fn ready(&self) {
        self.set(Health::Ready);
    }

    /// This component cannot do its work for now.
    pub fn not_ready(&self, reason: impl Into<String>) {
        self.set(Health::NotReady(reason.into()));
    }

    /// This component will not work again in this process. Final.
    pub fn dead(&self, reason: impl Into<String>) {
        self.set(Health::Dead(reason.into()));
    }

    /// Takes the component off the list: it is no longer part of the process.
    pub fn remove(self) {
        self.board.send_modify(|board| {
            board.entries.remove(&self.id);
        });
    }

    fn set(&self, health: Health) {
        self.board.send_if_modified(|board| {
            let Some(entry) = board.entries.get_mut(&self.id) else {
                return false;
            };
            if entry.health == health || matches!(entry.health, Health::Dead(_)) {
                return false;
            }
            entry.health = health;
            true
        });
    }
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
    fn a_process_without_components_is_not_ready() {
        let readiness = Readiness::new();
        assert_eq!(readiness.not_ready(), ["no component has started"]);
        readiness.component("a").ready();
        assert!(readiness.is_ready());
    }

    #[test]
    fn dead_is_final() {
        let readiness = Readiness::new();
        let component = readiness.component("journal");
        component.dead("fsync failed");
        component.ready();
        assert_eq!(readiness.dead(), ["journal: fsync failed"]);
        assert!(!readiness.is_ready());
    }

    #[test]
    fn draining_outweighs_ready_components() {
        let readiness = Readiness::new();
        readiness.component("a").ready();
        readiness.drain("SIGTERM");
        assert_eq!(readiness.not_ready(), ["draining: SIGTERM"]);
        assert!(readiness.dead().is_empty());
    }

    #[test]
    fn a_removed_component_no_longer_counts_and_equal_names_stay_apart() {
        let readiness = Readiness::new();
        let (one, two) = (readiness.component("node"), readiness.component("node"));
        one.ready();
        assert_eq!(readiness.not_ready(), ["node: starting"]);
        two.remove();
        assert!(readiness.is_ready());
    }

    #[tokio::test]
    async fn wait_ready_ends_when_the_last_component_is_ready() {
        let readiness = Readiness::new();
        let (one, two) = (readiness.component("one"), readiness.component("two"));
        let waiting = tokio::spawn({
            let readiness = readiness.clone();
            async move { readiness.wait_ready().await }
        });
        one.ready();
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        two.ready();
        waiting.await.unwrap();
    }
}
