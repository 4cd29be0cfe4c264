//! The state of the objects model, and what must hold in it.
#![allow(missing_docs, reason = "fields are named in the words of docs/protocol.md")]

/// Sealed segments.
pub const SEGMENTS: usize = 2;
/// Brokers, with a session each.
pub const BROKERS: usize = 2;
/// Names of objects.
pub const OBJECTS: usize = 6;

/// Runs by segment: what a manifest says.
pub type Runs = [Option<u8>; SEGMENTS];

/// The partition's record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Record {
    pub revision: u8,
    pub epoch: u8,
    pub recent: Runs,
    pub manifest: Option<u8>,
    /// What the manifest said when it was committed; stands for its length and checksum.
    pub committed: Runs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Upload {
    /// The name was never used.
    #[default]
    Unused,
    /// On its way; nobody else can see it.
    Began,
    /// Complete.
    There,
    Deleted,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Content {
    Run(u8),
    Manifest(Runs),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Object {
    pub upload: Upload,
    /// The revision in its name.
    pub revision: u8,
    pub content: Content,
}

/// What a broker does with an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Task {
    #[default]
    None,
    /// Uploads, or has uploaded and verified, and reads the record before it sends the change.
    Upload(u8),
    /// Has sent the change that names it, having seen a revision of the record.
    Sent { object: u8, seen: u8 },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Broker {
    /// Epoch of its grant; 0 without.
    pub epoch: u8,
    /// Newest revision it has seen.
    pub seen: u8,
    pub task: Task,
    /// Whether its session's key exists, and what that promises.
    pub session: bool,
    pub promise: u8,
}

/// Where a round of garbage collection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Round {
    Idle,
    /// Objects with an older name than this may go, if nothing names them.
    Floor {
        floor: u8,
        read_at: u8,
    },
    /// A mutant's first step.
    MarksOnly {
        marks: u8,
    },
    /// Both are known.
    Delete {
        floor: u8,
        marks: u8,
    },
}

/// Where a segment is to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Place {
    Nodes,
    Object(u8),
}

/// The whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct State {
    pub revision: u8,
    pub record: Record,
    /// The record before its last change; only a store that went back in time shows it.
    pub before: Record,
    pub objects: [Object; OBJECTS],
    pub used: u8,
    pub brokers: [Broker; BROKERS],
    pub on_nodes: [bool; SEGMENTS],
    pub round: Round,
    pub rounds: u8,
    pub plan: Option<Place>,
    pub broken: Option<&'static str>,
}

impl State {
    pub fn start() -> Self {
        let record = Record {
            revision: 1,
            epoch: 1,
            ..Record::default()
        };
        let broker = Broker {
            seen: 1,
            session: true,
            ..Broker::default()
        };
        Self {
            revision: 1,
            record,
            before: record,
            objects: [Object {
                upload: Upload::Unused,
                revision: 0,
                content: Content::Run(0),
            }; OBJECTS],
            used: 0,
            brokers: [Broker { epoch: 1, ..broker }, broker],
            on_nodes: [true; SEGMENTS],
            round: Round::Idle,
            rounds: 0,
            plan: None,
            broken: None,
        }
    }

    pub fn object(&self, object: u8) -> &Object {
        &self.objects[usize::from(object)]
    }

    pub fn is_there(&self, object: u8) -> bool {
        matches!(self.object(object).upload, Upload::There)
    }

    pub fn is_folded(&self, segment: usize) -> bool {
        self.record.committed[segment].is_some()
    }

    /// Whether some object holds a segment, named or not.
    pub fn is_uploaded(&self, segment: usize) -> bool {
        self.objects.iter().any(|object| {
            object.content == Content::Run(segment as u8) && matches!(object.upload, Upload::There)
        })
    }

    pub fn place_of(&self, segment: usize) -> Place {
        match self.record.recent[segment].or(self.record.committed[segment]) {
            Some(object) => Place::Object(object),
            None => Place::Nodes,
        }
    }

    /// A bit for each object that a record names, itself or in its manifest.
    pub fn marks_of(&self, record: &Record, follow: bool) -> u8 {
        let mut marks = 0;
        let folded = record.committed.iter().filter(|_| follow);
        for object in record
            .recent
            .iter()
            .chain(folded)
            .chain([&record.manifest])
            .flatten()
        {
            marks |= 1 << object;
        }
        marks
    }

    pub fn broken_property(&self) -> Option<&'static str> {
        if self.broken.is_some() {
            return self.broken;
        }
        let marks = self.marks_of(&self.record, true);
        let missing = |object: &u8| marks & 1 << object != 0 && !self.is_there(*object);
        if (0..OBJECTS as u8).any(|object| missing(&object)) {
            return Some("the record names an object that does not exist");
        }
        if let Some(manifest) = self.record.manifest
            && self.object(manifest).content != Content::Manifest(self.record.committed)
        {
            return Some("the record's manifest is not the one that was committed");
        }
        for segment in 0..SEGMENTS {
            let named = self.record.recent[segment].or(self.record.committed[segment]);
            if !self.on_nodes[segment] && named.is_none() {
                return Some("a segment is neither on nodes nor in an object that the record names");
            }
            let holds = |object: u8| self.object(object).content == Content::Run(segment as u8);
            if named.is_some_and(|object| !holds(object)) {
                return Some("the record names an object that holds something else");
            }
        }
        None
    }
}
