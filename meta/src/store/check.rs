//! What every implementation refuses before anything is sent, so that both refuse the same.

use std::collections::BTreeSet;
use std::time::Duration;

use super::error::BadRequest;
use super::types::{Compare, Op, Range, Txn};
use super::{KEY_BYTES_MAX, LEASE_TTL, OPS_MAX, PUTS_MAX, READ_KEYS_MAX, TXN_BYTES_MAX, VALUE_BYTES_MAX};

/// A key as callers may name it.
pub(super) fn key(key: &str) -> Result<(), BadRequest> {
    if key.len() > KEY_BYTES_MAX {
        return Err(BadRequest::KeyTooLong {
            bytes: key.len(),
            bytes_max: KEY_BYTES_MAX,
        });
    }
    if !key.starts_with('/') {
        return Err(BadRequest::Key {
            key: key.to_owned(),
            why: "does not begin with /",
        });
    }
    if key.contains('\0') {
        return Err(BadRequest::Key {
            key: key.to_owned(),
            why: "contains a zero byte",
        });
    }
    Ok(())
}

/// The keys of one read.
pub(super) fn keys(keys: &[String]) -> Result<(), BadRequest> {
    if keys.len() > READ_KEYS_MAX {
        let (count, count_max) = (keys.len(), READ_KEYS_MAX);
        return Err(BadRequest::TooMany {
            what: "keys",
            count,
            count_max,
        });
    }
    keys.iter().try_for_each(|named| key(named))
}

/// A range; its start must lie within its prefix.
pub(super) fn range(range: &Range) -> Result<(), BadRequest> {
    key(&range.prefix)?;
    if range.limit == 0 {
        let key = range.prefix.clone();
        return Err(BadRequest::Key {
            key,
            why: "is read with a limit of zero",
        });
    }
    match &range.start_after {
        Some(start) if !start.starts_with(&range.prefix) => Err(BadRequest::Key {
            key: start.clone(),
            why: "lies outside of the range's prefix",
        }),
        Some(start) => key(start),
        None => Ok(()),
    }
}

/// Time to live of a lease.
pub(super) fn ttl(ttl: Duration) -> Result<(), BadRequest> {
    let (min, max) = LEASE_TTL;
    if ttl < min || ttl > max {
        return Err(BadRequest::Ttl { ttl, min, max });
    }
    Ok(())
}

/// A transaction: keys, sizes, counts, and that no branch names a key twice.
pub(super) fn txn(txn: &Txn) -> Result<(), BadRequest> {
    let mut bytes = 0_usize;
    count("compares", txn.compares.len(), OPS_MAX)?;
    for compare in &txn.compares {
        key(compare.key())?;
        bytes += compare.key().len();
        if let Compare::Value(_, value) = compare {
            bytes += value.len();
        }
    }
    for branch in [&txn.then, &txn.otherwise] {
        bytes += check_branch(branch)?;
    }
    if bytes > TXN_BYTES_MAX {
        return Err(BadRequest::TxnTooLarge {
            bytes,
            bytes_max: TXN_BYTES_MAX,
        });
    }
    Ok(())
}

/// Returns the branch's bytes.
fn check_branch(branch: &[Op]) -> Result<usize, BadRequest> {
    count("operations", branch.len(), OPS_MAX)?;
    let puts = branch.iter().filter(|op| matches!(op, Op::Put { .. })).count();
    count("puts", puts, PUTS_MAX)?;
    let mut named = BTreeSet::new();
    let mut bytes = 0_usize;
    for op in branch {
        key(op.key())?;
        bytes += op.key().len();
        if !named.insert(op.key()) {
            return Err(BadRequest::KeyTwice {
                key: op.key().to_owned(),
            });
        }
        if let Op::Put { value, .. } = op {
            if value.len() > VALUE_BYTES_MAX {
                return Err(BadRequest::ValueTooLarge {
                    key: op.key().to_owned(),
                    bytes: value.len(),
                    bytes_max: VALUE_BYTES_MAX,
                });
            }
            bytes += value.len();
        }
    }
    Ok(bytes)
}

fn count(what: &'static str, count: usize, count_max: usize) -> Result<(), BadRequest> {
    if count > count_max {
        return Err(BadRequest::TooMany {
            what,
            count,
            count_max,
        });
    }
    Ok(())
}
