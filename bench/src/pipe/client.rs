//! The client of the raw pipe: fills batches, keeps a window of them in flight, times each.
//!
//! It sends a warm-up, says `ready`, waits for a line, sends the load and prints what it counted.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, ensure};
use clap::Args;
use tokio::net::TcpStream;

use super::control::{await_end, await_line, say};
use super::wire::{Connection, Message};
use crate::measure::{ClientCounts, Latencies};
use crate::pack::{Load, Packer};
use crate::process::own_cpu;

/// Runs the client.
#[derive(Debug, Args)]
pub struct Client {
    /// The proxy.
    #[arg(long)]
    pub proxy: SocketAddr,
    /// What to send.
    #[command(flatten)]
    pub load: Load,
}

impl Client {
    /// Sends everything and leaves.
    ///
    /// # Errors
    /// Where the connection fails or ends before everything is acknowledged.
    pub fn run(&self) -> anyhow::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(async {
            let connection = Connection::new(TcpStream::connect(self.proxy).await?)?;
            let mut session = Session::new(connection, self.load);
            session.send(self.load.warm_up_bytes).await?;
            say("ready")?;
            await_line()?;
            let counts = session.send(self.load.bytes).await?;
            say(&format!("done {}", serde_json::to_string(&counts)?))?;
            session.close().await?;
            await_end()
        })
    }
}

struct Session {
    connection: Connection,
    load: Load,
    packer: Packer,
    last_id: u64,
}

impl Session {
    fn new(connection: Connection, load: Load) -> Self {
        Self {
            connection,
            load,
            packer: Packer::new(&load),
            last_id: 0,
        }
    }

    /// Sends at least so many bytes and waits until all are acknowledged.
    async fn send(&mut self, bytes: u64) -> anyhow::Result<ClientCounts> {
        let mut latencies = Latencies::new()?;
        let mut in_flight = VecDeque::with_capacity(self.load.window());
        let (mut sent, mut records) = (0, 0);
        let (start, cpu) = (Instant::now(), own_cpu());
        while sent < bytes || !in_flight.is_empty() {
            while sent < bytes && in_flight.len() < self.load.window() {
                let began = Instant::now();
                let batch = self.packer.batch(now_ms())?;
                sent += batch.len() as u64;
                records += u64::from(forebay_record::batch::Header::parse(&batch)?.record_count());
                self.last_id += 1;
                let partition = (self.last_id % u64::from(self.load.partitions.max(1))) as u32;
                let message = Message {
                    id: self.last_id,
                    partition,
                    body: vec![batch],
                };
                self.connection
                    .sender
                    .send(message)
                    .await
                    .ok()
                    .context("the link to the proxy is gone")?;
                in_flight.push_back((self.last_id, began));
                // Lets the sending task run before the next batch is filled.
                tokio::task::yield_now().await;
            }
            let answer = self
                .connection
                .reader
                .recv()
                .await?
                .context("the proxy closed the connection")?;
            ensure!(
                answer.id <= self.last_id,
                "answer {} to {} messages",
                answer.id,
                self.last_id
            );
            let now = Instant::now();
            while let Some((_, began)) = in_flight.pop_front_if(|(id, _)| *id <= answer.id) {
                latencies.record(now - began);
            }
        }
        Ok(ClientCounts {
            bytes: sent,
            records,
            elapsed: start.elapsed(),
            latency_us: Some(latencies.quantiles()),
            cpu: own_cpu() - cpu,
        })
    }

    async fn close(self) -> anyhow::Result<()> {
        drop(self.connection.sender);
        Ok(self.connection.writing.await??)
    }
}

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
