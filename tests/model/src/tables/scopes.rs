//! The scopes. Small ones are exhausted by the tests; large ones only by hand.

use super::{Checked, Subject};
use crate::floor::Floor;
use crate::log::{Log, Scope};
use crate::objects::Objects;

/// Two partitions; the first needs one segment, the second rolls twice.
pub(super) const FLOOR: Floor = Floor {
    attempts: [4, 4],
    rolls: 2,
    mutant: None,
};

/// One sealed segment, two brokers, one round of garbage collection.
pub(super) const OBJECTS: Objects = Objects {
    segments: 1,
    reader: false,
    uploads: 3,
    rounds: 1,
    takeover: true,
    mutant: None,
};

fn log(name: &'static str, what: &'static str, scope: Scope) -> Checked {
    let model = Log {
        scope,
        mutant: None,
        rules: true,
    };
    of(name, what, Subject::Log(model))
}

fn objects(name: &'static str, what: &'static str, model: Objects) -> Checked {
    of(name, what, Subject::Objects(model))
}

fn of(name: &'static str, what: &'static str, subject: Subject) -> Checked {
    Checked {
        name,
        what,
        subject,
        owed: false,
        large: false,
    }
}

fn live(checked: Checked) -> Checked {
    Checked {
        owed: true,
        ..checked
    }
}

fn large(checked: Checked) -> Checked {
    Checked {
        large: true,
        ..checked
    }
}

/// All scopes.
#[must_use]
pub fn scopes() -> Vec<Checked> {
    let mut scopes = takeovers();
    scopes.extend(changes());
    scopes.extend(storage());
    scopes.extend(others());
    scopes.extend(larger());
    scopes
}

const BASE: Scope = Scope::BASE;
const ONE: Scope = Scope {
    values: 1,
    ..Scope::BASE
};
const ROLLS: Scope = Scope {
    changes: true,
    segments: 3,
    ..ONE
};

fn takeovers() -> Vec<Checked> {
    vec![
        live(log("takeover", "2 owners, 2 values", BASE)),
        live(log(
            "takeover-wipe",
            "2 owners, 2 values; a disk is lost",
            Scope { wipes: 1, ..BASE },
        )),
        live(log(
            "takeover-rot",
            "2 owners, 2 values; a replica rots into limbo",
            Scope { rots: 1, ..BASE },
        )),
        live(log(
            "takeover-unknown",
            "2 owners, 2 values; 2 answers of the store are lost",
            Scope {
                unanswered: 2,
                ..BASE
            },
        )),
        live(log(
            "takeover-three",
            "3 owners, 1 value",
            Scope { brokers: 3, ..ONE },
        )),
        log(
            "window",
            "2 owners, 3 values, a window of 1",
            Scope {
                values: 3,
                window: 1,
                ..BASE
            },
        ),
    ]
}

fn changes() -> Vec<Checked> {
    vec![
        log("change", "2 owners, 1 value; owners change replicas", ROLLS),
        log(
            "change-unknown",
            "as change; 2 answers are lost",
            Scope {
                unanswered: 2,
                ..ROLLS
            },
        ),
        log(
            "roll",
            "2 owners, 2 values; owners roll",
            Scope {
                values: 2,
                changes: false,
                rolls: true,
                ..ROLLS
            },
        ),
        log(
            "roll-change",
            "2 owners, 1 value; owners roll, and change replicas on the way",
            Scope {
                rolls: true,
                segments: 4,
                ..ROLLS
            },
        ),
        log(
            "roll-unknown",
            "2 owners, 2 values; owners roll, an answer is lost",
            Scope {
                values: 2,
                changes: false,
                rolls: true,
                unanswered: 1,
                ..ROLLS
            },
        ),
        log(
            "repair",
            "as change; a sealed segment is repaired, on suspicion",
            Scope { repairs: 1, ..ROLLS },
        ),
        log(
            "repair-wipe",
            "as repair; a disk is lost",
            Scope {
                repairs: 1,
                wipes: 1,
                ..ROLLS
            },
        ),
        log(
            "repair-unknown",
            "as repair; an answer is lost",
            Scope {
                repairs: 1,
                unanswered: 1,
                ..ROLLS
            },
        ),
        log(
            "repair-trim",
            "as repair; segments are offloaded and trimmed",
            Scope {
                repairs: 1,
                trim: true,
                ..ROLLS
            },
        ),
    ]
}

fn storage() -> Vec<Checked> {
    let unsynced = Scope {
        unsynced: true,
        crashes: 1,
        ..BASE
    };
    vec![
        log(
            "unsynced",
            "2 owners, 2 values; nodes sync late, one crashes",
            unsynced,
        ),
        live(log(
            "trim",
            "2 owners, 2 values; segments are offloaded and trimmed",
            Scope { trim: true, ..BASE },
        )),
        log(
            "trim-crash",
            "2 owners, 1 value; trim, late syncs, a crash",
            Scope {
                trim: true,
                unsynced: true,
                crashes: 1,
                ..ONE
            },
        ),
    ]
}

fn others() -> Vec<Checked> {
    vec![
        live(of(
            "floor",
            "2 partitions share floors; one rolls twice",
            Subject::Floor(FLOOR),
        )),
        objects(
            "objects",
            "1 segment, 2 brokers, 2 uploads, a round of collection, a reader",
            Objects {
                reader: true,
                uploads: 2,
                ..OBJECTS
            },
        ),
        objects(
            "objects-fold",
            "2 segments, 1 broker, 3 uploads, a round of collection",
            Objects {
                takeover: false,
                segments: 2,
                ..OBJECTS
            },
        ),
    ]
}

fn larger() -> Vec<Checked> {
    vec![
        large(log(
            "trim-three",
            "3 owners, 1 value; offload and trim",
            Scope {
                brokers: 3,
                trim: true,
                ..ONE
            },
        )),
        large(log(
            "three-wipe",
            "3 owners, 1 value; a disk is lost",
            Scope {
                brokers: 3,
                wipes: 1,
                ..ONE
            },
        )),
        large(log(
            "three-rot",
            "3 owners, 1 value; a replica rots",
            Scope {
                brokers: 3,
                rots: 1,
                ..ONE
            },
        )),
        large(log(
            "change-two",
            "2 owners, 2 values; owners change replicas",
            Scope { values: 2, ..ROLLS },
        )),
        large(log(
            "three-two",
            "3 owners, 2 values",
            Scope { brokers: 3, ..BASE },
        )),
        large(objects(
            "objects-three",
            "1 segment, 2 brokers, 3 uploads",
            OBJECTS,
        )),
    ]
}
