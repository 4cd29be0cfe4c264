//! Protocols that break one rule of the log each.
#![allow(missing_docs, reason = "each is described in the table of mutants")]

/// A rule left out or bent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutant {
    RestartContinues,
    ReplicaReplacedWhileOpen,
    OpenSegmentRepaired,
    GapStored,
    AckBeforeSync,
    FenceNotSynced,
    FloorLostAtRestart,
    FenceOfUnknownNotRecorded,
    AckBeforeLink,
    AckQuorumOfOne,
    CommitBeyondFrozenEnd,
    CloseQuorumOfOne,
    AnswerBeforeFence,
    TailDropped,
    ShortestTailCarried,
    LinkBeforeCarryDurable,
    NoEpochCompare,
    UnknownTakenAsSuccess,
    UnknownTakenAsFailure,
    RepairWithoutCompare,
    SealedAtLongestTail,
    SealedBeforeDrained,
    BaseBeyondSealedEnd,
    TokensDoNotRise,
    CarryShownBeforeLink,
    CommittedOfAnotherSegment,
    LocalTailServed,
    OffloadBeyondEnd,
    LimboSaysAbsent,
    WrongGenerationSaysAbsent,
    AbsentFromChainIsEnough,
    NoFloor,
    GenerationKept,
    RotCutAsTorn,
    NoWindow,
}

impl Mutant {
    /// Whether a message that a node once refused or took can matter to it again.
    pub(super) fn revives_messages(self) -> bool {
        matches!(
            self,
            Self::FenceNotSynced
                | Self::FloorLostAtRestart
                | Self::GapStored
                | Self::GenerationKept
                | Self::RotCutAsTorn
                | Self::RestartContinues
        )
    }

    /// Whether acknowledgements of a segment count while it is being sealed.
    pub(super) fn keeps_old_acks(self) -> bool {
        matches!(self, Self::CommitBeyondFrozenEnd | Self::UnknownTakenAsFailure)
    }
}
