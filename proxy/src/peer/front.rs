//! The front protocol's client end: what a proxy says to a broker first, and whose answer is whose.

use forebay_proto::data::endpoint::FrontProtocol;
use forebay_proto::data::front::{FromBroker, ToBroker};
use forebay_record::BrokerId;
use forebay_runtime::trace::TraceContext;

use super::{Identity, Speaks};

impl Speaks for FrontProtocol {
    type Peer = BrokerId;
    const WHAT: &'static str = "broker";

    fn hello(identity: &Identity, peer: BrokerId) -> ToBroker {
        ToBroker::Hello {
            cluster: identity.cluster.clone(),
            peer: identity.name.clone(),
            broker: peer,
        }
    }

    fn greeted(answer: FromBroker, peer: BrokerId) -> Result<(), String> {
        match answer {
            FromBroker::Welcome { broker, .. } if broker == peer => Ok(()),
            FromBroker::Welcome { broker, .. } => Err(format!("broker {broker} answered instead of {peer}")),
            FromBroker::Refused(reason) => Err(format!("refused: {reason}")),
            _ => Err("something else than a welcome was answered".to_owned()),
        }
    }

    fn answers(message: &FromBroker) -> Option<u64> {
        match message {
            FromBroker::Fetched { request, .. }
            | FromBroker::Offsets { request, .. }
            | FromBroker::Plan { request, .. } => Some(*request),
            FromBroker::Produced { .. }
            | FromBroker::Welcome { .. }
            | FromBroker::Refused(_)
            | FromBroker::Leaving => None,
        }
    }

    fn leaves(message: &FromBroker) -> bool {
        matches!(message, FromBroker::Leaving)
    }

    fn cancel(request: u64) -> Option<ToBroker> {
        Some(ToBroker::CancelFetch(request))
    }

    fn traced(context: Box<TraceContext>, message: ToBroker) -> ToBroker {
        ToBroker::Traced(Box::new((*context, message)))
    }
}
