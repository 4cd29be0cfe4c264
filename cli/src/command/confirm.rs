//! Asking before something that nothing brings back.

use std::io::{self, BufRead as _, IsTerminal as _, Write as _};

use anyhow::{Context as _, bail};

use super::Usage;

/// Asks whether it is meant, unless `yes` said so: `warning` says what will happen, `word` is what must
/// be typed. Without a terminal only `yes` will do.
pub fn confirm(warning: &str, word: &str, yes: bool) -> anyhow::Result<()> {
    if yes {
        return Ok(());
    }
    if !io::stdin().is_terminal() {
        return Err(Usage(format!("{warning}: add --yes if you mean it")).into());
    }
    let mut screen = io::stderr();
    write!(screen, "{warning}. Type {word} to go on: ")?;
    screen.flush()?;
    let mut answer = String::new();
    io::stdin()
        .lock()
        .read_line(&mut answer)
        .context("cannot read the answer")?;
    if answer.trim_end_matches(['\r', '\n']) != word {
        bail!("nothing was done");
    }
    Ok(())
}
