//! Configuration of servers: whether it is right, what is in force, what there is.

mod check;
mod reference;
mod show;

use clap::Subcommand;

/// What to do with configuration.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Say all that is wrong with configuration files
    Check(check::CheckArgs),
    /// Show what a server would run with, and where each value comes from
    Show(show::ShowArgs),
    /// Print every key with its default and meaning, as Markdown
    Reference(reference::ReferenceArgs),
}

impl ConfigCommand {
    /// Carries it out.
    pub fn run(self, log_level: Option<String>) -> anyhow::Result<()> {
        match self {
            Self::Check(args) => check::run(args, log_level),
            Self::Show(args) => show::run(args, log_level),
            Self::Reference(args) => reference::run(args),
        }
    }
}
