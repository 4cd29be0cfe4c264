//! `topic create`.

use std::collections::BTreeMap;

use anyhow::Context as _;
use forebay_client::Admin;

use super::view::Topic;
use crate::command::Usage;
use crate::output::{FormatArgs, counted};

/// What to make.
#[derive(Debug, clap::Args)]
pub struct CreateArgs {
    /// Name of the topic
    pub name: String,
    /// How many partitions it has
    #[arg(long, short = 'p', default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..), value_name = "N")]
    pub partitions: u32,
    /// A setting, as Kafka names it; may be repeated
    #[arg(long = "config", visible_alias = "set", value_parser = parse_setting, value_name = "KEY=VALUE")]
    pub settings: Vec<(String, String)>,
    #[command(flatten)]
    pub format: FormatArgs,
}

/// Makes the topic.
pub async fn run(args: CreateArgs, admin: &Admin) -> anyhow::Result<()> {
    let settings = settings_of("--config", args.settings)?;
    let made = admin
        .create_topic(&args.name, args.partitions, settings)
        .await
        .with_context(|| format!("cannot create topic {:?}", args.name))?;
    args.format.print(&Topic::from(made), |topic| {
        format!(
            "topic {} made, with {}",
            topic.name,
            counted(topic.partitions.len() as u64, "partition")
        )
    })
}

/// Reads `KEY=VALUE`.
pub fn parse_setting(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!("{text:?} is not of the form KEY=VALUE")),
    }
}

/// Settings by key; refuses one that a flag gives twice.
pub fn settings_of(flag: &str, given: Vec<(String, String)>) -> Result<BTreeMap<String, String>, Usage> {
    let mut settings = BTreeMap::new();
    for (key, value) in given {
        let twice = Usage(format!("{flag} {key} is given twice"));
        if settings.insert(key, value).is_some() {
            return Err(twice);
        }
    }
    Ok(settings)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_setting_is_a_key_and_whatever_follows_the_first_equals_sign() {
        let setting = |key: &str, value: &str| Ok((key.to_owned(), value.to_owned()));
        assert_eq!(parse_setting("retention.ms=1"), setting("retention.ms", "1"));
        assert_eq!(parse_setting("a="), setting("a", ""));
        assert_eq!(parse_setting("a=b=c"), setting("a", "b=c"));
        assert!(parse_setting("a").is_err());
        assert!(parse_setting("=b").is_err());
    }

    #[test]
    fn a_setting_given_twice_is_refused() {
        let given = vec![("a".to_owned(), "1".to_owned()), ("a".to_owned(), "2".to_owned())];
        assert_eq!(
            settings_of("--config", given).unwrap_err().0,
            "--config a is given twice"
        );
    }
}
