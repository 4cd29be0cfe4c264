#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use futures_util::FutureExt as _;

use super::*;

fn refusal() -> Refusal {
    Refusal::new(forebay_proto::v1::ErrorCode::InvalidBatch, "test")
}

fn settlement(ledger: &Arc<Ledger>) -> Settlement {
    Settlement::new("t".into(), 3, ledger.clone())
}

#[tokio::test]
async fn every_record_of_a_batch_learns_its_own_offset() {
    let ledger = Arc::new(Ledger::default());
    let mut batch = settlement(&ledger);
    let waiting = [batch.delivery(0, 10), batch.delivery(1, 11)].map(tokio::spawn);
    let late = batch.delivery(2, 12);
    tokio::task::yield_now().await;
    batch.delivered(Some(Offset(100)));
    for (index, delivery) in waiting.into_iter().enumerate() {
        let metadata = delivery.await.unwrap().unwrap();
        assert_eq!(metadata.offset, Some(Offset(100 + index as u64)));
        assert_eq!(
            (metadata.partition, metadata.timestamp_ms),
            (3, 10 + index as i64)
        );
    }
    assert_eq!(late.await.unwrap().offset, Some(Offset(102)));
}

#[tokio::test]
async fn a_flush_waits_for_what_was_open_and_not_for_what_came_later() {
    let ledger = Arc::new(Ledger::default());
    let first = settlement(&ledger);
    let mut flush = Box::pin(ledger.settle_all());
    assert!(flush.as_mut().now_or_never().is_none());
    let later = settlement(&ledger);
    first.delivered(None);
    flush.await;
    assert!(!ledger.is_settled());
    later.delivered(None);
    assert!(ledger.is_settled());
}

#[tokio::test]
async fn a_flush_tells_failed_from_unknown_and_forgets_what_it_told() {
    let ledger = Arc::new(Ledger::default());
    for (enqueued, unknown) in [(2, false), (3, true), (0, false)] {
        let mut batch = settlement(&ledger);
        (0..enqueued).for_each(|_| batch.count());
        if unknown {
            batch.unknown(refusal())
        } else {
            batch.refused(refusal())
        }
    }
    let error = ledger.take_failures().unwrap_err();
    assert_eq!((error.failed, error.unknown), (2, 3));
    assert!(matches!(error.first, DeliveryError::Refused { partition: 3, .. }));
    assert_eq!(ledger.take_failures(), Ok(()));
}

#[tokio::test]
async fn a_batch_that_is_dropped_leaves_nobody_waiting() {
    let ledger = Arc::new(Ledger::default());
    let (mut unsent, mut sent) = (settlement(&ledger), settlement(&ledger));
    let (first, second) = (unsent.delivery(0, 0), sent.delivery(0, 0));
    sent.sent = true;
    drop((unsent, sent));
    assert!(matches!(first.await, Err(DeliveryError::Dropped { .. })));
    assert!(second.await.unwrap_err().is_unknown(), "it may have been written");
}
