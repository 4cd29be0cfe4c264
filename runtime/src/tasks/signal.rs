//! The two signals that ask a process to end.

use std::{fmt, io};

use tokio::signal::unix::{SignalKind, signal};

/// A signal that asks the process to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// SIGTERM: what a supervisor sends.
    Terminate,
    /// SIGINT: what Ctrl-C sends.
    Interrupt,
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Terminate => "SIGTERM",
            Self::Interrupt => "SIGINT",
        })
    }
}

/// Waits for SIGTERM or SIGINT. From the first poll on, for the rest of the process's life, these
/// two no longer kill it: whoever waits must act. Waiting again gives the next signal.
///
/// Cancel safety: a signal that arrives while nobody waits is not seen.
pub async fn shutdown_signal() -> io::Result<Signal> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => Ok(Signal::Terminate),
        _ = interrupt.recv() => Ok(Signal::Interrupt),
    }
}
