//! The `forebay` binary: all roles of the service, and the commands that talk to it.
//!
//! [`server`] turns a configuration into a running process; [`Cli`] is the command line, and
//! [`run`] carries it out. `main` does nothing else.

mod allocator;
mod command;
mod connect;
mod lines;
mod output;
mod position;
pub mod server;

pub use command::{Cli, run};

/// Reads the command line and carries it out: the whole of the binary.
#[must_use]
pub fn main() -> std::process::ExitCode {
    allocator::keep_freed_pages();
    let cli = <Cli as clap::Parser>::parse();
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    if std::env::var_os("TOKIO_WORKER_THREADS").is_none() {
        builder.worker_threads(worker_threads());
    }
    let runtime = match builder.enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("forebay: no async runtime: {error}");
            return std::process::ExitCode::FAILURE;
        }
    };
    let code = runtime.block_on(run(cli));
    // Not waited for: a read of standard input that nobody wants any more may last for ever.
    runtime.shutdown_background();
    code
}

/// One thread fewer than there are processors: a storage node's journal thread must never wait for
/// a processor that tasks keep busy, and a task loses less by waiting for another.
fn worker_threads() -> usize {
    std::thread::available_parallelism()
        .map_or(1, std::num::NonZero::get)
        .saturating_sub(1)
        .max(1)
}
