#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use super::*;
use crate::superblock::STARTS;

const DISK: Uuid = Uuid::from_u128(77);

fn me() -> Identity<'static> {
    Identity {
        path: Path::new("/d"),
        node: NodeId(3),
        cluster: "c",
        incarnation: 1,
        revision: Revision(50),
        record_revision: Revision(45),
    }
}

fn superblock(boot: u64) -> Superblock {
    Superblock {
        disk: DISK,
        node: NodeId(3),
        generation: Generation(2),
        boot,
        newest_file: 1,
        incarnation: 1,
        revision: 40,
        record_revision: 0,
        starts: [0; STARTS],
        cluster: "c".to_owned(),
    }
}

fn record(boot: u64) -> NodeRecord {
    let disk = DISK.as_bytes().to_vec().into();
    NodeRecord {
        id: 3,
        generation: 2,
        boot,
        disk,
        state: NodeState::Active as i32,
        ..NodeRecord::default()
    }
}

#[test]
fn an_unknown_node_without_data_starts_fresh() {
    assert_eq!(
        plan(me(), None, None),
        Ok(Plan::Fresh {
            generation: Generation(1),
            boot: 1
        })
    );
}

#[test]
fn a_known_node_without_data_is_refused_until_it_is_declared_gone() {
    let text = plan(me(), None, Some(&record(4))).unwrap_err().to_string();
    assert!(text.contains("/d") && text.contains("n3"), "{text}");
    let gone = NodeRecord {
        state: NodeState::Gone as i32,
        ..record(4)
    };
    assert_eq!(
        plan(me(), None, Some(&gone)),
        Ok(Plan::Fresh {
            generation: Generation(3),
            boot: 5
        })
    );
    assert!(matches!(
        plan(me(), Some(&superblock(4)), Some(&gone)),
        Err(Refused::Gone { .. })
    ));
    // The first start with the new generation ended after it had written the folder.
    let begun = Superblock {
        generation: Generation(3),
        ..superblock(5)
    };
    assert_eq!(
        plan(me(), Some(&begun), Some(&gone)),
        Ok(Plan::Resume { boot: 5 })
    );
    for other in [
        Superblock {
            generation: Generation(4),
            ..superblock(5)
        },
        Superblock {
            generation: Generation(3),
            ..superblock(6)
        },
    ] {
        let planned = plan(me(), Some(&other), Some(&gone));
        assert!(matches!(planned, Err(Refused::Gone { .. })), "{planned:?}");
    }
}

#[test]
fn a_folder_resumes_with_the_recorded_boot_or_one_more() {
    for boot in [4, 5] {
        assert_eq!(
            plan(me(), Some(&superblock(boot)), Some(&record(4))),
            Ok(Plan::Resume { boot: 5 })
        );
    }
    assert!(matches!(
        plan(me(), Some(&superblock(3)), Some(&record(4))),
        Err(Refused::Older {
            what: "boot",
            found: 3,
            expected: 4,
            ..
        })
    ));
    assert!(matches!(
        plan(me(), Some(&superblock(6)), Some(&record(4))),
        Err(Refused::StoreBehind { .. })
    ));
}

#[test]
fn a_backup_from_before_a_reformat_does_not_turn_the_reformatted_node_away() {
    let gone = NodeRecord {
        state: NodeState::Gone as i32,
        ..record(4)
    };
    let reformatted = Superblock {
        generation: Generation(3),
        ..superblock(7)
    };
    let raised = Identity {
        incarnation: 2,
        revision: Revision(1),
        ..me()
    };
    assert_eq!(
        plan(raised, Some(&reformatted), Some(&gone)),
        Ok(Plan::Resume { boot: 8 })
    );
    // The generation that was declared gone stays away, and all do without a raised incarnation.
    for (me, superblock) in [(raised, superblock(7)), (me(), reformatted)] {
        let planned = plan(me, Some(&superblock), Some(&gone));
        assert!(matches!(planned, Err(Refused::Gone { .. })), "{planned:?}");
    }
}

#[test]
fn of_two_copies_of_a_disk_only_the_one_that_started_last_goes_on() {
    let started = |starts: [u64; STARTS]| Superblock {
        starts,
        ..superblock(5)
    };
    let record = NodeRecord {
        start: 50,
        data_address: "elsewhere".to_owned(),
        ..record(5)
    };
    let mine = started([50, 40, 30, 0, 0, 0, 0, 0]);
    assert_eq!(
        plan(me(), Some(&mine), Some(&record)),
        Ok(Plan::Resume { boot: 6 })
    );
    // Its start had begun too, and lost; the folder has the same boot.
    let copy = started([51, 40, 30, 0, 0, 0, 0, 0]);
    let refused = plan(me(), Some(&copy), Some(&record)).unwrap_err();
    assert!(matches!(refused, Refused::Copied { boot: 5, .. }), "{refused}");
    assert!(refused.to_string().contains("elsewhere"), "{refused}");
    // A start that reached the store late, while the next ones had begun already.
    let late = Superblock {
        boot: 6,
        ..started([53, 52, 50, 40, 0, 0, 0, 0])
    };
    assert_eq!(
        plan(me(), Some(&late), Some(&record)),
        Ok(Plan::Resume { boot: 6 })
    );
}

#[test]
fn a_first_start_that_did_not_reach_the_store_is_resumed() {
    assert_eq!(
        plan(me(), Some(&superblock(1)), None),
        Ok(Plan::Resume { boot: 1 })
    );
    assert!(matches!(
        plan(me(), Some(&superblock(2)), None),
        Err(Refused::StoreBehind { .. })
    ));
}

#[test]
fn a_foreign_folder_is_refused_with_both_values() {
    let foreign = |superblock: Superblock, record: NodeRecord, expected: &str| {
        let refused = plan(me(), Some(&superblock), Some(&record)).unwrap_err();
        assert!(matches!(refused, Refused::Foreign { .. }), "{refused}");
        assert!(refused.to_string().contains(expected), "{refused}");
    };
    foreign(
        Superblock {
            cluster: "x".to_owned(),
            ..superblock(4)
        },
        record(4),
        "cluster x, this is c",
    );
    foreign(
        Superblock {
            node: NodeId(9),
            ..superblock(4)
        },
        record(4),
        "n9, this is n3",
    );
    foreign(
        Superblock {
            generation: Generation(1),
            ..superblock(4)
        },
        record(4),
        "g1, this is g2",
    );
    foreign(
        Superblock {
            disk: Uuid::from_u128(1),
            ..superblock(4)
        },
        record(4),
        "disk",
    );
}

#[test]
fn a_store_that_went_back_is_refused() {
    for (incarnation, revision) in [(1, 39), (0, 99)] {
        let me = Identity {
            incarnation,
            revision: Revision(revision),
            ..me()
        };
        let refused = plan(me, Some(&superblock(4)), Some(&record(4)));
        assert!(matches!(refused, Err(Refused::StoreBehind { .. })), "{refused:?}");
    }
    let newer = Identity {
        incarnation: 2,
        revision: Revision(1),
        ..me()
    };
    assert!(plan(newer, Some(&superblock(4)), Some(&record(4))).is_ok());
}
