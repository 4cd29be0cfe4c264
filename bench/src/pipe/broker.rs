//! The broker of the raw pipe: gives offsets, makes frames, replicates, answers at a quorum.
//!
//! For each connection of the proxy it opens one to each node. Nodes answer in order, so the
//! second highest of their answers is the id up to which two of three are durable.

use std::net::SocketAddr;

use anyhow::Context;
use bytes::Bytes;
use clap::Args;
use forebay_record::batch::{HEADER_LEN, Header, stamped_prefix};
use forebay_record::frame::{ChainHash, Frame, FrameKind, FrameSpec};
use forebay_record::{Epoch, Offset, PartitionId, SegmentId, Token};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use super::control;
use super::node::frame_pieces;
use super::wire::{Connection, Message, Reader};

const EPOCH: Epoch = Epoch(1);

/// Runs the broker.
#[derive(Debug, Args)]
pub struct Broker {
    /// A storage node; three of them.
    #[arg(long = "node", required = true)]
    pub nodes: Vec<SocketAddr>,
}

impl Broker {
    /// Serves one connection after the other until the parent wants it to leave.
    ///
    /// # Errors
    /// Where a connection fails or a batch is damaged.
    pub fn run(&self) -> anyhow::Result<()> {
        let nodes = <[SocketAddr; 3]>::try_from(self.nodes.as_slice()).context("three nodes are needed")?;
        control::run(|| (), async |listener| accept_all(&listener, nodes).await)
    }
}

async fn accept_all(listener: &TcpListener, nodes: [SocketAddr; 3]) -> anyhow::Result<()> {
    loop {
        let (stream, _) = listener.accept().await?;
        replicate(Connection::new(stream)?, nodes).await?;
    }
}

async fn replicate(upstream: Connection, nodes: [SocketAddr; 3]) -> anyhow::Result<()> {
    let (answered, answers) = mpsc::channel(nodes.len());
    let mut senders = Vec::with_capacity(nodes.len());
    let mut tasks = Vec::with_capacity(2 * nodes.len() + 1);
    for (index, node) in nodes.into_iter().enumerate() {
        let Connection {
            sender,
            reader,
            writing,
        } = Connection::new(TcpStream::connect(node).await?)?;
        senders.push(sender);
        tasks.push(tokio::spawn(forward_answers(index, reader, answered.clone())));
        tasks.push(tokio::spawn(async move { Ok(writing.await??) }));
    }
    drop(answered);
    let Connection {
        sender,
        reader,
        writing,
    } = upstream;
    tasks.push(tokio::spawn(answer_quorum(answers, sender)));
    send_frames(reader, &senders).await?;
    drop(senders);
    for task in tasks {
        task.await??;
    }
    Ok(writing.await??)
}

async fn forward_answers(
    index: usize,
    mut reader: Reader,
    to: mpsc::Sender<(usize, u64)>,
) -> anyhow::Result<()> {
    while let Some(answer) = reader.recv().await? {
        to.send((index, answer.id))
            .await
            .ok()
            .context("nobody counts answers")?;
    }
    Ok(())
}

async fn answer_quorum(
    mut answers: mpsc::Receiver<(usize, u64)>,
    to: mpsc::Sender<Message>,
) -> anyhow::Result<()> {
    let mut durable = [0_u64; 3];
    let mut answered = 0;
    while let Some((index, id)) = answers.recv().await {
        if let Some(durable) = durable.get_mut(index) {
            *durable = id;
        }
        let [_, quorum, _] = sorted(durable);
        if quorum > answered {
            answered = quorum;
            to.send(Message::answer(answered))
                .await
                .ok()
                .context("nobody waits for answers")?;
        }
    }
    Ok(())
}

fn sorted(mut ids: [u64; 3]) -> [u64; 3] {
    ids.sort_unstable();
    ids
}

/// Where a partition's next frame goes.
struct Tail {
    offset: Offset,
    hash: ChainHash,
    number: u32,
}

async fn send_frames(mut reader: Reader, nodes: &[mpsc::Sender<Message>]) -> anyhow::Result<()> {
    let mut tails = std::collections::BTreeMap::new();
    while let Some(message) = reader.recv().await? {
        let segment = SegmentId {
            partition: PartitionId(message.partition.into()),
            epoch: EPOCH,
            seq: 1,
        };
        let tail = tails.entry(message.partition).or_insert_with(|| Tail {
            offset: Offset(0),
            hash: ChainHash::seed(segment),
            number: 0,
        });
        let mut payload = Vec::with_capacity(2 * message.body.len());
        for batch in message.body {
            payload = append(tail, segment, &batch)?;
        }
        for node in nodes {
            let copy = Message {
                id: message.id,
                partition: message.partition,
                body: payload.clone(),
            };
            node.send(copy).await.ok().context("the link to a node is gone")?;
        }
    }
    Ok(())
}

/// The frame of one batch, ready to send.
fn append(tail: &mut Tail, segment: SegmentId, batch: &Bytes) -> anyhow::Result<Vec<Bytes>> {
    let header = Header::parse(batch)?;
    let end = tail
        .offset
        .checked_add(header.record_count().into())
        .context("offsets are used up")?;
    let prefix = stamped_prefix(batch, tail.offset, EPOCH)?;
    let payload = vec![Bytes::copy_from_slice(&prefix), batch.slice(HEADER_LEN..)];
    let spec = FrameSpec {
        kind: FrameKind::Data,
        batches: 1,
        segment,
        token: Token(1),
        first: tail.offset,
        end,
        prev_hash: tail.hash,
        number: tail.number,
        committed: tail.offset,
    };
    let frame = Frame::new(spec, payload)?;
    *tail = Tail {
        offset: end,
        hash: frame.header.hash(),
        number: tail.number.wrapping_add(1),
    };
    Ok(frame_pieces(frame))
}
