//! The mutants, by rule.

use super::scopes::{FLOOR, OBJECTS};
use super::{Broken, Subject};
use crate::floor::{Floor, Mutant as F};
use crate::log::{Log, Mutant as L, Scope};
use crate::objects::{Mutant as O, Objects};

const BASE: Scope = Scope::BASE;
const THREE: Scope = Scope {
    brokers: 3,
    values: 1,
    ..BASE
};
const CHANGES: Scope = Scope {
    changes: true,
    segments: 3,
    ..BASE
};
const CRASH: Scope = Scope { crashes: 1, ..BASE };
const ROT: Scope = Scope { rots: 1, ..BASE };
const WIPE: Scope = Scope { wipes: 1, ..BASE };
const TRIM: Scope = Scope { trim: true, ..BASE };

fn log(name: &'static str, what: &'static str, scope: Scope, mutant: L) -> Broken {
    let model = Log {
        scope,
        mutant: Some(mutant),
        // The window has no harm of its own: it bounds memory and the time of a takeover.
        rules: matches!(mutant, L::NoWindow),
    };
    of(name, what, Subject::Log(model))
}

fn floor(name: &'static str, what: &'static str, mutant: F) -> Broken {
    let model = Floor {
        mutant: Some(mutant),
        ..FLOOR
    };
    of(name, what, Subject::Floor(model))
}

fn objects(name: &'static str, what: &'static str, mutant: O) -> Broken {
    let model = Objects {
        reader: matches!(mutant, O::NotFoundIsTheEnd),
        mutant: Some(mutant),
        ..OBJECTS
    };
    of(name, what, Subject::Objects(model))
}

fn of(name: &'static str, what: &'static str, subject: Subject) -> Broken {
    Broken {
        name,
        what,
        subject,
        owed: false,
    }
}

fn owed(broken: Broken) -> Broken {
    Broken { owed: true, ..broken }
}

/// All mutants.
#[must_use]
pub fn mutants() -> Vec<Broken> {
    let mut mutants = writing();
    mutants.extend(recovering());
    mutants.extend(changing());
    mutants.extend(reading());
    mutants.extend(keeping());
    mutants.extend(tiering());
    mutants.sort_by_key(|broken| broken.name);
    mutants
}

fn writing() -> Vec<Broken> {
    vec![
        log(
            "i01-restarted-broker-continues",
            "a broker that restarted goes on with its old segment",
            CRASH,
            L::RestartContinues,
        ),
        log(
            "i02-replica-replaced-while-open",
            "another node takes the place of a slow replica in the open segment",
            BASE,
            L::ReplicaReplacedWhileOpen,
        ),
        log(
            "i02-open-segment-repaired",
            "repair takes the open segment too",
            Scope { repairs: 1, ..BASE },
            L::OpenSegmentRepaired,
        ),
        log(
            "i03-gap-stored",
            "a node stores an entry behind a gap",
            BASE,
            L::GapStored,
        ),
        log(
            "i04-ack-before-sync",
            "a node acknowledges what is not synced",
            Scope {
                unsynced: true,
                ..CRASH
            },
            L::AckBeforeSync,
        ),
        log(
            "i04-fence-not-synced",
            "a fence does not survive a crash",
            CRASH,
            L::FenceNotSynced,
        ),
        log(
            "i06-ack-before-link",
            "entries of a segment are acknowledged before it is linked",
            CHANGES,
            L::AckBeforeLink,
        ),
        log(
            "i06-ack-quorum-of-one",
            "one replica is enough to acknowledge",
            BASE,
            L::AckQuorumOfOne,
        ),
        log(
            "i06-commit-beyond-frozen-end",
            "a late second acknowledgement commits beyond the frozen end",
            CHANGES,
            L::CommitBeyondFrozenEnd,
        ),
        log(
            "i22-no-window",
            "an owner accepts without a bound",
            Scope { window: 1, ..BASE },
            L::NoWindow,
        ),
    ]
}

fn recovering() -> Vec<Broken> {
    vec![
        log(
            "i05-fence-of-unknown-not-recorded",
            "a node that never saw the segment answers a fence and keeps nothing",
            BASE,
            L::FenceOfUnknownNotRecorded,
        ),
        log(
            "i07-close-quorum-of-one",
            "one closed replica is enough",
            BASE,
            L::CloseQuorumOfOne,
        ),
        log(
            "i07-answer-before-fence",
            "a replica's answer is taken before it is closed",
            BASE,
            L::AnswerBeforeFence,
        ),
        log(
            "i08-tail-dropped",
            "the undecided tail is not carried",
            BASE,
            L::TailDropped,
        ),
        log(
            "i08-shortest-tail-carried",
            "the shortest tail seen is carried, not the longest",
            BASE,
            L::ShortestTailCarried,
        ),
        log(
            "i09-link-before-carry-durable",
            "the new segment is linked before the carry is durable",
            THREE,
            L::LinkBeforeCarryDurable,
        ),
        log(
            "i12-carry-shown-before-link",
            "the carry is shown before the new segment is linked",
            THREE,
            L::CarryShownBeforeLink,
        ),
        log(
            "i15-limbo-says-absent",
            "a replica in limbo is evidence of absence",
            ROT,
            L::LimboSaysAbsent,
        ),
        log(
            "i15-wrong-generation-says-absent",
            "a node of another generation is evidence of absence",
            WIPE,
            L::WrongGenerationSaysAbsent,
        ),
    ]
}

fn changing() -> Vec<Broken> {
    let unknown = Scope {
        unanswered: 1,
        ..CHANGES
    };
    vec![
        log(
            "i10-no-epoch-compare",
            "the record changes whoever owns it",
            Scope { brokers: 3, ..BASE },
            L::NoEpochCompare,
        ),
        log(
            "i10-unknown-taken-as-success",
            "a change without an answer is taken as done",
            unknown,
            L::UnknownTakenAsSuccess,
        ),
        log(
            "i10-unknown-taken-as-failure",
            "a change without an answer is taken as failed",
            unknown,
            L::UnknownTakenAsFailure,
        ),
        log(
            "i10-repair-without-compare",
            "repair writes back the record that it once read",
            Scope {
                repairs: 1,
                ..CHANGES
            },
            L::RepairWithoutCompare,
        ),
        log(
            "i11-sealed-at-longest-tail",
            "the old segment is sealed at the longest tail, nothing is carried",
            BASE,
            L::SealedAtLongestTail,
        ),
        log(
            "i11-sealed-before-drained",
            "a roll seals the old segment before it has drained",
            Scope {
                rolls: true,
                segments: 3,
                ..BASE
            },
            L::SealedBeforeDrained,
        ),
        log(
            "i11-base-beyond-sealed-end",
            "the new segment begins above the sealed end",
            BASE,
            L::BaseBeyondSealedEnd,
        ),
        owed(log(
            "i11-tokens-do-not-rise",
            "a token is the oldest revision that its creator knows",
            TRIM,
            L::TokensDoNotRise,
        )),
        owed(floor(
            "d0007-token-of-own-record",
            "a token is the revision of the partition's own record",
            F::TokenOfOwnRecord,
        )),
        owed(floor(
            "d0007-same-token-again",
            "an owner told 'closed' tries again without reading the metadata",
            F::SameTokenAgain,
        )),
        objects(
            "i10-no-session-compare",
            "a change counts although its sender's session is gone",
            O::NoSessionCompare,
        ),
    ]
}

fn reading() -> Vec<Broken> {
    vec![
        log(
            "i13-committed-of-another-segment",
            "a committed offset is applied to an older segment",
            BASE,
            L::CommittedOfAnotherSegment,
        ),
        log(
            "i14-local-tail-served",
            "a node serves all that it holds",
            BASE,
            L::LocalTailServed,
        ),
        log(
            "i14-offload-beyond-end",
            "an object holds more than the sealed segment",
            Scope {
                trim: true,
                ..CHANGES
            },
            L::OffloadBeyondEnd,
        ),
        objects(
            "i23-not-found-is-the-end",
            "'not found' is taken for the end of the log",
            O::NotFoundIsTheEnd,
        ),
    ]
}

fn keeping() -> Vec<Broken> {
    vec![
        log(
            "i05-floor-lost-at-restart",
            "a restart forgets the floor",
            Scope { trim: true, ..CRASH },
            L::FloorLostAtRestart,
        ),
        log(
            "i16-absent-from-chain-is-enough",
            "a node deletes what the chain does not name, of whatever age",
            Scope { trim: true, ..THREE },
            L::AbsentFromChainIsEnough,
        ),
        log("i17-no-floor", "a node forgets without a floor", TRIM, L::NoFloor),
        floor(
            "i17-no-floor-shared",
            "a node forgets without a floor, with two partitions",
            F::NoFloor,
        ),
        of(
            "i17-floor-set-not-raised",
            "a floor is set to the token of what is forgotten, even downwards",
            Subject::Floor(Floor {
                attempts: [2, 3],
                rolls: 3,
                mutant: Some(F::FloorSet),
            }),
        ),
        log(
            "i18-generation-kept",
            "a node with a new disk keeps its generation",
            WIPE,
            L::GenerationKept,
        ),
        log(
            "i18-rot-cut-as-torn",
            "damage to synced entries is cut like a torn write",
            ROT,
            L::RotCutAsTorn,
        ),
    ]
}

fn tiering() -> Vec<Broken> {
    vec![
        objects(
            "i19-trim-before-link",
            "nodes forget a segment when its object is written",
            O::TrimBeforeLink,
        ),
        objects(
            "i19-link-before-verified",
            "the record names an object whose upload has not ended",
            O::LinkBeforeVerified,
        ),
        objects(
            "i19-name-used-twice",
            "a retry uses an object's name again",
            O::NameUsedTwice,
        ),
        of(
            "i20-manifest-rewritten",
            "a manifest is written over the one before",
            Subject::Objects(Objects {
                segments: 2,
                uploads: 4,
                rounds: 0,
                takeover: false,
                mutant: Some(O::ManifestRewritten),
                ..OBJECTS
            }),
        ),
        objects(
            "i21-promises-ignored",
            "the collector does not look at promises",
            O::PromisesIgnored,
        ),
        objects(
            "i21-promise-passes-upload",
            "a promise passes an upload that is on its way",
            O::PromisePassesUpload,
        ),
        objects(
            "i21-records-read-first",
            "the collector reads records before sessions",
            O::RecordsReadFirst,
        ),
        objects(
            "i21-manifest-not-followed",
            "the collector does not look into manifests",
            O::ManifestNotFollowed,
        ),
        objects(
            "i21-unmarked-is-garbage",
            "the collector deletes what no record names, of whatever age",
            O::UnmarkedIsGarbage,
        ),
        objects(
            "i24-older-answer-taken",
            "the collector takes an answer older than what it has seen",
            O::OlderAnswerTaken,
        ),
    ]
}
