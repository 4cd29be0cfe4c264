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
mod time;

pub use command::{Cli, run};

/// Reads the command line and carries it out: the whole of the binary.
#[must_use]
pub fn main() -> std::process::ExitCode {
    allocator::keep_freed_pages();
    let cli = <Cli as clap::Parser>::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
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
