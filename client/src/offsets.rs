//! Where to begin in a partition, and what the service says lies there.

use forebay_proto::v1;
use forebay_proto::v1::data_client::DataClient;
use forebay_record::Offset;

use crate::error::Refusal;
use crate::link::{Link, MESSAGE_BYTES_MAX, Repeat};

/// A position in a partition, as a consumer names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartPosition {
    /// The first record that is still kept.
    Earliest,
    /// After the last committed record: only what comes later.
    Latest,
    /// This offset.
    At(Offset),
    /// The first record at or after this time, milliseconds since 1970; the end where there is
    /// none.
    Timestamp(i64),
}

/// What was found at a position of a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundOffset {
    /// The topic.
    pub topic: String,
    /// The partition.
    pub partition: u32,
    /// None where no record is at or after the time asked for.
    pub offset: Option<Offset>,
    /// Timestamp of the record, where one was sought by time.
    pub timestamp_ms: Option<i64>,
}

/// Why an offset is not known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OffsetsError {
    /// The request as a whole failed.
    #[error("offsets cannot be listed: {0}")]
    Refused(Refusal),
    /// One partition's offset is not to be had.
    #[error("offset of {topic}/{partition} cannot be found: {refusal}")]
    Partition {
        /// The topic.
        topic: String,
        /// The partition.
        partition: u32,
        /// What the server says.
        refusal: Refusal,
    },
    /// The answer does not go with the request.
    #[error("{answered} partitions answered, {asked} asked for")]
    Mismatch {
        /// Partitions in the request.
        asked: usize,
        /// Partitions in the answer.
        answered: usize,
    },
}

/// Asks for many positions at once. [`StartPosition::At`] is answered without asking.
pub(crate) async fn list(
    link: &Link,
    wanted: Vec<(String, u32, StartPosition)>,
) -> Result<Vec<FoundOffset>, OffsetsError> {
    use v1::partition_position::Position;
    let mut request = v1::ListOffsetsRequest::default();
    for (topic, partition, position) in &wanted {
        let position = match *position {
            StartPosition::At(_) => continue,
            StartPosition::Earliest => Position::Earliest(true),
            StartPosition::Latest => Position::Latest(true),
            StartPosition::Timestamp(ms) => Position::TimestampMs(ms),
        };
        request.partitions.push(v1::PartitionPosition {
            topic: topic.clone(),
            partition: *partition,
            position: Some(position),
        });
    }
    let asked = request.partitions.len();
    let mut answers = if asked == 0 {
        Vec::new()
    } else {
        link.call(Repeat::Always, |channel| {
            let request = request.clone();
            async move {
                let mut client = DataClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
                let answer = client.list_offsets(request).await?;
                // A partition that can be asked again fails the call, so that it is repeated.
                let again = answer.get_ref().partitions.iter().find_map(|partition| {
                    let error = partition.error.clone()?;
                    Refusal::from(error.clone()).is_retriable().then_some(error)
                });
                match again {
                    Some(error) => Err(forebay_proto::error::Failure::from(error).into()),
                    None => Ok(answer),
                }
            }
        })
        .await
        .map_err(OffsetsError::Refused)?
        .partitions
    }
    .into_iter();
    if answers.len() != asked {
        return Err(OffsetsError::Mismatch {
            asked,
            answered: answers.len(),
        });
    }
    wanted
        .into_iter()
        .map(|(topic, partition, position)| {
            if let StartPosition::At(offset) = position {
                return Ok(FoundOffset {
                    topic,
                    partition,
                    offset: Some(offset),
                    timestamp_ms: None,
                });
            }
            let answer = answers.next().unwrap_or_default();
            match answer.error {
                Some(error) => Err(OffsetsError::Partition {
                    topic,
                    partition,
                    refusal: error.into(),
                }),
                None => Ok(FoundOffset {
                    topic,
                    partition,
                    offset: answer.offset.map(Offset),
                    timestamp_ms: answer.timestamp_ms,
                }),
            }
        })
        .collect()
}
