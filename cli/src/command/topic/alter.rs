//! `topic alter`.

use std::collections::BTreeMap;

use anyhow::Context as _;
use forebay_client::Admin;
use serde::Serialize;

use super::create::{parse_setting, settings_of};
use super::view::Setting;
use crate::command::Usage;
use crate::output::{FormatArgs, table};

/// What to change.
#[derive(Debug, clap::Args)]
pub struct AlterArgs {
    /// Name of the topic
    pub name: String,
    /// A setting, as Kafka names it; may be repeated
    #[arg(long = "set", value_parser = parse_setting, value_name = "KEY=VALUE", required_unless_present = "unset")]
    pub set: Vec<(String, String)>,
    /// A setting that is to have its default again; may be repeated
    #[arg(long = "unset", value_name = "KEY")]
    pub unset: Vec<String>,
    #[command(flatten)]
    pub format: FormatArgs,
}

/// The topic as it is afterwards, as `--format json` shows it.
#[derive(Debug, Serialize)]
struct Altered {
    name: String,
    settings: Vec<Setting>,
}

/// What is to be set. Refuses a key that is named twice.
pub fn change_of(args: &AlterArgs) -> Result<BTreeMap<String, String>, Usage> {
    let set = settings_of("--set", args.set.clone())?;
    match args.unset.iter().find(|key| set.contains_key(*key)) {
        Some(key) => Err(Usage(format!("{key} is given to --set and to --unset"))),
        None => Ok(set),
    }
}

/// Changes the topic.
pub async fn run(args: AlterArgs, set: BTreeMap<String, String>, admin: &Admin) -> anyhow::Result<()> {
    let settings = admin
        .alter_topic_config(&args.name, set, args.unset)
        .await
        .with_context(|| format!("cannot alter topic {:?}", args.name))?;
    let altered = Altered {
        name: args.name,
        settings: settings.into_iter().map(Setting::from).collect(),
    };
    args.format.print(&altered, |altered| {
        let rows = altered.settings.iter().map(Setting::row);
        format!(
            "topic {} altered\n{}",
            altered.name,
            table(&["KEY", "VALUE", "SOURCE"], &[], rows)
        )
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::output::Format;

    #[test]
    fn a_key_is_set_or_unset_and_never_both() {
        let pair = |key: &str| (key.to_owned(), "1".to_owned());
        let args = |set: &[&str], unset: &[&str]| AlterArgs {
            name: "t".to_owned(),
            set: set.iter().copied().map(pair).collect(),
            unset: unset.iter().map(|&key| key.to_owned()).collect(),
            format: FormatArgs {
                format: Format::Table,
            },
        };
        assert_eq!(change_of(&args(&["a", "b"], &["c"])).unwrap().len(), 2);
        assert!(
            change_of(&args(&["a", "a"], &[]))
                .unwrap_err()
                .0
                .contains("--set a")
        );
        assert!(
            change_of(&args(&["a"], &["a"]))
                .unwrap_err()
                .0
                .contains("--unset")
        );
    }
}
