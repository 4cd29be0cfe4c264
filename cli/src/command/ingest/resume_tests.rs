#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use super::*;
use crate::command::ingest::cut::Mode;

const PRINT: Fingerprint = Fingerprint {
    bytes: 100,
    crc32c: 7,
};

fn target() -> Target {
    Target {
        cluster: "c".to_owned(),
        topic: "t".to_owned(),
        topic_id: "01".to_owned(),
        partitions: 4,
        partition: Some(2),
        spread_batches: false,
        cutting: Arc::new(Cutting::new(Mode::Lines, 1, 1 << 20, 8 << 20)),
        renumber: false,
    }
}

fn id(inode: u64) -> FileId {
    FileId { device: 1, inode }
}

fn present(path: &str, inode: u64) -> Present {
    Present {
        path: path.into(),
        id: id(inode),
        size: 1_000,
        fingerprint: PRINT,
        covered: Some(PRINT),
    }
}

fn entry(path: &str, inode: u64) -> Entry {
    Entry {
        path: path.into(),
        file: id(inode),
        fingerprint: PRINT,
        first_size: 800,
        position: 500,
        line: 5,
        skipping: false,
        settled: false,
        cuts: vec![600],
        producer_id: 9,
        producer_epoch: 0,
        partitions: vec![2],
        batches: 3,
        sequences: vec![5],
        cutting: (*target().cutting).clone(),
    }
}

fn checkpoint(inputs: Vec<Entry>) -> Checkpoint {
    Checkpoint {
        cluster: "c".to_owned(),
        topic: "t".to_owned(),
        topic_id: "01".to_owned(),
        inputs,
    }
}

fn planned(
    present: &[Present],
    elsewhere: &[Present],
    entries: Vec<Entry>,
    following: bool,
) -> Result<Plan, String> {
    plan(
        present,
        elsewhere,
        Some(&checkpoint(entries)),
        &target(),
        following,
    )
}

/// Path and place of each start.
fn starts(plan: &Plan) -> Vec<(String, u64)> {
    let of = |start: &Start| (start.at.display().to_string(), start.mark.position);
    plan.starts.iter().map(of).collect()
}

#[test]
fn a_known_file_goes_on_under_its_numbers_whatever_it_is_called() {
    for path in ["/a", "/renamed"] {
        let plan = planned(
            &[present(path, 1), present("/b", 2)],
            &[],
            vec![entry("/a", 1)],
            false,
        )
        .unwrap();
        assert_eq!(starts(&plan), [(path.to_owned(), 500), ("/b".to_owned(), 0)]);
        let start = &plan.starts[0];
        assert_eq!(start.producer.unwrap().id.0, 9);
        assert_eq!(
            (start.cuts.clone(), start.mark.sequences.clone()),
            (vec![600], vec![5])
        );
        assert_eq!(start.path, Path::new("/a"), "its partition stays");
        assert_eq!(plan.starts[1].producer, None);
    }
}

#[test]
fn another_number_of_the_device_is_no_other_file() {
    let mut moved = present("/a", 1);
    moved.id.device = 77;
    let plan = planned(&[moved], &[], vec![entry("/a", 1)], false).unwrap();
    assert_eq!(starts(&plan), [("/a".to_owned(), 500)]);
    assert_eq!(plan.starts[0].id.device, 77);
}

#[test]
fn another_cutting_is_taken_only_where_nothing_is_in_doubt() {
    let mut settled = entry("/a", 1);
    settled.settled = true;
    settled.cutting.batch_bytes = 4096;
    let plan = planned(&[present("/a", 1)], &[], vec![settled.clone()], false).unwrap();
    assert_eq!(starts(&plan), [("/a".to_owned(), 500)]);
    let start = &plan.starts[0];
    assert_eq!((start.producer, start.mark.sequences.clone()), (None, vec![0]));
    let doubtful = Entry {
        settled: false,
        partitions: vec![3],
        ..settled
    };
    for following in [false, true] {
        let refused = planned(&[present("/a", 1)], &[], vec![doubtful.clone()], following).unwrap_err();
        for words in [
            "--batch-bytes was 4096 and is 1048576",
            "partitions were [3] and are [2]",
        ] {
            assert!(refused.contains(words), "{refused}");
        }
    }
}

#[test]
fn a_file_with_other_bytes_or_fewer_is_refused_unless_it_may_be_replaced() {
    let truncated = Present {
        size: 499,
        ..present("/a", 1)
    };
    let rewritten = Present {
        covered: Some(Fingerprint { crc32c: 8, ..PRINT }),
        ..present("/a", 1)
    };
    for (file, words) in [(truncated, "was truncated since"), (rewritten, "is not the file")] {
        let refused = planned(std::slice::from_ref(&file), &[], vec![entry("/a", 1)], false).unwrap_err();
        assert!(
            refused.contains(words) && refused.contains("remove the checkpoint"),
            "{refused}"
        );
        let plan = planned(&[file], &[], vec![entry("/a", 1)], true).unwrap();
        assert_eq!(starts(&plan), [("/a".to_owned(), 0)]);
        assert_eq!(
            plan.starts[0].producer, None,
            "its numbers belong to the other bytes"
        );
        assert!(plan.warnings[0].contains(words), "{:?}", plan.warnings);
    }
}

#[test]
fn a_renamed_file_is_finished_before_the_one_that_has_its_name() {
    let (new, old) = (present("/a", 2), present("/a.1", 1));
    let plan = planned(
        std::slice::from_ref(&new),
        std::slice::from_ref(&old),
        vec![entry("/a", 1)],
        true,
    )
    .unwrap();
    assert_eq!(starts(&plan), [("/a.1".to_owned(), 500), ("/a".to_owned(), 0)]);
    assert_eq!(plan.starts[0].path, plan.starts[1].path);
    let refused = planned(&[new], &[old], vec![entry("/a", 1)], false).unwrap_err();
    assert!(
        refused.contains("/a is another file") && refused.contains("/a.1 now: name it too"),
        "{refused}"
    );
}

#[test]
fn a_file_that_is_gone_is_told_or_kept_in_mind() {
    let plan = planned(&[present("/b", 2)], &[], vec![entry("/a", 1)], true).unwrap();
    assert!(
        plan.warnings[0].contains("read to byte 500 is gone"),
        "{:?}",
        plan.warnings
    );
    let both = vec![entry("/a", 1), entry("/b", 2)];
    let plan = planned(&[present("/b", 2)], &[], both, false).unwrap();
    assert_eq!(plan.kept, [entry("/a", 1)]);
    let none = planned(&[present("/b", 2)], &[], vec![entry("/a", 1)], false).unwrap_err();
    assert!(none.contains("none of the inputs"), "{none}");
}

#[test]
fn another_topic_or_cluster_is_refused() {
    let files = [present("/a", 1)];
    for (target, words) in [
        (
            Target {
                topic: "u".to_owned(),
                ..target()
            },
            "it is of topic \"t\"",
        ),
        (
            Target {
                cluster: "d".to_owned(),
                ..target()
            },
            "it is of cluster \"c\"",
        ),
        (
            Target {
                topic_id: "02".to_owned(),
                ..target()
            },
            "its id was 01 and is 02",
        ),
    ] {
        let found = checkpoint(vec![entry("/a", 1)]);
        let refused = plan(&files, &[], Some(&found), &target, false).unwrap_err();
        assert!(refused.contains(words), "{refused}");
    }
}

#[test]
fn a_path_always_leads_to_the_same_partition() {
    let spread = Target {
        partition: None,
        ..target()
    };
    let of = |path: &str| spread.partitions_of(Path::new(path));
    // By Kafka's hash, so these stay as they are.
    assert_eq!(
        [of("/var/log/a"), of("/var/log/b"), of("/var/log/c")],
        [[0], [2], [1]]
    );
    let all = Target {
        spread_batches: true,
        ..spread
    };
    assert_eq!(all.partitions_of(Path::new("/a")), [0, 1, 2, 3]);
}

#[test]
fn forgotten_numbers_are_given_up_only_by_the_operators_word() {
    let kept = planned(&[present("/a", 1)], &[], vec![entry("/a", 1)], false).unwrap();
    assert!(kept.starts[0].producer.is_some());
    assert_eq!(kept.starts[0].mark.sequences, [5]);
    let checkpoint = checkpoint(vec![entry("/a", 1)]);
    let renumber = Target {
        renumber: true,
        ..target()
    };
    let plan = plan(&[present("/a", 1)], &[], Some(&checkpoint), &renumber, false).unwrap();
    let start = &plan.starts[0];
    assert_eq!(
        (start.mark.position, start.producer),
        (500, None),
        "from where it is acknowledged"
    );
    assert_eq!(
        (start.mark.sequences.clone(), start.cuts.clone()),
        (vec![0], Vec::new())
    );
}
