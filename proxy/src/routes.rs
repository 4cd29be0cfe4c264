//! Which broker owns a partition: asked of any live broker, remembered, replaced when refused.
//!
//! A route is a hint: every request names the epoch it was routed by, and a wrong one is refused
//! before anything is staged. Where answers differ, the highest epoch wins. At most
//! [`TOPICS_MAX`] topics are remembered, an unknown one for [`UNKNOWN_FOR`].

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use forebay_proto::error::Failure;
use forebay_proto::v1::broker_server::Broker;
use forebay_proto::v1::{ErrorCode, LocateRequest, LocateResponse, RetryClass};
use forebay_record::{BrokerId, Epoch, PartitionId};
use forebay_runtime::clock::{self, Clock};
use forebay_runtime::random::Random;
use forebay_runtime::tasks::Tasks;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use parking_lot::{Mutex, RwLock};
use tonic::{Request, Status};

use crate::control::Control;
use crate::membership::Membership;
use crate::metrics::ProxyMetrics;

/// Topics remembered.
pub(crate) const TOPICS_MAX: usize = 50_000;
/// How long an unknown topic is believed to be unknown.
pub(crate) const UNKNOWN_FOR: Duration = Duration::from_secs(1);
/// A route older than this is asked for again in the background, so that a changed or deleted topic
/// shows.
const FRESH_FOR: Duration = Duration::from_secs(30);
/// One that is older still is not used before the answer has come.
const USED_FOR: Duration = Duration::from_secs(120);
const LOCATE_TIMEOUT: Duration = Duration::from_secs(2);
/// Brokers asked before a question fails.
const BROKERS_ASKED_MAX: usize = 3;
/// Longest topic name; a longer one cannot exist.
pub(crate) const TOPIC_NAME_LEN_MAX: usize = 249;

/// Who owns a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Owner {
    pub broker: BrokerId,
    pub address: Arc<str>,
    pub epoch: Epoch,
}

/// One partition of a route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PartitionRoute {
    pub id: PartitionId,
    pub epoch: Epoch,
    /// None where no live session owns it.
    pub owner: Option<Owner>,
}

/// A topic and where its partitions are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TopicRoute {
    pub name: Arc<str>,
    pub id: Bytes,
    pub batch_bytes_max: usize,
    pub partitions: Vec<PartitionRoute>,
}

impl TopicRoute {
    /// A partition by its number.
    pub(crate) fn partition(&self, number: u32) -> Result<&PartitionRoute, Failure> {
        self.partitions.get(number as usize).ok_or_else(|| {
            Failure::new(
                ErrorCode::UnknownPartition,
                format!(
                    "topic {} has no partition {number}, only 0 to {}",
                    self.name,
                    self.partitions.len().max(1) - 1
                ),
            )
        })
    }

    /// Reads an answer; partitions must be numbered without gaps.
    fn from_answer(answer: LocateResponse) -> Result<Self, Failure> {
        let malformed = |what: String| {
            Failure::new(
                ErrorCode::Internal,
                format!("topic {} was located as nonsense: {what}", answer.topic),
            )
        };
        let mut addresses: HashMap<&str, Arc<str>> = HashMap::new();
        let mut partitions = Vec::with_capacity(answer.partitions.len());
        for (number, one) in answer.partitions.iter().enumerate() {
            if one.partition as usize != number {
                return Err(malformed(format!(
                    "partition {} at place {number}",
                    one.partition
                )));
            }
            let epoch = Epoch(one.epoch);
            let owner = (one.owner != 0 && !one.address.is_empty()).then(|| Owner {
                broker: BrokerId(one.owner),
                address: Arc::clone(
                    addresses
                        .entry(&one.address)
                        .or_insert_with(|| one.address.as_str().into()),
                ),
                epoch,
            });
            partitions.push(PartitionRoute {
                id: PartitionId(one.partition_id),
                epoch,
                owner,
            });
        }
        if partitions.is_empty() {
            return Err(malformed("no partitions".to_owned()));
        }
        Ok(Self {
            name: answer.topic.as_str().into(),
            id: answer.topic_id.clone(),
            batch_bytes_max: answer.batch_bytes_max as usize,
            partitions,
        })
    }

    /// Keeps what an older route of the same topic knows better.
    fn keep_newer(&mut self, older: &Self) {
        if older.id != self.id {
            return;
        }
        for (new, old) in self.partitions.iter_mut().zip(&older.partitions) {
            if new.id == old.id && old.epoch > new.epoch {
                *new = old.clone();
            }
        }
    }
}

type Located = Result<Arc<TopicRoute>, Failure>;

/// A question under way.
struct Asking {
    question: Shared<BoxFuture<'static, Located>>,
    /// The topic has changed since it was asked: the answer is not remembered.
    overtaken: Arc<AtomicBool>,
}

struct Known {
    located: Located,
    at: Duration,
}

/// Finds and remembers routes. Clones share them.
#[derive(Clone)]
pub(crate) struct Routes {
    shared: Arc<Inner>,
}

struct Inner {
    known: RwLock<HashMap<Arc<str>, Known>>,
    /// Questions under way, so that a crowd asks once.
    asking: Mutex<HashMap<Arc<str>, Asking>>,
    membership: Membership,
    control: Control,
    clock: Arc<dyn Clock>,
    random: Arc<dyn Random>,
    metrics: ProxyMetrics,
    tasks: Tasks,
}

impl Routes {
    pub(crate) fn new(
        membership: Membership,
        control: Control,
        clock: Arc<dyn Clock>,
        random: Arc<dyn Random>,
        metrics: ProxyMetrics,
        tasks: Tasks,
    ) -> Self {
        let (known, asking) = (RwLock::default(), Mutex::default());
        Self {
            shared: Arc::new(Inner {
                known,
                asking,
                membership,
                control,
                clock,
                random,
                metrics,
                tasks,
            }),
        }
    }

    /// The route, from memory or asked for.
    pub(crate) async fn get(&self, topic: &str) -> Located {
        let now = self.shared.clock.monotonic();
        let mut old = None;
        if let Some(known) = self.shared.known.read().get(topic) {
            let age = now.saturating_sub(known.at);
            match &known.located {
                Ok(route) if age < FRESH_FOR => return Ok(Arc::clone(route)),
                Ok(route) if age < USED_FOR => old = Some(Arc::clone(route)),
                Err(failure) if age < UNKNOWN_FOR => return Err(failure.clone()),
                Ok(_) | Err(_) => {}
            }
        }
        if let Some(old) = old {
            self.renew(topic, now);
            return Ok(old);
        }
        if topic.is_empty() || topic.len() > TOPIC_NAME_LEN_MAX {
            let what = format!(
                "topic name of {} bytes, 1 to {TOPIC_NAME_LEN_MAX} are possible",
                topic.len()
            );
            return Err(Failure::new(ErrorCode::UnknownTopic, what));
        }
        match self.refresh(topic).await {
            // An old route is better than none: the owner refuses it if it is wrong.
            Err(failure) if failure.retry() != RetryClass::Reject => self.remembered(topic).ok_or(failure),
            located => located,
        }
    }

    /// Asks anew without making anyone wait for it.
    fn renew(&self, topic: &str, now: Duration) {
        let asked = match self.shared.known.write().get_mut(topic) {
            Some(known) if now.saturating_sub(known.at) >= FRESH_FOR => {
                // Whoever comes next does not ask as well.
                known.at = now;
                true
            }
            Some(_) | None => false,
        };
        if asked {
            let (routes, topic) = (self.clone(), topic.to_owned());
            self.shared.tasks.spawn("renew route", async move {
                if let Err(failure) = routes.refresh(&topic).await {
                    tracing::debug!(topic, %failure, "route was not renewed");
                }
            });
        }
    }

    fn remembered(&self, topic: &str) -> Option<Arc<TopicRoute>> {
        self.shared
            .known
            .read()
            .get(topic)
            .and_then(|known| known.located.as_ref().ok().cloned())
    }

    /// Asks for the route, whatever is remembered. Askers at the same time share one question.
    pub(crate) async fn refresh(&self, topic: &str) -> Located {
        let question = {
            let mut asking = self.shared.asking.lock();
            match asking.get(topic) {
                Some(asked) => asked.question.clone(),
                None => {
                    let name: Arc<str> = topic.into();
                    let (inner, overtaken) = (Arc::clone(&self.shared), Arc::default());
                    let question = ask_and_remember(inner, Arc::clone(&name), Arc::clone(&overtaken))
                        .boxed()
                        .shared();
                    let asked = Asking {
                        question: question.clone(),
                        overtaken,
                    };
                    asking.insert(name, asked);
                    question
                }
            }
        };
        let _forget = Forget {
            asking: &self.shared.asking,
            topic,
            question: &question,
        };
        question.clone().await
    }

    /// Forgets a topic that was just made, changed or deleted. What is being asked at the moment is
    /// answered to those who wait, and not remembered.
    pub(crate) fn forget(&self, topic: &str) {
        if let Some(asked) = self.shared.asking.lock().remove(topic) {
            asked.overtaken.store(true, Ordering::SeqCst);
        }
        self.shared.known.write().remove(topic);
    }

    /// Any live broker's control service, for a question that each can answer. Tries several.
    pub(crate) async fn ask_any<T, F>(&self, ask: impl Fn(Arc<dyn Broker>) -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Status>> + Send,
    {
        ask_any(&self.shared, ask).await
    }
}

/// Removes a question once it is answered or all who asked have gone away.
struct Forget<'a> {
    asking: &'a Mutex<HashMap<Arc<str>, Asking>>,
    topic: &'a str,
    question: &'a Shared<BoxFuture<'static, Located>>,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        let mut asking = self.asking.lock();
        let done = asking.get(self.topic).is_some_and(|current| {
            // Ours and the map's are the last two handles where nobody else waits.
            current.question.ptr_eq(self.question)
                && (current.question.peek().is_some() || current.question.strong_count().unwrap_or(0) <= 2)
        });
        if done {
            asking.remove(self.topic);
        }
    }
}

async fn ask_and_remember(inner: Arc<Inner>, topic: Arc<str>, overtaken: Arc<AtomicBool>) -> Located {
    inner.metrics.route_refreshes.inc();
    let located = ask_any(&inner, |broker| {
        let request = Request::new(LocateRequest {
            topic: topic.to_string(),
        });
        async move { broker.locate(request).await }
    })
    .await
    .and_then(|answer| TopicRoute::from_answer(answer.into_inner()));
    let at = inner.clock.monotonic();
    // Under the lock that forgetting takes after it has said so: what it meant is not put back.
    let mut known = inner.known.write();
    if overtaken.load(Ordering::SeqCst) {
        return located.map(Arc::new);
    }
    match located {
        Ok(mut route) => {
            if let Some(Known {
                located: Ok(older), ..
            }) = known.get(&*topic)
            {
                route.keep_newer(older);
            }
            let route = Arc::new(route);
            remember(
                &mut known,
                topic,
                Known {
                    located: Ok(Arc::clone(&route)),
                    at,
                },
            );
            Ok(route)
        }
        Err(failure) => {
            if failure.retry() == RetryClass::Reject {
                remember(
                    &mut known,
                    topic,
                    Known {
                        located: Err(failure.clone()),
                        at,
                    },
                );
            }
            Err(failure)
        }
    }
}

fn remember(known: &mut HashMap<Arc<str>, Known>, topic: Arc<str>, route: Known) {
    if known.len() >= TOPICS_MAX && !known.contains_key(&topic) {
        // Which ones go matters little: a forgotten route costs one question.
        let victims: Vec<_> = known.keys().take(TOPICS_MAX / 16).cloned().collect();
        for victim in victims {
            known.remove(&victim);
        }
    }
    known.insert(topic, route);
}

async fn ask_any<T, F>(inner: &Inner, ask: impl Fn(Arc<dyn Broker>) -> F) -> Result<T, Failure>
where
    F: Future<Output = Result<T, Status>> + Send,
{
    let view = inner.membership.now();
    let brokers: Vec<_> = view.brokers.iter().collect();
    let first = usize::try_from(inner.random.range(0, brokers.len() as u64)).unwrap_or(0);
    let mut last = Failure::new(ErrorCode::Unavailable, "no broker is alive");
    for (id, broker) in brokers
        .iter()
        .cycle()
        .skip(first)
        .take(brokers.len().min(BROKERS_ASKED_MAX))
    {
        let address = &broker.record.control_address;
        let service = match inner.control.broker(address) {
            Ok(service) => service,
            Err(error) => {
                last = Failure::new(ErrorCode::Unavailable, format!("broker {id}: {error}"));
                continue;
            }
        };
        match clock::timeout(&*inner.clock, LOCATE_TIMEOUT, ask(service)).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(status)) => {
                let failure = Failure::from(status);
                if failure.retry() == RetryClass::Reject {
                    return Err(failure);
                }
                last = Failure::new(
                    ErrorCode::Unavailable,
                    format!("broker {id} at {address}: {}", failure.message),
                );
            }
            Err(elapsed) => {
                last = Failure::new(
                    ErrorCode::Unavailable,
                    format!("broker {id} at {address}: {elapsed}"),
                );
            }
        }
    }
    Err(last)
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing
    )]

    use forebay_proto::v1::PartitionLocation;

    use super::*;

    fn answer(partitions: &[(u64, u32, u32, &str)]) -> LocateResponse {
        LocateResponse {
            topic: "orders".into(),
            topic_id: Bytes::from_static(&[7; 16]),
            batch_bytes_max: 1 << 20,
            partitions: partitions
                .iter()
                .enumerate()
                .map(|(number, (id, epoch, owner, address))| PartitionLocation {
                    partition: number as u32,
                    partition_id: *id,
                    epoch: *epoch,
                    owner: *owner,
                    address: (*address).into(),
                    session: 1,
                })
                .collect(),
            revision: 9,
        }
    }

    #[test]
    fn an_owner_without_a_session_is_no_owner() {
        let route =
            TopicRoute::from_answer(answer(&[(10, 3, 1, ""), (11, 4, 2, "mem://b2"), (12, 0, 0, "")]))
                .unwrap();
        assert_eq!(route.partitions[0].owner, None);
        assert_eq!(route.partitions[1].owner.as_ref().unwrap().broker, BrokerId(2));
        assert_eq!(route.partitions[2].owner, None);
        let failure = route.partition(3).unwrap_err();
        assert_eq!(failure.code, ErrorCode::UnknownPartition);
        assert!(
            failure.message.contains("orders") && failure.message.contains('3'),
            "{failure}"
        );
    }

    #[test]
    fn an_answer_with_a_lower_epoch_does_not_replace_a_higher_one() {
        let older =
            TopicRoute::from_answer(answer(&[(10, 5, 1, "mem://b1"), (11, 4, 1, "mem://b1")])).unwrap();
        let mut newer =
            TopicRoute::from_answer(answer(&[(10, 4, 2, "mem://b2"), (11, 6, 2, "mem://b2")])).unwrap();
        newer.keep_newer(&older);
        assert_eq!(newer.partitions[0].owner.as_ref().unwrap().broker, BrokerId(1));
        assert_eq!(newer.partitions[1].owner.as_ref().unwrap().broker, BrokerId(2));
    }

    #[test]
    fn a_recreated_topic_keeps_nothing_of_the_old_one() {
        let older = TopicRoute::from_answer(answer(&[(10, 5, 1, "mem://b1")])).unwrap();
        let mut recreated = answer(&[(20, 1, 2, "mem://b2")]);
        recreated.topic_id = Bytes::from_static(&[8; 16]);
        let mut newer = TopicRoute::from_answer(recreated).unwrap();
        newer.keep_newer(&older);
        assert_eq!(newer.partitions[0].id, PartitionId(20));
    }

    #[test]
    fn an_answer_with_gaps_is_refused() {
        let mut bad = answer(&[(10, 5, 1, "mem://b1")]);
        bad.partitions[0].partition = 1;
        assert_eq!(
            TopicRoute::from_answer(bad).unwrap_err().code,
            ErrorCode::Internal
        );
    }
}
