//! Between the store's types and etcd's: absolute keys, signed revisions, transactions.
//!
//! Revisions of the store are etcd's own plus a constant for each incarnation of the cluster
//! ([`Revisions`]): so they rise over a restore of etcd from a backup, where etcd's own go back, and
//! with them tokens, floors, session ids and the revisions in objects' names.

use bytes::Bytes;
use etcd_client::{Compare as EtcdCompare, CompareOp, KeyValue, PutOptions, Txn as EtcdTxn, TxnOp};

use super::ConnectError;
use crate::store::error::BadRequest;
use crate::store::types::{Compare, Entry, LeaseId, Op, Revision, Txn, incarnation_base};

/// What the incarnation of a cluster adds to etcd's revisions. Zero stays zero: it means "absent"
/// in a compare and "newest" in a read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Revisions {
    base: u64,
}

impl Revisions {
    pub(super) const fn of(incarnation: u32) -> Self {
        Self {
            base: incarnation_base(incarnation),
        }
    }

    /// A revision as etcd writes it; one that etcd cannot have becomes one it will never have.
    pub(super) fn signed(self, revision: Revision) -> i64 {
        let own = match revision.0 {
            0 => Some(0),
            shifted => shifted.checked_sub(self.base),
        };
        own.and_then(|own| i64::try_from(own).ok()).unwrap_or(i64::MAX)
    }

    /// A revision as etcd reports it; never negative there.
    pub(super) fn revision(self, signed: i64) -> Revision {
        match u64::try_from(signed).unwrap_or(0) {
            0 => Revision(0),
            own => Revision(own.saturating_add(self.base)),
        }
    }
}

/// Lease ids are opaque bits, positive in practice.
pub(super) fn signed_lease(lease: LeaseId) -> i64 {
    lease.0.cast_signed()
}

/// As [`signed_lease`]; zero is none.
pub(super) fn lease(signed: i64) -> Option<LeaseId> {
    (signed != 0).then_some(LeaseId(signed.cast_unsigned()))
}

/// The one lease that a transaction names: etcd does not say which it did not find.
pub(super) fn single_lease(txn: &Txn) -> Option<LeaseId> {
    let mut named = txn.then.iter().chain(&txn.otherwise).filter_map(|op| match op {
        Op::Put { lease, .. } => *lease,
        Op::Delete { .. } | Op::Get { .. } => None,
    });
    let first = named.next()?;
    named.all(|other| other == first).then_some(first)
}

/// Adds and removes the cluster's prefix.
#[derive(Debug, Clone)]
pub(super) struct Keys {
    prefix: String,
    pub(super) revisions: Revisions,
}

impl Keys {
    pub(super) fn new(prefix: &str) -> Result<Self, ConnectError> {
        if prefix.len() < 2 || !prefix.starts_with('/') || prefix.ends_with('/') {
            return Err(ConnectError::Option {
                option: "prefix",
                value: prefix.to_owned(),
                why: "must begin with / and not end with it".to_owned(),
            });
        }
        Ok(Self {
            prefix: prefix.to_owned(),
            revisions: Revisions::default(),
        })
    }

    pub(super) fn absolute(&self, key: &str) -> Vec<u8> {
        let mut absolute = Vec::with_capacity(self.prefix.len() + key.len());
        absolute.extend_from_slice(self.prefix.as_bytes());
        absolute.extend_from_slice(key.as_bytes());
        absolute
    }

    /// Start, inclusive, and end, exclusive, of the keys with a prefix and behind a start.
    pub(super) fn span(&self, prefix: &str, start_after: Option<&str>) -> (Vec<u8>, Vec<u8>) {
        let first = self.absolute(prefix);
        let mut end = first.clone();
        // Text never has a byte of 0xff, so the last byte can be raised.
        if let Some(last) = end.last_mut() {
            *last = last.saturating_add(1);
        }
        let start = match start_after {
            Some(key) => {
                let mut start = self.absolute(key);
                start.push(0);
                start
            }
            None => first,
        };
        (start, end)
    }

    /// The key relative to the cluster.
    pub(super) fn relative(&self, absolute: &[u8]) -> Result<String, BadRequest> {
        std::str::from_utf8(absolute)
            .ok()
            .and_then(|key| key.strip_prefix(self.prefix.as_str()))
            .map(str::to_owned)
            .ok_or_else(|| BadRequest::Key {
                key: String::from_utf8_lossy(absolute).into_owned(),
                why: "in etcd is not one of this cluster's",
            })
    }

    pub(super) fn entry(&self, kv: KeyValue) -> Result<Entry, BadRequest> {
        let (create_revision, mod_revision) = (
            self.revisions.revision(kv.create_revision()),
            self.revisions.revision(kv.mod_revision()),
        );
        let version = u64::try_from(kv.version()).unwrap_or(0);
        let lease = lease(kv.lease());
        let (key, value) = kv.into_key_value();
        let key = self.relative(&key)?;
        Ok(Entry {
            key,
            value: Bytes::from(value),
            create_revision,
            mod_revision,
            version,
            lease,
        })
    }

    pub(super) fn txn(&self, txn: Txn) -> EtcdTxn {
        let compares: Vec<EtcdCompare> = txn
            .compares
            .into_iter()
            .map(|compare| self.compare(compare))
            .collect();
        let branch = |ops: Vec<Op>| -> Vec<TxnOp> { ops.into_iter().map(|op| self.op(op)).collect() };
        EtcdTxn::new()
            .when(compares)
            .and_then(branch(txn.then))
            .or_else(branch(txn.otherwise))
    }

    fn compare(&self, compare: Compare) -> EtcdCompare {
        match compare {
            Compare::ModRevision(key, at) => {
                EtcdCompare::mod_revision(self.absolute(&key), CompareOp::Equal, self.revisions.signed(at))
            }
            Compare::CreateRevision(key, at) => {
                EtcdCompare::create_revision(self.absolute(&key), CompareOp::Equal, self.revisions.signed(at))
            }
            Compare::Value(key, value) => EtcdCompare::value(self.absolute(&key), CompareOp::Equal, value),
        }
    }

    fn op(&self, op: Op) -> TxnOp {
        match op {
            Op::Put { key, value, lease } => {
                let options = lease.map(|id| PutOptions::new().with_lease(signed_lease(id)));
                TxnOp::put(self.absolute(&key), value, options)
            }
            Op::Delete { key } => TxnOp::delete(self.absolute(&key), None),
            Op::Get { key } => TxnOp::get(self.absolute(&key), None),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn keys_gain_and_lose_the_clusters_prefix() {
        let keys = Keys::new("/forebay/c1").unwrap();
        assert_eq!(keys.absolute("/p/1"), b"/forebay/c1/p/1");
        assert_eq!(keys.relative(b"/forebay/c1/p/1").unwrap(), "/p/1");
        assert!(keys.relative(b"/forebay/c2/p/1").is_err());
        assert!(keys.relative(b"/forebay/c1/\xff").is_err());
    }

    #[test]
    fn a_span_covers_the_prefix_behind_its_start() {
        let keys = Keys::new("/c").unwrap();
        assert_eq!(keys.span("/p/", None), (b"/c/p/".to_vec(), b"/c/p0".to_vec()));
        assert_eq!(keys.span("/p/", Some("/p/7")).0, b"/c/p/7\0");
    }

    #[test]
    fn a_prefix_without_leading_or_with_trailing_slash_is_refused() {
        for prefix in ["", "/", "c", "/c/"] {
            assert!(Keys::new(prefix).is_err(), "{prefix}");
        }
    }

    #[test]
    fn revisions_of_a_later_incarnation_lie_above_all_of_an_earlier_one() {
        let (first, second) = (Revisions::of(1), Revisions::of(2));
        assert_eq!(first.revision(7), Revision(7));
        assert!(second.revision(1) > first.revision(1 << 39));
        for own in [0, 1, 77, i64::from(u32::MAX)] {
            assert_eq!(second.signed(second.revision(own)), own);
        }
        assert_eq!(
            second.signed(first.revision(7)),
            i64::MAX,
            "an earlier one is never met"
        );
    }

    #[test]
    fn only_a_single_lease_is_named() {
        let one = Txn::new().then(Op::put_leased("/a", "1", LeaseId(5)));
        assert_eq!(single_lease(&one), Some(LeaseId(5)));
        let two = one.then(Op::put_leased("/b", "1", LeaseId(6)));
        assert_eq!(single_lease(&two), None);
    }
}
