//! Which owners are ticked, and how often.
//!
//! What waits in an owner, for an answer or for time, is looked at with every tick. What happens to a
//! partition without anybody's doing (its segment's age, its retention, its repair) is not a matter of
//! milliseconds, and a broker may own thousands that nobody writes to: those have a turn in each round.

use forebay_record::PartitionId;

use super::driver::Driver;

/// An owner in which nothing waits has its turn once in so many ticks.
const ROUND: u64 = 16;

/// A broker that was not heard of by its own clock for so long was held up: paused, or out of processor time.
const HELD_UP_MS: u64 = 250;

/// Whose turn it is.
#[derive(Debug, Default)]
pub struct Turns {
    ticks: u64,
    /// When the last tick was.
    last_ms: u64,
    steady_ms: u64,
    /// Owners that have their turn with every tick: once each, marked in the owner.
    awake: Vec<PartitionId>,
    /// Owners whose turn in this round is still to come.
    round: Vec<PartitionId>,
    /// How many of them with each tick.
    each: usize,
}

impl Turns {
    /// Since when every tick has come in time.
    pub const fn steady_ms(&self) -> u64 {
        self.steady_ms
    }

    /// A tick begins.
    const fn begin(&mut self, now_ms: u64) {
        if now_ms.saturating_sub(self.last_ms) >= HELD_UP_MS {
            self.steady_ms = now_ms;
        }
        self.last_ms = now_ms;
    }

    /// Something happened to an owner that was not awake.
    pub fn wake(&mut self, partition: PartitionId) {
        self.awake.push(partition);
    }
}

impl Driver {
    /// Ticks those whose turn it is.
    pub(super) fn tick_owners(&mut self) {
        self.turns.begin(self.now_ms);
        let (turns, owners) = (&mut self.turns, &mut self.owners);
        if turns.ticks.is_multiple_of(ROUND) {
            turns.round.clear();
            turns.round.extend(owners.keys());
            turns.each = turns.round.len().div_ceil(ROUND as usize);
        }
        turns.ticks += 1;
        let rest = turns.round.len().saturating_sub(turns.each);
        let mut due = turns.round.split_off(rest);
        due.retain(|partition| owners.get(partition).is_some_and(|owner| !owner.awake));
        for partition in turns.awake.drain(..) {
            if let Some(owner) = owners.get_mut(&partition) {
                owner.awake = false;
                due.push(partition);
            }
        }
        for partition in due {
            self.with_owner(partition, |owner, ctx| owner.on_tick(ctx));
            if self.turns.awake.last() == Some(&partition)
                && let Some(owner) = self.owners.get_mut(&partition)
                && !owner.waits()
            {
                owner.awake = false;
                self.turns.awake.pop();
            }
        }
    }
}
