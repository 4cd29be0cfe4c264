//! The command line as it is typed.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use clap::error::ErrorKind;
use clap::{CommandFactory as _, Parser as _};
use forebay_client::{Offset, StartPosition};

use super::*;
use crate::output::Format;
use crate::server::Role;

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(std::iter::once("forebay").chain(line.split_whitespace()))
}

fn command(line: &str) -> Command {
    parse(line)
        .unwrap_or_else(|error| panic!("{line}: {error}"))
        .command
}

#[test]
fn the_definition_is_sound() {
    Cli::command().debug_assert();
}

#[test]
fn the_server_may_be_named_before_and_after_the_verb() {
    for line in [
        "--server a:1,b:2 topic list",
        "topic list --server a:1,b:2",
        "topic --server a:1,b:2 list",
    ] {
        assert_eq!(parse(line).unwrap().global.servers, ["a:1", "b:2"], "{line}");
    }
}

#[test]
fn a_log_level_is_checked_before_anything_is_done() {
    let cli = parse("topic list --log-level info,forebay_client=debug").unwrap();
    assert_eq!(cli.global.log_level.as_deref(), Some("info,forebay_client=debug"));
    assert_eq!(parse("topic list --log-level a=loud").unwrap_err().exit_code(), 2);
}

#[test]
fn standalone_takes_a_folder_and_addresses() {
    let Command::Standalone(args) = command("standalone") else {
        panic!()
    };
    assert_eq!(
        (args.data.to_str(), args.listen, args.admin_listen),
        (Some("forebay-data"), None, None)
    );
    let Command::Standalone(args) = command("standalone --data /d --listen 0.0.0.0:1 --admin-listen [::1]:2")
    else {
        panic!()
    };
    assert_eq!(args.data.to_str(), Some("/d"));
    assert_eq!(args.listen.unwrap().to_string(), "0.0.0.0:1");
    assert_eq!(args.admin_listen.unwrap().to_string(), "[::1]:2");
}

#[test]
fn serve_takes_roles_files_and_settings() {
    let Command::Serve(args) = command("serve --roles proxy,broker --config a.toml --set x.y=1 --set z=2")
    else {
        panic!()
    };
    assert_eq!(args.roles, [Role::Proxy, Role::Broker]);
    assert_eq!(args.configs.len(), 1);
    assert_eq!(args.settings, ["x.y=1", "z=2"]);
    assert_eq!(
        parse("serve").unwrap_err().kind(),
        ErrorKind::MissingRequiredArgument
    );
    let error = parse("serve --roles cook").unwrap_err();
    assert_eq!(error.exit_code(), 2);
    assert!(error.to_string().contains("cook"), "{error}");
}

#[test]
fn topics_are_made_with_partitions_and_settings() {
    let Command::Topic(topic::TopicCommand::Create(args)) =
        command("topic create clicks --partitions 8 --config retention.ms=5 --config a= --format json")
    else {
        panic!()
    };
    assert_eq!(
        (args.name.as_str(), args.partitions, args.format.format),
        ("clicks", 8, Format::Json)
    );
    let settings: Vec<_> = args
        .settings
        .iter()
        .map(|(key, value)| (key.as_str(), value.as_str()))
        .collect();
    assert_eq!(settings, [("retention.ms", "5"), ("a", "")]);
    for wrong in [
        "topic create t --partitions 0",
        "topic create t --config nonsense",
        "topic create",
    ] {
        assert_eq!(parse(wrong).unwrap_err().exit_code(), 2, "{wrong}");
    }
    let Command::Topic(topic::TopicCommand::Delete(args)) = command("topic delete t --yes") else {
        panic!()
    };
    assert!(args.yes);
}

#[test]
fn acks_may_be_numbers_as_kafka_has_them() {
    for (text, level) in [
        ("all", "All"),
        ("1", "One"),
        ("one", "One"),
        ("0", "None"),
        ("none", "None"),
    ] {
        let Command::Produce(args) = command(&format!("produce t --acks {text} --compression zstd -p 3"))
        else {
            panic!()
        };
        assert_eq!(format!("{:?}", args.acks), level, "{text}");
        assert_eq!(args.partition, Some(3));
    }
    for wrong in [
        "produce t --acks 2",
        "produce t --compression brotli",
        "produce t --key-separator=",
    ] {
        assert_eq!(parse(wrong).unwrap_err().exit_code(), 2, "{wrong}");
    }
}

#[test]
fn consume_begins_where_it_is_told() {
    for (line, from) in [
        ("consume t", StartPosition::Earliest),
        ("consume t --from latest", StartPosition::Latest),
        ("consume t --from 17 --partition 0", StartPosition::At(Offset(17))),
        ("consume t --from 17ms", StartPosition::Timestamp(17)),
        (
            "consume t --from 1970-01-01T00:00:00.017Z",
            StartPosition::Timestamp(17),
        ),
    ] {
        let Command::Consume(args) = command(line) else {
            panic!()
        };
        assert_eq!(args.from, from, "{line}");
    }
    let Command::Consume(args) = command("consume t --until-end --max 3") else {
        panic!()
    };
    assert!(args.until_end);
    assert_eq!(args.max, Some(3));
    let error = parse("consume t --from yesterday").unwrap_err();
    assert_eq!(error.exit_code(), 2);
    assert!(error.to_string().contains("2026-11-20T09:30:00Z"), "{error}");
    assert_eq!(parse("consume t --max 0").unwrap_err().exit_code(), 2);
}

#[test]
fn the_quickstart_makes_up_a_file_or_takes_one() {
    let Command::Quickstart(args) = command("quickstart --exit --size 2MiB") else {
        panic!()
    };
    assert!(args.exit && args.file.is_none());
    assert_eq!(args.size.as_u64(), 2 << 20);
    let Command::Quickstart(args) = command("quickstart --file a.log") else {
        panic!()
    };
    assert_eq!(args.size.as_u64(), 100 << 20);
    assert_eq!(
        parse("quickstart --file a --size 1MiB").unwrap_err().kind(),
        ErrorKind::ArgumentConflict
    );
}

#[test]
fn every_verb_says_what_it_is_for() {
    for verb in Cli::command().get_subcommands() {
        assert!(verb.get_about().is_some(), "{}", verb.get_name());
    }
}
