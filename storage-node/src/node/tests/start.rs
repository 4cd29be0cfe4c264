//! On which folder a node starts, and what it registers.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use super::*;
use crate::disk::DirectIo;
use crate::superblock::Superblock;

#[tokio::test]
async fn a_second_node_on_the_same_folder_is_refused_with_path_and_pid() {
    let world = World::new().await;
    let node = world.start().await;
    let text = world.refused(world.config()).await;
    assert!(text.contains(&world.data().display().to_string()), "{text}");
    assert!(text.contains(&format!("pid {}", std::process::id())), "{text}");
    node.shutdown().await;
    world.start().await.shutdown().await;
}

#[tokio::test]
async fn a_missing_folder_of_a_known_node_is_refused_until_it_is_reformatted() {
    let world = World::new().await;
    world.start().await.shutdown().await;
    std::fs::remove_dir_all(world.data()).unwrap();
    let text = world.refused(world.config()).await;
    assert!(
        text.contains(&world.data().display().to_string()) && text.contains("n3"),
        "{text}"
    );
    assert!(!world.data().exists(), "a refused start made the folder");
    assert_eq!(world.reformat().await.unwrap(), Generation(2));
    let node = world.start().await;
    assert_eq!((node.generation(), node.boot()), (Generation(2), 2));
    node.shutdown().await;
}

#[tokio::test]
async fn a_folder_of_another_cluster_or_node_is_refused_with_both_values() {
    let world = World::new().await;
    world.start().await.shutdown().await;
    let text = world
        .refused(Config {
            node_id: 8,
            ..world.config()
        })
        .await;
    assert!(text.contains("n3, this is n8"), "{text}");
    let environment = Environment {
        cluster_id: "x".to_owned(),
        ..world.environment()
    };
    let error = StorageNode::start(world.config(), environment).await.unwrap_err();
    assert!(chain(&error).contains("cluster c, this is x"), "{error}");
}

#[tokio::test]
async fn a_copy_of_the_disk_of_a_node_that_runs_is_refused() {
    let world = World::new().await;
    let node = world.start().await;
    world.listen("node", &node).await;
    let mut client = Client::connect(&node).await;
    let mut writer = Writer::new(1, 10);
    client.write(&mut writer, 3).await;
    // As it is at this moment, with the recorded boot and all that the record knows.
    let copy = Config {
        data_dir: world.folder.path().join("copy"),
        data_address: "mem://elsewhere".to_owned(),
        ..world.config()
    };
    self::copy(&world.data(), &copy.data_dir);
    let text = world.refused(copy).await;
    assert!(text.contains("n3 runs at mem://node, with boot 1"), "{text}");
    client.write(&mut writer, 3).await;
}

#[tokio::test]
async fn an_older_image_of_the_folder_is_refused() {
    let world = World::new().await;
    let node = world.start().await;
    let mut client = Client::connect(&node).await;
    let mut writer = Writer::new(1, 10);
    client.write(&mut writer, 3).await;
    node.shutdown().await;
    let image = world.folder.path().join("image");
    copy(&world.data(), &image);
    let node = world.start().await;
    let mut client = Client::connect(&node).await;
    client.write(&mut writer, 3).await;
    node.shutdown().await;
    std::fs::remove_dir_all(world.data()).unwrap();
    std::fs::rename(&image, world.data()).unwrap();
    // Its boot is one behind the recorded one.
    let text = world.refused(world.config()).await;
    assert!(text.contains("older image"), "{text}");
}

#[tokio::test]
async fn a_missing_journal_file_is_found() {
    let world = World::new().await;
    let node = world.start().await;
    node.shutdown().await;
    std::fs::remove_file(world.data().join(crate::journal::files::journal_name(1))).unwrap();
    let text = world.refused(world.config()).await;
    assert!(text.contains("journal file 1 is missing"), "{text}");
}

#[tokio::test]
async fn a_node_is_registered_with_its_addresses_and_says_its_status() {
    let world = World::new().await;
    let node = world.start().await;
    let seen = register::read(&*world.meta, NODE).await.unwrap();
    let record = seen.record.unwrap();
    assert_eq!(&record, node.record());
    assert_eq!((record.boot, record.data_address.as_str()), (1, "mem://node"));
    let mut client = Client::connect(&node).await;
    client.write(&mut Writer::new(1, 10), 2).await;
    let request = tonic::Request::new(v1::StorageNodeStatusRequest {});
    let control = node.control();
    let status = control.status(request).await.unwrap().into_inner();
    assert_eq!(
        (status.id, status.segments_open, status.failure.as_str()),
        (NODE.0, 1, "")
    );
    assert_eq!((status.journal_files, status.journal_bytes), (1, 1 << 20));
    let text = world.metrics.encode().unwrap();
    assert!(text.contains("forebay_storage_journal_fsyncs_total"), "{text}");
    node.shutdown().await;
}

#[tokio::test]
async fn files_are_rolled_under_load_and_all_of_them_are_read_back() {
    let world = World::new().await;
    let node = world.start().await;
    let mut client = Client::connect(&node).await;
    let mut writer = Writer::new(1, 10);
    let mut frames = vec![writer.open()];
    frames.extend((0..60).map(|_| writer.data_of_len(5, 100_000)));
    for frame in &frames {
        client.append(frame.clone()).await;
    }
    client.acked(&writer).await;
    assert!(node.status().journal_files > 5);
    node.kill().await;
    let node = world.start().await;
    let mut client = Client::connect(&node).await;
    let (mut from, mut found) = (10, Vec::new());
    while from < writer.next.0 {
        let bytes = client
            .read(Client::read_of(&writer, from, writer.next.0))
            .await
            .unwrap();
        for (facts, _) in crate::content::batches(&bytes).flatten() {
            from = facts.end.0;
        }
        found.extend_from_slice(&bytes);
    }
    assert!(found == bytes_of(&frames));
    node.shutdown().await;
}

#[tokio::test]
async fn the_checkpoint_moves_with_the_journal_and_ends_where_the_record_was_taken() {
    let world = World::new().await;
    let node = world.start().await;
    let before = node.record().lsn_checkpoint;
    let mut client = Client::connect(&node).await;
    client.write(&mut Writer::new(1, 10), 5).await;
    let durable = node.inner.shared.durable();
    assert!(durable > before);
    register::checkpoint(&*world.meta, node.record(), durable)
        .await
        .unwrap();
    let seen = register::read(&*world.meta, NODE).await.unwrap();
    let record = seen.record.clone().unwrap();
    assert_eq!(record.lsn_checkpoint, durable);

    let draining = NodeRecord {
        state: NodeState::Draining as i32,
        ..record.clone()
    };
    register::register(&*world.meta, &seen, &draining).await.unwrap();
    let state = register::checkpoint(&*world.meta, node.record(), durable)
        .await
        .unwrap();
    assert_eq!(state.state, NodeState::Draining);
    node.want(state.state);
    client.append(Writer::new(2, 10).open()).await;
    let refusal = Refusal::NoNewSegments;
    assert_eq!(
        client.recv().await,
        FromNode::NotTaken {
            segment: segment(2),
            number: 0,
            refusal
        }
    );

    let seen = register::read(&*world.meta, NODE).await.unwrap();
    register::register(&*world.meta, &seen, &NodeRecord { boot: 9, ..record })
        .await
        .unwrap();
    let taken = register::checkpoint(&*world.meta, node.record(), durable + 1).await;
    assert!(matches!(taken, Err(RegisterError::Changed { boot: 9, .. })));
    node.shutdown().await;
}

/// Copies a folder, again from the beginning where the node in it renamed a file meanwhile.
fn copy(from: &Path, to: &Path) {
    let all = || -> std::io::Result<()> {
        std::fs::create_dir(to)?;
        for entry in std::fs::read_dir(from)? {
            let entry = entry?;
            std::fs::copy(entry.path(), to.join(entry.file_name()))?;
        }
        Ok(())
    };
    while let Err(error) = all() {
        assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "{error}");
        std::fs::remove_dir_all(to).unwrap();
    }
}

#[tokio::test]
async fn a_store_that_went_back_behind_the_nodes_own_record_is_refused_however_far_it_went_on() {
    let world = World::new().await;
    let node = world.start().await;
    let (key, first) = (keys::node(NODE), node.record().clone());
    let before = world.meta.get(&key).await.unwrap().0.unwrap();
    let mut client = Client::connect(&node).await;
    let mut writer = Writer::new(1, 10);
    client.write(&mut writer, 3).await;
    node.shutdown().await;
    let disk = crate::disk::RealDisk::open(&world.data(), DirectIo::Auto).unwrap();
    let superblock = Superblock::read(&disk).unwrap().unwrap();
    assert!(
        superblock.record_revision >= before.mod_revision.0,
        "{superblock:?}"
    );
    drop(disk);
    // A restored store has the old record at its old revision; here it is the folder that is moved on.
    let disk = crate::disk::RealDisk::open(&world.data(), DirectIo::Auto).unwrap();
    let ahead = Superblock {
        record_revision: superblock.record_revision + 1_000,
        ..superblock.clone()
    };
    ahead.write(&disk).unwrap();
    let text = world.refused(world.config()).await;
    assert!(
        text.contains("revision of this node's record") && text.contains("raise-incarnation"),
        "{text}"
    );
    // With the next incarnation it starts, one boot on.
    let environment = Environment {
        incarnation: 2,
        restoring: true,
        ..world.environment()
    };
    let node = StorageNode::start(world.config(), environment).await.unwrap();
    assert_eq!(node.boot(), first.boot + 1);
    assert_eq!(node.status().incarnation, 2);
    node.shutdown().await;
}

#[tokio::test]
async fn what_the_store_has_forgotten_is_named_and_refused() {
    let world = World::new().await;
    let node = world.start().await;
    let mut client = Client::connect(&node).await;
    // Its token is of a revision that the store never had.
    let mut writer = Writer::new(900, 10);
    client.write(&mut writer, 3).await;
    node.shutdown().await;
    let text = world.refused(world.config()).await;
    assert!(
        text.contains("token") && text.contains("raise-incarnation"),
        "{text}"
    );
}

#[tokio::test]
async fn a_partition_that_the_store_never_made_is_refused() {
    let world = World::new().await;
    let node = world.start().await;
    let mut client = Client::connect(&node).await;
    client.write(&mut Writer::new(1, 10), 3).await;
    node.shutdown().await;
    let forgotten = Txn::new().then(Op::put(keys::PARTITION_IDS, encode(&CounterRecord { next: 1 })));
    world.meta.txn(forgotten).await.unwrap();
    let text = world.refused(world.config()).await;
    assert!(
        text.contains(&segment(1).to_string()) && text.contains("was ever made"),
        "{text}"
    );
}

#[tokio::test]
async fn a_reformat_is_refused_while_the_node_runs_and_for_another_nodes_folder() {
    let world = World::new().await;
    let node = world.start().await;
    let text = chain(&world.reformat().await.unwrap_err());
    assert!(text.contains(&format!("pid {}", std::process::id())), "{text}");
    node.shutdown().await;
    // A swapped disk: the folder is of node 3, the configuration of node 8, which is known.
    let other = NodeRecord {
        id: 8,
        generation: 1,
        boot: 4,
        ..NodeRecord::default()
    };
    let known = Txn::new().then(Op::put(keys::node(NodeId(8)), encode(&other)));
    world.meta.txn(known).await.unwrap();
    let config = Config {
        node_id: 8,
        ..world.config()
    };
    let swapped = world.refused(config.clone()).await;
    assert!(swapped.contains("n3, this is n8"), "{swapped}");
    let error = Reformat::begin(&config, 1, &*world.meta).await.unwrap_err();
    assert!(chain(&error).contains("n3, this is n8"), "{error}");
    let unknown = Config {
        node_id: 9,
        data_dir: world.folder.path().join("nine"),
        ..world.config()
    };
    let error = Reformat::begin(&unknown, 1, &*world.meta).await.unwrap_err();
    assert!(chain(&error).contains("does not know storage node n9"), "{error}");
    // It still starts with all it has.
    world.start().await.shutdown().await;
}

#[tokio::test]
async fn after_a_restore_a_generation_that_may_have_been_given_out_is_not_used_again() {
    let record = NodeRecord {
        generation: 1,
        ..NodeRecord::default()
    };
    assert_eq!(register::next_generation(&record, 1), Generation(2));
    assert_eq!(register::next_generation(&record, 2), Generation(1_001));
}
