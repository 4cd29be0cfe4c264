//! Admission by bytes: memory is granted before it is used, from a stated maximum.
//!
//! Waiters are served in the order in which they asked; a large request at the front is not
//! overtaken by small ones behind it, so it cannot starve. Accounting is exact to the byte. A
//! request that could never be granted is refused at once instead of waiting for ever. The number
//! of waiters is not bounded here: a caller that takes requests from many peers bounds it by how
//! many requests it reads at once per peer.

use std::sync::Arc;

use tokio::sync::{Semaphore, TryAcquireError as SemaphoreError};

/// One pool of bytes. Cloning gives another handle to the same pool.
#[derive(Debug, Clone)]
pub struct BytePermits {
    pool: Arc<Pool>,
}

#[derive(Debug)]
struct Pool {
    semaphore: Semaphore,
    bytes_max: u64,
}

/// Why [`BytePermits::acquire`] gave nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AcquireError {
    /// The request can never fit.
    #[error(transparent)]
    TooLarge(#[from] TooLarge),
    /// [`BytePermits::close`] was called.
    #[error("byte permits are closed")]
    Closed,
}

/// Why [`BytePermits::try_acquire`] gave nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TryAcquireError {
    /// The request can never fit.
    #[error(transparent)]
    TooLarge(#[from] TooLarge),
    /// Not enough bytes are free now; asking later may succeed.
    #[error("{requested} bytes requested, {available} of {bytes_max} free")]
    Full {
        /// Bytes asked for.
        requested: u64,
        /// Bytes free at that moment; may be above `requested` when others already wait.
        available: u64,
        /// Size of the pool.
        bytes_max: u64,
    },
    /// [`BytePermits::close`] was called.
    #[error("byte permits are closed")]
    Closed,
}

/// A request above what one request may ever be granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{requested} bytes requested, at most {bytes_max} can be granted")]
pub struct TooLarge {
    /// Bytes asked for.
    pub requested: u64,
    /// The largest request the pool grants.
    pub bytes_max: u64,
}

impl BytePermits {
    /// A pool of `bytes_max` bytes.
    pub fn new(bytes_max: u64) -> Self {
        let bytes_max = bytes_max.min(Semaphore::MAX_PERMITS as u64);
        let semaphore = Semaphore::new(usize::try_from(bytes_max).unwrap_or(Semaphore::MAX_PERMITS));
        Self {
            pool: Arc::new(Pool { semaphore, bytes_max }),
        }
    }

    /// Size of the pool.
    pub fn bytes_max(&self) -> u64 {
        self.pool.bytes_max
    }

    /// The largest single request that can be granted: the whole pool, but less than 4 GiB.
    pub fn request_bytes_max(&self) -> u64 {
        self.pool.bytes_max.min(u64::from(u32::MAX))
    }

    /// Bytes free now.
    pub fn available(&self) -> u64 {
        self.pool.semaphore.available_permits() as u64
    }

    /// Waits for `bytes` to be free and takes them.
    ///
    /// Cancel safety: dropping the future gives up the place in the queue and takes nothing.
    pub async fn acquire(&self, bytes: u64) -> Result<BytePermit, AcquireError> {
        let count = self.check(bytes)?;
        match self.pool.semaphore.acquire_many(count).await {
            Ok(permit) => {
                permit.forget();
                Ok(BytePermit {
                    pool: Arc::clone(&self.pool),
                    bytes,
                })
            }
            Err(_closed) => Err(AcquireError::Closed),
        }
    }

    /// Takes `bytes` if they are free and nobody waits before us.
    pub fn try_acquire(&self, bytes: u64) -> Result<BytePermit, TryAcquireError> {
        let count = self.check(bytes)?;
        match self.pool.semaphore.try_acquire_many(count) {
            Ok(permit) => {
                permit.forget();
                Ok(BytePermit {
                    pool: Arc::clone(&self.pool),
                    bytes,
                })
            }
            Err(SemaphoreError::NoPermits) => Err(TryAcquireError::Full {
                requested: bytes,
                available: self.available(),
                bytes_max: self.pool.bytes_max,
            }),
            Err(SemaphoreError::Closed) => Err(TryAcquireError::Closed),
        }
    }

    /// Wakes every waiter with [`AcquireError::Closed`] and refuses further requests. Permits
    /// already given stay valid.
    pub fn close(&self) {
        self.pool.semaphore.close();
    }

    fn check(&self, bytes: u64) -> Result<u32, TooLarge> {
        let bytes_max = self.request_bytes_max();
        let too_large = TooLarge {
            requested: bytes,
            bytes_max,
        };
        if bytes > bytes_max {
            return Err(too_large);
        }
        u32::try_from(bytes).map_err(|_| too_large)
    }
}

/// Bytes taken from a pool; they go back when this is dropped.
#[derive(Debug)]
#[must_use = "dropping the permit gives the bytes back"]
pub struct BytePermit {
    pool: Arc<Pool>,
    bytes: u64,
}

impl BytePermit {
    /// Bytes held.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Moves `bytes` of this permit into a permit of their own; `None` if fewer are held.
    pub fn split(&mut self, bytes: u64) -> Option<BytePermit> {
        self.bytes = self.bytes.checked_sub(bytes)?;
        Some(BytePermit {
            pool: Arc::clone(&self.pool),
            bytes,
        })
    }

    /// Takes over the bytes of `other`; gives it back unchanged if it is from another pool.
    pub fn merge(&mut self, mut other: BytePermit) -> Result<(), BytePermit> {
        if !Arc::ptr_eq(&self.pool, &other.pool) {
            return Err(other);
        }
        self.bytes += std::mem::take(&mut other.bytes);
        Ok(())
    }

    /// Gives back all but `bytes`; does nothing if no more than that is held.
    pub fn shrink_to(&mut self, bytes: u64) {
        let excess = self.bytes.saturating_sub(bytes);
        drop(self.split(excess));
    }
}

impl Drop for BytePermit {
    fn drop(&mut self) {
        // Never above what was acquired, so it fits a usize and cannot overfill the semaphore.
        if let Ok(bytes @ 1..) = usize::try_from(self.bytes) {
            self.pool.semaphore.add_permits(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing
    )]

    use futures_util::FutureExt;
    use proptest::prelude::*;

    use super::*;

    #[tokio::test]
    async fn a_request_above_the_total_is_refused_with_both_numbers() {
        let permits = BytePermits::new(1_000);
        let error = permits.acquire(1_001).await.unwrap_err();
        assert_eq!(
            error,
            AcquireError::TooLarge(TooLarge {
                requested: 1_001,
                bytes_max: 1_000
            })
        );
        assert_eq!(
            error.to_string(),
            "1001 bytes requested, at most 1000 can be granted"
        );
        assert!(matches!(
            permits.try_acquire(u64::MAX),
            Err(TryAcquireError::TooLarge(_))
        ));
    }

    #[test]
    fn a_request_above_four_gib_is_refused_even_by_a_larger_pool() {
        let permits = BytePermits::new(1 << 40);
        assert_eq!(permits.bytes_max(), 1 << 40);
        assert!(permits.try_acquire((1 << 32) - 1).is_ok());
        assert!(matches!(
            permits.try_acquire(1 << 32),
            Err(TryAcquireError::TooLarge(_))
        ));
    }

    #[test]
    fn a_dropped_permit_gives_its_bytes_back() {
        let permits = BytePermits::new(10);
        let permit = permits.try_acquire(7).unwrap();
        assert_eq!(permits.available(), 3);
        assert_eq!(
            permits.try_acquire(4).unwrap_err(),
            TryAcquireError::Full {
                requested: 4,
                available: 3,
                bytes_max: 10
            }
        );
        drop(permit);
        assert_eq!(permits.available(), 10);
    }

    #[test]
    fn a_small_request_does_not_overtake_a_large_one() {
        let permits = BytePermits::new(10);
        let held = permits.try_acquire(6).unwrap();
        let mut large = Box::pin(permits.acquire(8));
        let mut small = Box::pin(permits.acquire(1));
        assert!(large.as_mut().now_or_never().is_none());
        assert!(small.as_mut().now_or_never().is_none());
        assert!(permits.try_acquire(1).is_err());
        drop(held);
        let large = large.now_or_never().unwrap().unwrap();
        let small = small.now_or_never().unwrap().unwrap();
        assert_eq!((large.bytes(), small.bytes(), permits.available()), (8, 1, 1));
    }

    #[test]
    fn a_cancelled_wait_takes_nothing() {
        let permits = BytePermits::new(10);
        let held = permits.try_acquire(6).unwrap();
        let mut waiting = Box::pin(permits.acquire(8));
        assert!(waiting.as_mut().now_or_never().is_none());
        drop(waiting);
        assert_eq!(permits.available(), 4);
        drop(held);
        assert_eq!(permits.available(), 10);
    }

    #[test]
    fn split_and_merge_keep_the_sum() {
        let permits = BytePermits::new(10);
        let mut permit = permits.try_acquire(9).unwrap();
        assert!(permit.split(10).is_none());
        let part = permit.split(4).unwrap();
        assert_eq!((permit.bytes(), part.bytes(), permits.available()), (5, 4, 1));
        permit.merge(part).unwrap();
        assert_eq!((permit.bytes(), permits.available()), (9, 1));
        permit.shrink_to(2);
        assert_eq!((permit.bytes(), permits.available()), (2, 8));
        permit.shrink_to(5);
        assert_eq!(permit.bytes(), 2);
    }

    #[test]
    fn permits_of_another_pool_are_not_merged() {
        let (one, two) = (BytePermits::new(10), BytePermits::new(10));
        let mut permit = one.try_acquire(1).unwrap();
        let refused = permit.merge(two.try_acquire(2).unwrap()).unwrap_err();
        assert_eq!((permit.bytes(), refused.bytes()), (1, 2));
        drop(refused);
        assert_eq!(two.available(), 10);
    }

    #[test]
    fn close_wakes_waiters_and_refuses_the_rest() {
        let permits = BytePermits::new(10);
        let held = permits.try_acquire(10).unwrap();
        let mut waiting = Box::pin(permits.acquire(1));
        assert!(waiting.as_mut().now_or_never().is_none());
        permits.close();
        assert_eq!(waiting.now_or_never().unwrap().unwrap_err(), AcquireError::Closed);
        assert_eq!(permits.try_acquire(1).unwrap_err(), TryAcquireError::Closed);
        assert_eq!(held.bytes(), 10);
    }

    proptest! {
        #[test]
        fn no_sequence_of_splits_and_drops_loses_a_byte(
            steps in prop::collection::vec((0_u8..4, 0_u64..500), 0..60),
        ) {
            let permits = BytePermits::new(1_000);
            let mut held: Vec<BytePermit> = Vec::new();
            for (step, bytes) in steps {
                match step {
                    0 => held.extend(permits.try_acquire(bytes).ok()),
                    1 => {
                        let part = held.last_mut().and_then(|permit| permit.split(bytes));
                        held.extend(part);
                    }
                    2 if held.len() > 1 => {
                        let other = held.remove(0);
                        held[0].merge(other).unwrap();
                    }
                    _ => drop(held.pop()),
                }
                let sum: u64 = held.iter().map(BytePermit::bytes).sum();
                prop_assert_eq!(sum + permits.available(), 1_000);
            }
        }
    }
}
