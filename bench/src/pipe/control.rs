//! How a child process of the pipe talks with the process that started it.
//!
//! It prints a line once it listens, answers each line on its standard input with one line of
//! counts, and leaves when its standard input closes.

use std::future::Future;
use std::io::{BufRead, Write};

use anyhow::Context;
use serde::Serialize;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// Runs a role on a port of its own until it fails or the parent wants it to leave. `counts` is
/// asked from another thread.
pub fn run<T, F>(
    counts: impl Fn() -> T + Send + 'static,
    role: impl FnOnce(TcpListener) -> F,
) -> anyhow::Result<()>
where
    T: Serialize,
    F: Future<Output = anyhow::Result<()>>,
{
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        say(&format!("listening {}", listener.local_addr()?))?;
        let leave = CancellationToken::new();
        let told = leave.clone();
        std::thread::Builder::new()
            .name("control".to_owned())
            .spawn(move || {
                if let Err(error) = answer_lines(counts) {
                    eprintln!("control: {error:#}");
                }
                told.cancel();
            })?;
        tokio::select! {
            result = role(listener) => result,
            () = leave.cancelled() => Ok(()),
        }
    })
}

fn answer_lines<T: Serialize>(counts: impl Fn() -> T) -> anyhow::Result<()> {
    for line in std::io::stdin().lock().lines() {
        line?;
        say(&format!("counts {}", serde_json::to_string(&counts())?))?;
    }
    Ok(())
}

/// Prints one line at once, whatever standard output is.
pub fn say(line: &str) -> anyhow::Result<()> {
    let mut output = std::io::stdout().lock();
    writeln!(output, "{line}")
        .and_then(|()| output.flush())
        .context("the parent no longer reads")
}

/// Waits for the parent's next line.
pub fn await_line() -> anyhow::Result<String> {
    let mut line = String::new();
    let read = std::io::stdin().lock().read_line(&mut line)?;
    anyhow::ensure!(read > 0, "the parent is gone");
    Ok(line)
}

/// Waits until the parent closes our standard input: it may want to look at us once more.
pub fn await_end() -> anyhow::Result<()> {
    for line in std::io::stdin().lock().lines() {
        line?;
    }
    Ok(())
}
