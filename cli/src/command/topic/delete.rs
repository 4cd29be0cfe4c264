//! `topic delete`: asks first, because nothing brings the records back.

use std::io::{self, BufRead as _, IsTerminal as _, Write as _};

use anyhow::{Context as _, bail};
use forebay_client::Admin;
use serde::Serialize;

use crate::command::Usage;
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
pub fn confirm(args: &DeleteArgs) -> anyhow::Result<()> {
    if args.yes {
        return Ok(());
    }
    if !io::stdin().is_terminal() {
        let name = &args.name;
        return Err(Usage(format!(
            "deleting topic {name:?} is for ever: add --yes if you mean it"
        ))
        .into());
    }
    let mut screen = io::stderr();
    write!(
        screen,
        "Deleting topic {:?} and everything in it is for ever. Type its name to go on: ",
        args.name
    )?;
    screen.flush()?;
    let mut answer = String::new();
    io::stdin()
        .lock()
        .read_line(&mut answer)
        .context("cannot read the answer")?;
    if answer.trim_end_matches(['\r', '\n']) != args.name {
        bail!("topic {:?} was not deleted", args.name);
    }
    Ok(())
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
