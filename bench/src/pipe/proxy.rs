//! The proxy of the raw pipe: checks each batch's checksum and forwards it; answers go back.

use std::net::SocketAddr;

use anyhow::{Context, ensure};
use clap::Args;
use forebay_record::batch::Header;
use forebay_record::crc32c;
use tokio::net::{TcpListener, TcpStream};

use super::control;
use super::wire::Connection;

/// Where the bytes begin that a batch's checksum covers.
const CHECKED_FROM: usize = 21;

/// Runs the proxy.
#[derive(Debug, Args)]
pub struct Proxy {
    /// The broker.
    #[arg(long)]
    pub broker: SocketAddr,
}

impl Proxy {
    /// Serves one connection after the other until the parent wants it to leave.
    ///
    /// # Errors
    /// Where a connection fails or a batch is damaged.
    pub fn run(&self) -> anyhow::Result<()> {
        control::run(|| (), async |listener| accept_all(&listener, self.broker).await)
    }
}

async fn accept_all(listener: &TcpListener, broker: SocketAddr) -> anyhow::Result<()> {
    loop {
        let (stream, _) = listener.accept().await?;
        let client = Connection::new(stream)?;
        forward(client, Connection::new(TcpStream::connect(broker).await?)?).await?;
    }
}

async fn forward(client: Connection, broker: Connection) -> anyhow::Result<()> {
    let Connection {
        sender: answers,
        reader: mut batches,
        writing: answering,
    } = client;
    let Connection {
        sender: forwards,
        reader: mut answered,
        writing: forwarding,
    } = broker;
    let back = tokio::spawn(async move {
        while let Some(answer) = answered.recv().await? {
            answers.send(answer).await.ok().context("the client is gone")?;
        }
        anyhow::Ok(())
    });
    while let Some(message) = batches.recv().await? {
        for batch in &message.body {
            let stored = Header::parse(batch)?.crc();
            let computed = crc32c(batch.get(CHECKED_FROM..).unwrap_or_default());
            ensure!(
                stored == computed,
                "batch checksum {stored:08x}, computed {computed:08x}"
            );
        }
        forwards.send(message).await.ok().context("the broker is gone")?;
    }
    drop(forwards);
    forwarding.await??;
    back.await??;
    Ok(answering.await??)
}
