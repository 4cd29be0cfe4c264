//! `version`: what this binary is.

use serde::Serialize;

use crate::output::FormatArgs;

/// How to show it.
#[derive(Debug, clap::Args)]
pub struct VersionArgs {
    #[command(flatten)]
    pub format: FormatArgs,
}

/// What `--format json` shows.
#[derive(Debug, Serialize)]
struct Version {
    name: &'static str,
    version: &'static str,
}

/// Prints it.
pub fn run(args: VersionArgs) -> anyhow::Result<()> {
    let version = Version {
        name: "forebay",
        version: env!("CARGO_PKG_VERSION"),
    };
    args.format.print(&version, |version| {
        format!("{} {}", version.name, version.version)
    })
}
