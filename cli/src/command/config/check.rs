//! `config check`: all that is wrong, not only what a server would stumble over first.

use std::path::PathBuf;

use forebay_runtime::config::ConfigError;
use serde::Serialize;

use crate::command::lifetime;
use crate::output::{FormatArgs, counted};
use crate::server::Config;

/// What to check.
#[derive(Debug, clap::Args)]
pub struct CheckArgs {
    /// TOML files, the later over the earlier; the environment and --set come on top, as they do
    /// for a server
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// A setting over files and environment; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub settings: Vec<String>,
    #[command(flatten)]
    pub format: FormatArgs,
}

/// The outcome, as `--format json` shows it.
#[derive(Debug, Serialize)]
struct Checked {
    ok: bool,
    problems: Vec<Problem>,
}

#[derive(Debug, Serialize)]
struct Problem {
    /// None where it is about a file, a variable or a flag as a whole.
    key: Option<String>,
    message: String,
}

impl From<ConfigError> for Problem {
    fn from(error: ConfigError) -> Self {
        Self {
            key: error.key().map(str::to_owned),
            message: format!("{:#}", anyhow::Error::from(error)),
        }
    }
}

/// Prints the problems; there being some is an error.
pub fn run(args: CheckArgs, log_level: Option<String>) -> anyhow::Result<()> {
    let problems = match lifetime::layers(&args.files, &args.settings, log_level) {
        Ok(layers) => layers.problems::<Config>(),
        Err(error) => vec![error],
    };
    let checked = Checked {
        ok: problems.is_empty(),
        problems: problems.into_iter().map(Problem::from).collect(),
    };
    args.format.print(&checked, render)?;
    if checked.ok {
        return Ok(());
    }
    let count = counted(checked.problems.len() as u64, "problem");
    Err(anyhow::anyhow!("the configuration has {count}"))
}

fn render(checked: &Checked) -> String {
    if checked.ok {
        return "the configuration is in order".to_owned();
    }
    let lines: Vec<&str> = checked
        .problems
        .iter()
        .map(|problem| problem.message.as_str())
        .collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::path::Path;

    use forebay_runtime::config::Layers;

    use super::*;

    #[test]
    fn all_problems_are_found_at_once_and_a_right_file_has_none() {
        let text = "[storage]\nidd = 3\njournal_file_bytes = \"few\"\n[metdata]\n[cluster]\nack_quorum = 9\n";
        let layers = Layers::new().file_text(Path::new("a.toml"), text).unwrap();
        let problems: Vec<Problem> = layers
            .problems::<Config>()
            .into_iter()
            .map(Problem::from)
            .collect();
        let keys: Vec<_> = problems
            .iter()
            .filter_map(|problem| problem.key.as_deref())
            .collect();
        assert_eq!(
            keys,
            [
                "metdata",
                "storage.idd",
                "storage.journal_file_bytes",
                "cluster.ack_quorum"
            ]
        );
        let text = render(&Checked { ok: false, problems });
        for words in [
            "a.toml:4), did you mean metadata?",
            "did you mean storage.id?",
            "\"few\"",
        ] {
            assert!(text.contains(words), "{words}: {text}");
        }
        assert!(Layers::new().problems::<Config>().is_empty());
    }
}
