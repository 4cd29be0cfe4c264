//! Rules of the protocol, broken on purpose: a simulation that never fails proves nothing until
//! it is seen to fail where the code is wrong.
//!
//! Code that keeps a rule asks [`is`] whether to break it. Without the feature `mutants`, which only
//! the simulator turns on, the answer is a constant *no* and costs nothing. With it, at most one
//! rule is broken, for the whole process, by [`breaks`].

/// Defines the rules with their names and what is done instead of keeping them.
macro_rules! mutants {
    ($($variant:ident $name:literal $what:literal,)*) => {
        /// A rule that can be broken. Its name begins with the invariant that it belongs to.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Mutant {
            $(#[doc = $what] $variant,)*
        }

        impl Mutant {
            /// All of them, by name.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// Its name.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }

            /// What is done instead.
            #[must_use]
            pub const fn what(self) -> &'static str {
                match self {
                    $(Self::$variant => $what,)*
                }
            }
        }
    };
}

mutants! {
    EpochKept "i01-epoch-kept" "a broker that begins anew gets the epoch that it had",
    GenerationIgnored "i02-generation-ignored" "a node answers for generations that it is no longer",
    GapStored "i03-gap-stored" "a node stores a frame behind a gap",
    AckBeforeSync "i04-ack-before-sync" "a node acknowledges what is not synced",
    FenceForgotten "i05-fence-forgotten" "a fence is not written to the journal",
    UnknownNotFenced "i05-unknown-not-fenced" "a node that never saw a segment answers its fence and keeps nothing",
    AckBeforeLink "i06-ack-before-link" "records of a segment are acknowledged before it is linked",
    AckQuorumOfOne "i06-ack-quorum-of-one" "one replica is enough to acknowledge",
    CommitBeyondEnd "i06-commit-beyond-end" "a late acknowledgement commits beyond the frozen end",
    CloseQuorumOfOne "i07-close-quorum-of-one" "one closed replica is enough",
    TailDropped "i08-tail-dropped" "the undecided tail is not carried",
    ShortestCarried "i08-shortest-carried" "the shortest tail is carried, not the longest",
    LinkBeforeDurable "i09-link-before-durable" "a new segment is linked before the carry is on a quorum",
    EpochIgnored "i10-epoch-ignored" "an owner changes a record on although a newer owner has it, and its session is not compared",
    SealedUncommitted "i11-sealed-uncommitted" "a roll seals before all below the end is committed",
    CommittedOfAnother "i13-committed-of-another" "the owner's committed offset is stated for the segments before it too, beyond their ends",
    UncommittedRead "i14-uncommitted-read" "readers are shown what is appended and not committed",
    LimboIsEvidence "i15-limbo-is-evidence" "a replica in limbo counts as evidence",
    AbsentIsDeletable "i16-absent-is-deletable" "a node deletes what is absent from the chain",
    FloorNotRaised "i17-floor-not-raised" "a trim does not raise the floor",
    DamageIsTorn "i18-damage-is-torn" "damage in the middle of the journal is cut like a torn tail",
    GenerationKept "i18-generation-kept" "a reformatted node keeps its generation",
    CopyStarts "i18-copy-starts" "a copy of a disk starts although another copy was started last",
    TrimBeforeLink "i19-trim-before-link" "nodes forget sealed segments before the record names an object",
    PromisesIgnored "i21-promises-ignored" "the collector does not look at promises",
    OlderAnswerTaken "i24-older-answer-taken" "a node takes an answer that is older than what it has seen",
}

impl std::str::FromStr for Mutant {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let found = Self::ALL.iter().find(|mutant| mutant.name() == name);
        found
            .copied()
            .ok_or_else(|| format!("no mutant is called {name:?}"))
    }
}

#[cfg(feature = "mutants")]
static BROKEN: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(usize::MAX);

/// Breaks one rule in this process from now on.
#[cfg(feature = "mutants")]
pub fn breaks(mutant: Mutant) {
    BROKEN.store(mutant as usize, std::sync::atomic::Ordering::Relaxed);
}

/// Whether a rule is broken.
#[cfg(feature = "mutants")]
#[must_use]
pub fn is(mutant: Mutant) -> bool {
    BROKEN.load(std::sync::atomic::Ordering::Relaxed) == mutant as usize
}

/// Whether a rule is broken: never.
#[cfg(not(feature = "mutants"))]
#[must_use]
pub const fn is(_: Mutant) -> bool {
    false
}
