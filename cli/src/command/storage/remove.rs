//! `storage remove`: asks first, because what the node held does not come back.

use std::io::{self, BufRead as _, IsTerminal as _, Write as _};

use anyhow::{Context as _, bail};
use forebay_client::Admin;
use forebay_proto::v1;

use super::view::Described;
use crate::command::Usage;
use crate::output::FormatArgs;

/// What to remove.
#[derive(Debug, clap::Args)]
pub struct RemoveArgs {
    /// Number of the storage node
    pub id: u32,
    /// Remove it even where it has the last copy of something
    #[arg(long)]
    pub accept_loss: bool,
    /// Do not ask
    #[arg(long, short = 'y')]
    pub yes: bool,
    #[command(flatten)]
    pub format: FormatArgs,
}

/// Asks whether it is meant, unless that was said already.
pub fn confirm(args: &RemoveArgs) -> anyhow::Result<()> {
    let id = args.id;
    if args.yes {
        return Ok(());
    }
    if !io::stdin().is_terminal() {
        let what = format!("removing storage node {id} gives up what it holds: add --yes if you mean it");
        return Err(Usage(what).into());
    }
    let mut screen = io::stderr();
    write!(
        screen,
        "Removing storage node {id} gives up what it holds. Type its number to go on: "
    )?;
    screen.flush()?;
    let mut answer = String::new();
    io::stdin()
        .lock()
        .read_line(&mut answer)
        .context("cannot read the answer")?;
    if answer.trim() != id.to_string() {
        bail!("storage node {id} was not removed");
    }
    Ok(())
}

/// Removes the node.
pub async fn run(args: RemoveArgs, admin: &Admin) -> anyhow::Result<()> {
    let id = args.id;
    let set = admin
        .set_storage_node_state(id, v1::StorageNodeState::Gone, args.accept_loss)
        .await
        .with_context(|| format!("cannot remove storage node {id}"))?;
    args.format.print(&Described::from(set), |_| {
        format!("storage node {id} is out of the cluster")
    })
}
