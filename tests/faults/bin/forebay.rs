//! The `forebay` binary, built as a part of this package so that its test can start it.

use std::process::ExitCode;

fn main() -> ExitCode {
    forebay::main()
}
