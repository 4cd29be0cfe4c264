//! The replica protocol's client end, as a reader needs it.

use forebay_proto::data::endpoint::ReplicaProtocol;
use forebay_proto::data::replica::{FromNode, Hello, ToNode};
use forebay_record::NodeId;
use forebay_runtime::trace::TraceContext;

use super::{Identity, Speaks};

impl Speaks for ReplicaProtocol {
    type Peer = NodeId;
    const WHAT: &'static str = "storage node";

    fn hello(identity: &Identity, peer: NodeId) -> ToNode {
        ToNode::Hello(Hello {
            cluster: identity.cluster.clone(),
            incarnation: identity.incarnation,
            node: peer,
            peer: identity.name.clone(),
        })
    }

    fn greeted(answer: FromNode, peer: NodeId) -> Result<(), String> {
        match answer {
            FromNode::Welcome { node, .. } if node == peer => Ok(()),
            FromNode::Welcome { node, .. } => Err(format!("storage node {node} answered instead of {peer}")),
            FromNode::Refused(reason) => Err(format!("refused: {reason}")),
            _ => Err("something else than a welcome was answered".to_owned()),
        }
    }

    fn answers(message: &FromNode) -> Option<u64> {
        match message {
            FromNode::Fenced { request, .. }
            | FromNode::Read { request, .. }
            | FromNode::Frames { request, .. }
            | FromNode::Headers { request, .. }
            | FromNode::Lookup { request, .. }
            | FromNode::Confirm { request, .. }
            | FromNode::Uploaded { request, .. }
            | FromNode::Surveyed { request, .. }
            | FromNode::Missing { request, .. }
            | FromNode::Copied { request, .. } => Some(*request),
            FromNode::Welcome { .. }
            | FromNode::Refused(_)
            | FromNode::Acks { .. }
            | FromNode::NotTaken { .. }
            | FromNode::Urge(_)
            | FromNode::Damaged(_) => None,
        }
    }

    fn leaves(_: &FromNode) -> bool {
        false
    }

    fn cancel(_: u64) -> Option<ToNode> {
        None
    }

    fn traced(context: Box<TraceContext>, message: ToNode) -> ToNode {
        ToNode::Traced(Box::new((*context, message)))
    }
}
