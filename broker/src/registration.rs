//! What this broker says of itself in its session's record: the one place that changes it.

use std::sync::Arc;

use forebay_meta::session::{Session, SessionError};
use forebay_proto::stored::BrokerRecord;
use tokio::sync::Mutex;

/// The session and its record.
pub struct Registration {
    session: Arc<Session>,
    record: Mutex<BrokerRecord>,
}

impl Registration {
    /// Of a session that was registered with this record.
    pub fn new(session: Arc<Session>, record: BrokerRecord) -> Self {
        let record = Mutex::new(record);
        Self { session, record }
    }

    /// Changes the record. One that could not be stored is as it was.
    ///
    /// # Errors
    /// As the store fails, and where the session is over.
    pub async fn update(&self, change: impl FnOnce(&mut BrokerRecord) + Send) -> Result<(), SessionError> {
        // A tokio mutex, held across the call on purpose: changes go one after the other.
        let mut record = self.record.lock().await;
        let mut changed = record.clone();
        change(&mut changed);
        if changed != *record {
            self.session.update_broker(&changed).await?;
            *record = changed;
        }
        Ok(())
    }
}
