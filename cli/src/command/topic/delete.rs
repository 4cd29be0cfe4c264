//! `topic delete`: asks first, because nothing brings the records back.

use anyhow::Context as _;
use forebay_client::Admin;
use serde::Serialize;

use crate::command::confirm::confirm;
use crate::output::FormatArgs;

/// What to delete.
#[derive(Debug, clap::Args)]
pub struct DeleteArgs {
    /// Name of the topic
    pub name: String,
    /// Do not ask
    #[arg(long, short = 'y')]
    pub yes: bool,
    #[command(flatten)]
    pub format: FormatArgs,
}

/// What was done, as `--format json` shows it.
#[derive(Debug, Serialize)]
struct Deleted<'a> {
    name: &'a str,
    deleted: bool,
}

/// Asks whether it is meant, unless that was said already.
pub fn confirmed(args: &DeleteArgs) -> anyhow::Result<()> {
    let name = &args.name;
    let warning = format!("deleting topic {name:?} and everything in it is for ever");
    confirm(&warning, name, args.yes)
}

/// Deletes the topic.
pub async fn run(args: &DeleteArgs, admin: &Admin) -> anyhow::Result<()> {
    admin
        .delete_topic(&args.name)
        .await
        .with_context(|| format!("cannot delete topic {:?}", args.name))?;
    let deleted = Deleted {
        name: &args.name,
        deleted: true,
    };
    args.format
        .print(&deleted, |deleted| format!("topic {} deleted", deleted.name))
}
