//! One connection of a proxy: its requests go to the owners' task, the answers come back by themselves.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use forebay_proto::data::endpoint::{FrontProtocol, ServerLink};
use forebay_proto::data::front::{FromBroker, ToBroker};
use forebay_proto::data::link::LinkReceiver;
use forebay_record::{BrokerId, SessionId};
use forebay_runtime::trace::{SpanKind, TraceContext, Tracer};
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use crate::owners::{Command, Outbox};

/// Requests of one connection that may be open at a time.
const REQUESTS_MAX: usize = 16_384;

/// Serves connections.
#[derive(Debug, Clone)]
pub struct Front {
    /// Cluster id that a peer must name.
    pub cluster: String,
    /// This broker.
    pub broker: BrokerId,
    /// Its session.
    pub session: SessionId,
    /// The owners' mailbox.
    pub mailbox: mpsc::Sender<Command>,
    /// Numbers connections.
    pub connections: Arc<AtomicU64>,
    /// Begins spans.
    pub tracer: Tracer,
    /// Cancelled once the broker owns nothing any more and will end.
    pub leaving: CancellationToken,
}

/// How listening to a connection ended.
#[derive(Debug, PartialEq, Eq)]
enum Heard {
    /// The peer said goodbye, and all its requests are answered.
    Goodbye,
    /// In any other way.
    End,
}

impl Front {
    /// Serves one connection until either side ends it.
    pub async fn serve(self, mut link: ServerLink<FrontProtocol>) {
        let greeting = match self.greet(&mut link.rx).await {
            Ok(welcome) => welcome,
            Err(reason) => {
                tracing::warn!(broker = %self.broker, reason, "a peer was turned away");
                // It hears the reason if it still listens.
                let _ = link.tx.send(FromBroker::Refused(reason)).await;
                return;
            }
        };
        if link.tx.send(greeting).await.is_err() {
            return;
        }
        let connection = self.connections.fetch_add(1, Ordering::Relaxed);
        let (overflow, mut spilled) = mpsc::unbounded_channel();
        let outbox = Outbox {
            connection,
            link: link.tx.clone(),
            overflow,
        };
        let mut spill = pin!(async {
            while let Some(message) = spilled.recv().await {
                if link.tx.send(message).await.is_err() {
                    return;
                }
            }
        });
        let farewell = async {
            self.leaving.cancelled().await;
            if link.tx.send(FromBroker::Leaving).await.is_ok() {
                // The peer says goodbye, or the connection ends.
                std::future::pending::<()>().await;
            }
        };
        let heard = tokio::select! {
            heard = self.listen(&mut link.rx, outbox) => heard,
            () = &mut spill => Heard::End,
            () = link.tx.closed() => Heard::End,
            () = farewell => Heard::End,
        };
        if heard == Heard::Goodbye {
            spill.await;
        }
        // A closed mailbox has no fetches left to forget.
        let _ = self.mailbox.send(Command::Disconnected(connection)).await;
    }

    async fn greet(&self, rx: &mut LinkReceiver<ToBroker>) -> Result<FromBroker, String> {
        match rx.recv().await {
            Ok(Some(ToBroker::Hello { cluster, broker, .. })) => {
                if cluster != self.cluster {
                    return Err(format!(
                        "this broker is in cluster {}, not in {cluster}",
                        self.cluster
                    ));
                }
                if broker != self.broker {
                    return Err(format!("this is {}, not {broker}", self.broker));
                }
                Ok(FromBroker::Welcome {
                    broker: self.broker,
                    session: self.session,
                })
            }
            Ok(Some(_)) => Err("the first message must be a hello".to_owned()),
            Ok(None) => Err("closed before a hello".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }

    async fn listen(&self, rx: &mut LinkReceiver<ToBroker>, outbox: Outbox) -> Heard {
        let requests = Arc::new(Semaphore::new(REQUESTS_MAX));
        loop {
            let message = match rx.recv().await {
                Ok(Some(message)) => message,
                Ok(None) => return Heard::End,
                Err(error) => {
                    tracing::warn!(broker = %self.broker, %error, "connection of a proxy failed");
                    return Heard::End;
                }
            };
            let (message, parent) = untraced(message);
            let span = |name: &'static str| self.tracer.child(parent.as_ref(), SpanKind::Server, || name);
            let outbox = outbox.clone();
            let permit = || async { Arc::clone(&requests).acquire_owned().await.ok() };
            let command = match message {
                ToBroker::Hello { .. } => {
                    tracing::warn!(broker = %self.broker, "a proxy said hello twice");
                    return Heard::End;
                }
                ToBroker::Produce(produce) => {
                    let span = span("broker.append");
                    let Some(permit) = permit().await else {
                        return Heard::End;
                    };
                    Command::Produce {
                        produce,
                        outbox,
                        permit,
                        span,
                    }
                }
                ToBroker::Fetch(fetch) => {
                    let span = span("broker.fetch");
                    let Some(permit) = permit().await else {
                        return Heard::End;
                    };
                    Command::Fetch {
                        fetch,
                        outbox,
                        permit,
                        span,
                    }
                }
                ToBroker::Traced(_) => {
                    tracing::warn!(broker = %self.broker, "a proxy sent two trace contexts for one message");
                    return Heard::End;
                }
                ToBroker::Goodbye => {
                    let all = u32::try_from(REQUESTS_MAX).unwrap_or(u32::MAX);
                    return match requests.acquire_many(all).await {
                        Ok(_) => Heard::Goodbye,
                        Err(_) => Heard::End,
                    };
                }
                ToBroker::CancelFetch(request) => Command::CancelFetch {
                    connection: outbox.connection,
                    request,
                },
                ToBroker::Offsets {
                    request,
                    partition,
                    epoch,
                    position,
                } => Command::Offsets {
                    request,
                    partition,
                    epoch,
                    position,
                    outbox,
                },
                ToBroker::Plan {
                    request,
                    partition,
                    epoch,
                    from,
                } => Command::Plan {
                    request,
                    partition,
                    epoch,
                    from,
                    outbox,
                },
            };
            if self.mailbox.send(command).await.is_err() {
                return Heard::End;
            }
        }
    }
}

/// A message and the span it belongs to.
fn untraced(message: ToBroker) -> (ToBroker, Option<TraceContext>) {
    match message {
        ToBroker::Traced(traced) => {
            let (context, message) = *traced;
            (message, Some(context))
        }
        message => (message, None),
    }
}
