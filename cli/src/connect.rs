//! Reaching the service, and saying what to do where it is not there.

use std::time::Duration;

use anyhow::anyhow;
use forebay_client::{Client, ClientConfig, ConnectError};

use crate::command::Usage;

/// How long a command repeats a question that the service cannot answer for the moment.
const RETRY_TIMEOUT: Duration = Duration::from_secs(20);

/// Connects to the first of the addresses that accepts.
pub async fn connect(servers: &[String]) -> anyhow::Result<Client> {
    let config = ClientConfig {
        retry_timeout: RETRY_TIMEOUT,
        ..ClientConfig::new(servers)
    };
    Client::connect(config).await.map_err(|error| match error {
        ConnectError::Config(error) => Usage(format!("--server: {}", error.reason)).into(),
        ConnectError::Unreachable { tried } => {
            let tried: Vec<_> = tried
                .iter()
                .map(|one| format!("{}: {}", one.endpoint, one.reason))
                .collect();
            anyhow!(
                "cannot reach a Forebay server at {}; start one with `forebay standalone`",
                tried.join(", ")
            )
        }
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[tokio::test]
    async fn a_server_that_is_not_there_is_named_with_the_way_out() {
        // Bound and dropped, so nobody listens there.
        let address = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .to_string();
        let error = connect(std::slice::from_ref(&address))
            .await
            .unwrap_err()
            .to_string();
        let start = format!("cannot reach a Forebay server at {address}: ");
        assert!(
            error.starts_with(&start) && error.ends_with("start one with `forebay standalone`"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn an_address_that_is_none_is_wrong_usage() {
        let error = connect(&["ftp://host".to_owned()]).await.unwrap_err();
        assert!(
            error
                .downcast_ref::<Usage>()
                .is_some_and(|usage| usage.0.contains("ftp://host")),
            "{error}"
        );
    }
}
