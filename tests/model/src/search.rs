//! Breadth-first search over all states that a model can reach.
//!
//! A state is kept only until its successors are known; after that its fingerprint stays, with the
//! state it was first reached from and the number of the step. So a violation comes with a shortest
//! trace, replayed from the start. Two states with one 64-bit fingerprint would be taken for one:
//! among ten million states the chance that any two share one is below one in a hundred thousand.
//!
//! `Search::owed` also keeps the edges and asks whether from every state that owes it a goal can
//! still be reached: liveness for a system that is not stopped on purpose.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::time::{Duration, Instant};

/// A protocol as states and the steps between them.
pub trait Model {
    /// Everything that the future depends on.
    type State: Clone;
    /// What happened between two states; shown in traces.
    type Step: std::fmt::Display;

    /// The only state that a run begins in.
    fn start(&self) -> Self::State;
    /// All steps that are possible in a state, in an order that only the state decides.
    fn steps(&self, state: &Self::State, out: &mut Vec<(Self::Step, Self::State)>);
    /// Equal for states that the model need not tell apart.
    fn fingerprint(&self, state: &Self::State) -> u64;
    /// The property that does not hold in this state.
    fn violation(&self, state: &Self::State) -> Option<&'static str>;
    /// Whether what liveness asks for is there.
    fn is_goal(&self, _: &Self::State) -> bool {
        true
    }
}

/// Packs small numbers into words and mixes whole words.
#[derive(Debug)]
pub struct Fingerprint {
    mixed: u64,
    word: u64,
    filled: u32,
}

impl Default for Fingerprint {
    fn default() -> Self {
        Self {
            mixed: 0x9e37_79b9_7f4a_7c15,
            word: 0,
            filled: 0,
        }
    }
}

impl Fingerprint {
    /// Adds one number.
    #[inline]
    pub fn byte(&mut self, byte: u8) {
        self.word = self.word << 8 | u64::from(byte);
        self.filled += 1;
        if self.filled == 8 {
            self.mix(self.word);
            self.word = 0;
            self.filled = 0;
        }
    }

    /// Adds several numbers.
    #[inline]
    pub fn bytes(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.byte(byte);
        }
    }

    fn mix(&mut self, word: u64) {
        let product = u128::from(self.mixed ^ word) * 0xa076_1d64_78bd_642f;
        self.mixed = (product as u64 ^ (product >> 64) as u64).wrapping_add(0x9e37_79b9_7f4a_7c15);
    }

    /// The fingerprint of all that was added.
    #[must_use]
    pub fn end(mut self) -> u64 {
        self.mix(self.word);
        self.mix(u64::from(self.filled) | 0x100);
        self.mixed
    }
}

impl Hasher for Fingerprint {
    fn finish(&self) -> u64 {
        self.mixed
    }

    fn write(&mut self, bytes: &[u8]) {
        self.bytes(bytes);
    }
}

/// The fingerprint of a state that says itself what belongs to it.
pub fn fingerprint_of(state: &impl std::hash::Hash) -> u64 {
    let mut into = Fingerprint::default();
    state.hash(&mut into);
    into.end()
}

/// Fingerprints are mixed already.
#[derive(Default)]
struct AsIs(u64);

impl Hasher for AsIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = self.0 << 8 | u64::from(byte);
        }
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = word;
    }
}

/// How a search ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// Every reachable state was seen and is right.
    Exhausted,
    /// No violation among the first states, as many as allowed.
    Bounded,
    /// A state that breaks a property.
    Violated {
        /// The property.
        property: &'static str,
        /// A shortest way there, in words.
        trace: Vec<String>,
    },
}

/// What a search saw.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// How it ended.
    pub end: End,
    /// Different states.
    pub states: usize,
    /// Steps between them.
    pub transitions: u64,
    /// Steps from the start to the furthest state, or to the violation.
    pub depth: usize,
    /// Time taken.
    pub took: Duration,
}

/// A search's limits.
#[derive(Debug, Clone, Copy)]
pub struct Search {
    /// States after which it stops.
    pub states_max: usize,
    /// Whether a goal is owed to every state, and by which name its absence is reported.
    pub owed: Option<&'static str>,
}

const NO_PARENT: u32 = u32::MAX;

/// What is known of the states seen so far.
struct Seen<S> {
    numbers: HashMap<u64, u32, BuildHasherDefault<AsIs>>,
    reached_by: Vec<(u32, u16)>,
    waiting: VecDeque<(S, u16)>,
    edges: Vec<(u32, u32)>,
    goals: Vec<bool>,
    transitions: u64,
    deepest: usize,
}

impl Search {
    /// Searches a model.
    pub fn run<M: Model>(&self, model: &M) -> Outcome {
        let began = Instant::now();
        let mut seen = Seen {
            numbers: HashMap::default(),
            reached_by: Vec::new(),
            waiting: VecDeque::new(),
            edges: Vec::new(),
            goals: Vec::new(),
            transitions: 0,
            deepest: 0,
        };
        let end = self.spread(model, &mut seen);
        Outcome {
            end,
            states: seen.reached_by.len(),
            transitions: seen.transitions,
            depth: seen.deepest,
            took: began.elapsed(),
        }
    }

    fn spread<M: Model>(&self, model: &M, seen: &mut Seen<M::State>) -> End {
        let start = model.start();
        seen.add(model, self, start, (NO_PARENT, 0), 0);
        let mut steps = Vec::new();
        let mut number = 0_u32;
        while let Some((state, depth)) = seen.waiting.pop_front() {
            steps.clear();
            model.steps(&state, &mut steps);
            seen.transitions += steps.len() as u64;
            for (index, (_, next)) in steps.drain(..).enumerate() {
                let property = model.violation(&next);
                let new = seen.add(model, self, next, (number, index as u16), depth + 1);
                if let (true, Some(property)) = (new, property) {
                    let last = seen.reached_by.len() as u32 - 1;
                    return seen.violated(model, property, last);
                }
            }
            if seen.reached_by.len() > self.states_max {
                return End::Bounded;
            }
            number += 1;
        }
        match self
            .owed
            .and_then(|property| Some((property, seen.first_without_way()?)))
        {
            Some((property, number)) => seen.violated(model, property, number),
            None => End::Exhausted,
        }
    }
}

impl<S: Clone> Seen<S> {
    /// Takes note of a state and of how it was reached; false if it was known.
    fn add<M: Model<State = S>>(
        &mut self,
        model: &M,
        search: &Search,
        state: S,
        reached_by: (u32, u16),
        depth: u16,
    ) -> bool {
        let fresh = self.reached_by.len() as u32;
        let number = *self.numbers.entry(model.fingerprint(&state)).or_insert(fresh);
        if search.owed.is_some() && reached_by.0 != NO_PARENT {
            self.edges.push((number, reached_by.0));
        }
        if number != fresh {
            return false;
        }
        if search.owed.is_some() {
            self.goals.push(model.is_goal(&state));
        }
        self.reached_by.push(reached_by);
        self.waiting.push_back((state, depth));
        self.deepest = self.deepest.max(usize::from(depth));
        true
    }

    /// The first state from which no way leads to a goal: all that goals can be reached from is
    /// closed backwards over the edges.
    fn first_without_way(&mut self) -> Option<u32> {
        let mut arcs = std::mem::take(&mut self.edges);
        arcs.sort_unstable();
        let mut reaching = std::mem::take(&mut self.goals);
        let mut todo: Vec<u32> = (0..reaching.len() as u32)
            .filter(|&number| reaching[number as usize])
            .collect();
        while let Some(number) = todo.pop() {
            let from = arcs.partition_point(|arc| arc.0 < number);
            for &(_, before) in arcs[from..].iter().take_while(|arc| arc.0 == number) {
                if !std::mem::replace(&mut reaching[before as usize], true) {
                    todo.push(before);
                }
            }
        }
        reaching
            .iter()
            .position(|&reaches| !reaches)
            .map(|number| number as u32)
    }

    fn violated<M: Model<State = S>>(&mut self, model: &M, property: &'static str, number: u32) -> End {
        let mut way = Vec::new();
        let mut at = number;
        while let Some(&(before, step)) = self.reached_by.get(at as usize).filter(|by| by.0 != NO_PARENT) {
            way.push(step);
            at = before;
        }
        self.deepest = way.len();
        let mut trace = Vec::new();
        let mut state = model.start();
        for step in way.into_iter().rev() {
            let mut steps = Vec::new();
            model.steps(&state, &mut steps);
            let (words, next) = steps.swap_remove(usize::from(step));
            trace.push(words.to_string());
            state = next;
        }
        End::Violated { property, trace }
    }
}
