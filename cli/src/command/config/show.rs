//! `config show`: every value in force and where it comes from. Secrets are hidden.

use std::path::PathBuf;

use forebay_runtime::config::{Effective, Origin};
use serde::Serialize;

use crate::command::lifetime;
use crate::output::FormatArgs;
use crate::server::Config;

/// Of which configuration.
#[derive(Debug, clap::Args)]
pub struct ShowArgs {
    /// A TOML file; may be repeated, the later over the earlier
    #[arg(long = "config", value_name = "FILE")]
    pub configs: Vec<PathBuf>,
    /// A setting over files and environment; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub settings: Vec<String>,
    #[command(flatten)]
    pub format: FormatArgs,
}

/// A value in force, as `--format json` shows it.
#[derive(Debug, Serialize)]
struct Shown {
    key: String,
    value: toml::Value,
    /// A file with its line, a variable, a flag, or `default`.
    origin: String,
    #[serde(skip)]
    is_default: bool,
}

impl From<Effective> for Shown {
    fn from(found: Effective) -> Self {
        Self {
            is_default: found.origin == Origin::Default,
            origin: found.origin.to_string(),
            key: found.key,
            value: found.value,
        }
    }
}

/// Prints them.
pub fn run(args: ShowArgs, log_level: Option<String>) -> anyhow::Result<()> {
    let layers = lifetime::layers(&args.configs, &args.settings, log_level)?;
    let effective = layers.effective::<Config>()?;
    let shown: Vec<Shown> = effective.into_iter().map(Shown::from).collect();
    args.format.print(&shown, |shown| render(shown))
}

/// As a TOML file whose comments tell where a value comes from, so that it can be used as one.
fn render(shown: &[Shown]) -> String {
    let mut text = String::new();
    let mut section = "";
    for one in shown {
        let (name, key) = one.key.rsplit_once('.').unwrap_or(("", &one.key));
        if name != section {
            text.push_str(&format!("\n[{name}]\n"));
            section = name;
        }
        let source = if one.is_default {
            String::new()
        } else {
            format!("  # {}", one.origin)
        };
        text.push_str(&format!("{key} = {}{source}\n", one.value));
    }
    text.trim().to_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::path::Path;

    use forebay_runtime::config::Layers;

    use super::*;

    #[test]
    fn what_is_shown_says_where_it_comes_from_and_reads_back_as_the_same() {
        let layers = Layers::new()
            .file_text(
                Path::new("a.toml"),
                "[listen]\nzone = \"z\"\n[storage]\nid = 4\ndata_dir = \"/x y\"\n",
            )
            .unwrap()
            .env([("FOREBAY_BROKER__TAIL_CACHE_BYTES".into(), "5MiB".into())], &[])
            .unwrap()
            .flags(["cluster.name=c\"1"])
            .unwrap();
        let layers_again = |text: &str| {
            let again = Layers::new().file_text(Path::new("b.toml"), text).unwrap();
            again.load::<Config>()
        };
        let wrong = layers.load::<Config>().unwrap_err();
        assert_eq!(wrong.key(), Some("cluster.name"), "{wrong}");
        let layers = layers.flags(["cluster.name=c1"]).unwrap();
        let shown: Vec<Shown> = layers
            .effective::<Config>()
            .unwrap()
            .into_iter()
            .map(Shown::from)
            .collect();
        let text = render(&shown);
        for line in [
            "zone = \"z\"  # a.toml:2",
            "id = 4  # a.toml:4",
            "tail_cache_bytes = \"5MiB\"  # environment variable FOREBAY_BROKER__TAIL_CACHE_BYTES",
            "name = \"c1\"  # flag cluster.name",
            "replicas = 3",
        ] {
            assert!(text.lines().any(|one| one == line), "{line}:\n{text}");
        }
        assert_eq!(layers_again(&text).unwrap(), layers.load::<Config>().unwrap());
    }
}
