//! The two signals that ask a process to end, sent to this very process.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::process::Command;
use std::time::Duration;

use forebay_runtime::tasks::{Signal, shutdown_signal};

#[tokio::test]
async fn terminate_and_interrupt_end_the_wait_and_not_the_process() {
    for (name, signal) in [("-TERM", Signal::Terminate), ("-INT", Signal::Interrupt)] {
        let mut waiting = Box::pin(shutdown_signal());
        // The first poll sets the handler; before it the signal would kill the test.
        assert!(futures_util::poll!(waiting.as_mut()).is_pending());
        let pid = std::process::id().to_string();
        assert!(
            Command::new("kill")
                .args([name, &pid])
                .status()
                .unwrap()
                .success()
        );
        let got = tokio::time::timeout(Duration::from_secs(10), waiting)
            .await
            .unwrap();
        assert_eq!(got.unwrap(), signal);
    }
}
