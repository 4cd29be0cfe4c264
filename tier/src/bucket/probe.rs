//! Trying the store at a start: everything that will be needed later, with one small object.

use bytes::Bytes;
use forebay_runtime::random::Random;

use super::Bucket;
use crate::error::{OpenError, StoreError};
use crate::names::{CLUSTER, PROBES};

/// A cluster id is far shorter.
const CLUSTER_BYTES_MAX: u64 = 4096;

impl Bucket {
    /// Tries to write, read, list and delete, and makes sure that the place belongs to `cluster`. A store
    /// that refuses deletes can be used: that is a warning and a metric.
    ///
    /// # Errors
    /// Where an operation that offload needs fails, or the place is another cluster's.
    pub async fn check(&self, cluster: &str, random: &dyn Random) -> Result<(), OpenError> {
        let name = format!("{PROBES}/{:016x}", random.u64());
        let probe = Bytes::from(format!("forebay {name}\n"));
        self.put(&name, probe.clone()).await?;
        let found = self.get(&name, probe.len() as u64).await?;
        if found != probe {
            let reason = "it is not what was just written";
            return Err(self.asked("get", &name).corrupt(reason).into());
        }
        let mut listed = false;
        self.list(PROBES, |object| listed |= object.name == name).await?;
        if !listed {
            let asked = self.asked("list", PROBES);
            return Err(asked
                .corrupt(format!("the list lacks {name}, just written"))
                .into());
        }
        match self.delete(&[name]).await {
            Ok(()) => {}
            Err(error @ StoreError::Refused { .. }) => {
                tracing::warn!(%error, "the object store refuses deletes: it will grow without bound");
            }
            Err(error) => return Err(error.into()),
        }
        self.claim(cluster).await
    }

    /// Notes that the place is this cluster's where nobody did, and refuses another's. A guard
    /// against two clusters in one place by mistake; not a lock.
    pub(crate) async fn claim(&self, cluster: &str) -> Result<(), OpenError> {
        let found = match self.get(CLUSTER, CLUSTER_BYTES_MAX).await {
            Err(StoreError::NotFound { .. }) => {
                self.put(CLUSTER, Bytes::from(format!("{cluster}\n"))).await?;
                self.get(CLUSTER, CLUSTER_BYTES_MAX).await?
            }
            other => other?,
        };
        let found = String::from_utf8_lossy(&found).trim().to_owned();
        if found == cluster {
            return Ok(());
        }
        Err(OpenError::Foreign {
            place: self.place().to_owned(),
            cluster: cluster.to_owned(),
            found,
        })
    }
}
