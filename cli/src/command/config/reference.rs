//! `config reference`: every key, from the types that read the configuration.

use forebay_meta::model::{TOPIC_KEYS, TopicConfig};
use forebay_runtime::config::{Section, reference};
use serde::Serialize;

use crate::output::{Format, FormatArgs, print};
use crate::server::Config;

/// How to print it.
#[derive(Debug, clap::Args)]
pub struct ReferenceArgs {
    #[command(flatten)]
    pub format: FormatArgs,
}

/// A key, as `--format json` shows it.
#[derive(Debug, Serialize)]
struct Key {
    key: String,
    kind: String,
    default: Option<String>,
    meaning: String,
    variable: String,
}

/// Prints it.
pub fn run(args: ReferenceArgs) -> anyhow::Result<()> {
    let sections = reference::<Config>()?;
    match args.format.format {
        Format::Table => print(markdown(&sections).trim_end()),
        Format::Json => {
            let keys = sections.into_iter().flat_map(|section| section.keys);
            let keys: Vec<Key> = keys
                .map(|key| Key {
                    key: key.name,
                    kind: key.kind,
                    default: key.default,
                    meaning: key.text,
                    variable: key.variable,
                })
                .collect();
            print(&serde_json::to_string_pretty(&keys)?)
        }
    }
}

const HEAD: &str = "\
# Configuration

Written by `forebay config reference`; a test compares this file with what it prints.

A server reads, each over the one before: its defaults, the files of `--config`, environment variables, and
`--set key=value`. Unknown keys and values that cannot be are refused with the key, the source and the nearest
key that exists. `forebay config check FILE` says all that is wrong with a file, `forebay config show --config
FILE` what a server would run with and where each value comes from.

A *size* is a number of bytes or has a unit: `512KiB`, `64MiB`, `1GiB`. A *duration* has a unit: `200ms`, `10s`,
`5min`, `1h`. A *secret* is read like a text and is never shown. A list in a variable or a flag has commas between
its items.
";

fn markdown(sections: &[Section]) -> String {
    let mut text = HEAD.to_owned();
    for section in sections {
        text.push_str(&format!("\n## `[{}]`\n", section.name));
        if !section.text.is_empty() {
            text.push_str(&format!("\n{}\n", section.text));
        }
        text.push_str("\n| key | value | default | meaning | variable |\n|---|---|---|---|---|\n");
        for key in &section.keys {
            let default = key
                .default
                .as_ref()
                .map_or_else(|| "not set".to_owned(), |default| format!("`{default}`"));
            text.push_str(&format!(
                "| `{}` | {} | {default} | {} | `{}` |\n",
                key.name,
                key.kind,
                cell(&key.text),
                key.variable
            ));
        }
    }
    text.push_str(&topics());
    text
}

fn topics() -> String {
    let mut text = "\n## Topics\n\nSet on a topic with `forebay topic create --config` and `forebay topic alter \
                    --set`; a change is in force\nat the brokers and proxies within moments, without a restart.\n\n\
                    | key | value | default | meaning |\n|---|---|---|---|\n"
        .to_owned();
    let defaults = TopicConfig::default().entries();
    for key in TOPIC_KEYS {
        let default = defaults.get(key.name).map_or("", String::as_str);
        text.push_str(&format!(
            "| `{}` | {} | `{default}` | {} |\n",
            key.name,
            key.kind,
            cell(key.text)
        ));
    }
    text
}

/// A text inside a table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn every_key_has_a_text_and_every_section_too() {
        for section in reference::<Config>().unwrap() {
            assert!(!section.text.is_empty(), "[{}] has no text", section.name);
            for key in section.keys {
                assert!(
                    !key.text.is_empty(),
                    "{} has no text: write a documentation comment for the field",
                    key.name
                );
            }
        }
    }

    #[test]
    fn the_reference_in_docs_is_what_the_code_says() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/configuration.md");
        let written = std::fs::read_to_string(&path).unwrap();
        let expected = markdown(&reference::<Config>().unwrap());
        assert!(
            written.trim_end() == expected.trim_end(),
            "docs/configuration.md is stale: `forebay config reference > docs/configuration.md`"
        );
    }
}
