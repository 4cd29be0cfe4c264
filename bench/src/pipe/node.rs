//! A node of the raw pipe: checks frames and makes them durable.
//!
//! One thread owns the disk: it takes everything that is queued, up to a bound, puts it into one
//! aligned buffer, writes it, flushes, and answers with the last id. There is no timer: while
//! one commit runs the next one gathers.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Context;
use bytes::Bytes;
use clap::Args;
use forebay_record::frame::{Frame, FrameHeader, HEADER_LEN};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use super::control;
use super::wire::{Connection, Message};
use crate::disk::{Aligned, Recycled};
use crate::measure::DiskCounts;

/// Bytes of one commit at most.
const COMMIT_BYTES_MAX: usize = 4 << 20;
/// Frames that may wait for the disk; the client's window bounds their bytes.
const QUEUE_MAX: usize = 64;

/// Runs a node.
#[derive(Debug, Args)]
pub struct Node {
    /// The recycled file; made and filled where it is missing.
    #[arg(long)]
    pub file: PathBuf,
    /// Bytes of the file.
    #[arg(long)]
    pub file_bytes: u64,
}

/// What a node has done so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct NodeCounts {
    /// Frames made durable.
    pub frames: u64,
    /// What it cost the disk.
    pub disk: DiskCounts,
    /// Whether writes go past the page cache.
    pub direct: bool,
}

#[derive(Debug, Default)]
struct Counters {
    frames: AtomicU64,
    written: AtomicU64,
    fsyncs: AtomicU64,
}

impl Counters {
    fn counts(&self, direct: bool) -> NodeCounts {
        let disk = DiskCounts {
            written: self.written.load(Ordering::Relaxed),
            zeroed: 0,
            fsyncs: self.fsyncs.load(Ordering::Relaxed),
        };
        NodeCounts {
            frames: self.frames.load(Ordering::Relaxed),
            disk,
            direct,
        }
    }
}

/// A frame on its way to the disk, and who waits for it.
struct Queued {
    id: u64,
    bytes: Bytes,
    answers: mpsc::Sender<Message>,
}

impl Node {
    /// Serves one connection after the other until the parent wants it to leave.
    ///
    /// # Errors
    /// Where the file, the disk or a connection fails, or a frame is damaged.
    pub fn run(&self) -> anyhow::Result<()> {
        let file = Recycled::open(&self.file, self.file_bytes)
            .with_context(|| format!("cannot prepare {}", self.file.display()))?;
        let direct = file.is_direct();
        let counters = Arc::new(Counters::default());
        let counted = Arc::clone(&counters);
        let (queue, queued) = mpsc::channel(QUEUE_MAX);
        control::run(
            move || counted.counts(direct),
            async |listener| {
                let (ended, end) = tokio::sync::oneshot::channel();
                std::thread::Builder::new()
                    .name("disk".to_owned())
                    .spawn(move || {
                        // Nobody listens any more where the node is leaving.
                        ended.send(commit_all(file, queued, &counters)).ok();
                    })?;
                tokio::select! {
                    result = accept_all(&listener, &queue) => result,
                    result = end => result.context("the disk thread is gone")?.context("the disk failed"),
                }
            },
        )
    }
}

async fn accept_all(listener: &TcpListener, queue: &mpsc::Sender<Queued>) -> anyhow::Result<()> {
    loop {
        let (stream, _) = listener.accept().await?;
        let Connection {
            sender,
            mut reader,
            writing,
        } = Connection::new(stream)?;
        while let Some(message) = reader.recv().await? {
            for bytes in message.body {
                let header = FrameHeader::parse(&bytes)?;
                header.verify(&[bytes.slice(HEADER_LEN..)])?;
                let queued = Queued {
                    id: message.id,
                    bytes,
                    answers: sender.clone(),
                };
                queue.send(queued).await.ok().context("the disk thread is gone")?;
            }
        }
        drop(sender);
        writing.await??;
    }
}

fn commit_all(
    mut file: Recycled,
    mut queued: mpsc::Receiver<Queued>,
    counters: &Counters,
) -> std::io::Result<()> {
    let mut blocks = Aligned::new(COMMIT_BYTES_MAX);
    let mut next = queued.blocking_recv();
    while let Some(first) = next.take() {
        blocks.clear();
        blocks.extend(&first.bytes);
        let (mut frames, mut last) = (1, first);
        while let Ok(more) = queued.try_recv() {
            if more.bytes.len() > blocks.room() {
                next = Some(more);
                break;
            }
            blocks.extend(&more.bytes);
            frames += 1;
            last = more;
        }
        blocks.pad();
        file.commit(&blocks)?;
        counters
            .written
            .fetch_add(blocks.bytes().len() as u64, Ordering::Relaxed);
        counters.fsyncs.fetch_add(1, Ordering::Relaxed);
        counters.frames.fetch_add(frames, Ordering::Relaxed);
        // Where the connection is gone nobody waits for the answer.
        last.answers.blocking_send(Message::answer(last.id)).ok();
        // A connection closes when nobody can answer on it any more.
        drop(last);
        if next.is_none() {
            next = queued.blocking_recv();
        }
    }
    Ok(())
}

/// The whole frame as it goes to a node, header first.
pub fn frame_pieces(frame: Frame) -> Vec<Bytes> {
    let mut pieces = Vec::with_capacity(1 + frame.payload.len());
    pieces.push(Bytes::copy_from_slice(&frame.header.encode()));
    pieces.extend(frame.payload);
    pieces
}
