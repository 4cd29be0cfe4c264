//! How far a run is, on standard error: a bar on a terminal, otherwise a line now and then.

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::tally::Tally;
use crate::output::{bytes, grouped, mib_per_second};

/// Shows how far a run is.
#[derive(Debug)]
pub struct Progress {
    bar: Option<ProgressBar>,
    interval: Duration,
    began: Instant,
    last: Instant,
    last_bytes: u64,
}

/// What is shown beside the counts.
#[derive(Debug, Clone, Copy)]
pub struct Outlook {
    /// Bytes that are known to be there and not acknowledged; none where nobody knows.
    pub left: Option<u64>,
    /// Bytes sent and not acknowledged.
    pub in_flight: u64,
}

impl Progress {
    /// A line every `interval` where there is no terminal.
    pub fn new(interval: Duration) -> Self {
        let now = Instant::now();
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            let style = ProgressStyle::with_template("{spinner} {msg}");
            // The default style shows the same less well.
            if let Ok(style) = style {
                bar.set_style(style);
            }
            bar
        });
        Self {
            bar,
            interval,
            began: now,
            last: now,
            last_bytes: 0,
        }
    }

    /// Shows what is so now, if it is time.
    pub fn show(&mut self, tally: &Tally, outlook: Outlook, now: Instant) {
        match &self.bar {
            Some(bar) => {
                let seconds = now.duration_since(self.began).as_secs_f64();
                bar.set_message(line(tally, outlook, tally.bytes, seconds));
                bar.tick();
            }
            None => {
                let since = now.duration_since(self.last);
                if since < self.interval {
                    return;
                }
                let new = tally.bytes - self.last_bytes;
                eprintln!("{}", line(tally, outlook, new, since.as_secs_f64()));
                (self.last, self.last_bytes) = (now, tally.bytes);
            }
        }
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// `new` bytes came in the last `seconds`.
fn line(tally: &Tally, outlook: Outlook, new: u64, seconds: f64) -> String {
    let mut text = format!(
        "{} acknowledged, {} records, {}, {} in flight",
        bytes(tally.bytes),
        grouped(tally.records),
        mib_per_second(new, seconds),
        bytes(outlook.in_flight)
    );
    if let Some(left) = outlook.left {
        text += &format!(", {} left", bytes(left));
        let rate = new as f64 / seconds.max(1e-9);
        if left > 0 && rate >= 1.0 {
            text += &format!(", about {:.0} s", left as f64 / rate);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_tells_how_long_it_will_take_where_that_is_known() {
        let tally = Tally {
            bytes: 10 << 20,
            records: 12_345,
            ..Tally::default()
        };
        let outlook = |left| Outlook {
            left,
            in_flight: 1 << 20,
        };
        assert_eq!(
            line(&tally, outlook(Some(20 << 20)), 10 << 20, 2.0),
            "10.0 MiB acknowledged, 12,345 records, 5.0 MiB/s, 1.0 MiB in flight, 20.0 MiB left, about 4 s"
        );
        assert_eq!(
            line(&tally, outlook(None), 0, 0.0),
            "10.0 MiB acknowledged, 12,345 records, - MiB/s, 1.0 MiB in flight"
        );
    }
}
