//! From the configuration to a client of the store.
//!
//! Credentials come from the configuration, else from the environment that `main` passes in, else,
//! on AWS only, from the machine's role. An endpoint without TLS needs no certificates on the machine.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{BackoffConfig, ClientOptions, ObjectStore, RetryConfig};

use crate::config::{Location, ObjectStoreConfig};
use crate::error::OpenError;

/// Tries of one request, the first not counted; the time limit is usually met before.
const RETRIES_MAX: usize = 12;

/// Variables that name credentials, and the client's keys for them.
const ENVIRONMENT: [(&str, AmazonS3ConfigKey); 10] = [
    ("AWS_ACCESS_KEY_ID", AmazonS3ConfigKey::AccessKeyId),
    ("AWS_SECRET_ACCESS_KEY", AmazonS3ConfigKey::SecretAccessKey),
    ("AWS_SESSION_TOKEN", AmazonS3ConfigKey::Token),
    (
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        AmazonS3ConfigKey::WebIdentityTokenFile,
    ),
    ("AWS_ROLE_ARN", AmazonS3ConfigKey::RoleArn),
    ("AWS_ROLE_SESSION_NAME", AmazonS3ConfigKey::RoleSessionName),
    ("AWS_ENDPOINT_URL_STS", AmazonS3ConfigKey::StsEndpoint),
    (
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
        AmazonS3ConfigKey::ContainerCredentialsRelativeUri,
    ),
    (
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
        AmazonS3ConfigKey::ContainerCredentialsFullUri,
    ),
    (
        "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
        AmazonS3ConfigKey::ContainerAuthorizationTokenFile,
    ),
];

/// A store, ready to be asked.
pub(super) struct Opened {
    pub store: Arc<dyn ObjectStore>,
    /// What every object's path begins with.
    pub prefix: Path,
    /// For messages: URL and endpoint, without secrets.
    pub place: String,
    /// The folder, where the store is one.
    pub folder: Option<PathBuf>,
}

pub(super) fn open(
    config: &ObjectStoreConfig,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<Option<Opened>, OpenError> {
    let place = if config.endpoint.is_empty() {
        config.url.clone()
    } else {
        format!("{} at {}", config.url, config.endpoint)
    };
    let failed = |reason: String| OpenError::Settings {
        place: place.clone(),
        reason,
    };
    let opened = match config.location().map_err(|error| failed(error.to_string()))? {
        Location::None => return Ok(None),
        Location::Memory => Opened {
            store: Arc::new(InMemory::new()),
            prefix: Path::default(),
            place,
            folder: None,
        },
        Location::Folder(folder) => {
            let folder = PathBuf::from(folder);
            std::fs::create_dir_all(&folder)
                .and_then(|()| sync_folders(&folder, folder.parent().unwrap_or(&folder)))
                .map_err(|error| failed(format!("folder {}: {error}", folder.display())))?;
            let store =
                LocalFileSystem::new_with_prefix(&folder).map_err(|error| failed(error.to_string()))?;
            Opened {
                // Each name has a folder of its own: what becomes empty goes.
                store: Arc::new(store.with_fsync(true).with_automatic_cleanup(true)),
                prefix: Path::default(),
                place,
                folder: Some(folder),
            }
        }
        Location::S3 { bucket, prefix } => {
            let store = s3(config, &bucket, env).map_err(failed)?;
            Opened {
                store,
                prefix: Path::from(prefix),
                place,
                folder: None,
            }
        }
    };
    Ok(Some(opened))
}

fn s3(
    config: &ObjectStoreConfig,
    bucket: &str,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<Arc<dyn ObjectStore>, String> {
    // Keep-alive is short: a connection that a balancer closed silently costs a retry.
    let mut client = ClientOptions::new()
        .with_timeout(config.request_timeout.get())
        .with_connect_timeout(config.connect_timeout.get())
        .with_pool_idle_timeout(Duration::from_secs(20))
        .with_allow_http(config.allow_http);
    if config.endpoint.starts_with("http://") {
        // The client would look for certificates, and fail on a machine that has none.
        client = client.with_no_system_certificates(true);
    }
    let mut builder = AmazonS3Builder::new()
        .with_bucket_name(bucket)
        .with_region(&config.region)
        .with_virtual_hosted_style_request(!config.uses_path_style())
        .with_retry(retry(config))
        .with_client_options(client);
    if !config.endpoint.is_empty() {
        builder = builder.with_endpoint(config.endpoint.trim_end_matches('/'));
    }
    if let Some(secret) = &config.secret_access_key {
        builder = builder
            .with_access_key_id(&config.access_key_id)
            .with_secret_access_key(secret.expose());
        if let Some(token) = &config.session_token {
            builder = builder.with_token(token.expose());
        }
    } else {
        let mut found = false;
        for (variable, key) in ENVIRONMENT {
            if let Some(value) = env(variable).filter(|value| !value.is_empty()) {
                builder = builder.with_config(key, value);
                found = true;
            }
        }
        if !found && !config.endpoint.is_empty() {
            return Err(
                "there are no credentials: set object_store.access_key_id and secret_access_key, \
                 or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment"
                    .to_owned(),
            );
        }
    }
    let store = builder.build().map_err(|error| {
        let text = super::classify::full_text(&error);
        if text.contains("certificate") {
            format!("{text}; install the package ca-certificates, or set SSL_CERT_FILE")
        } else {
            text
        }
    })?;
    Ok(Arc::new(store))
}

fn retry(config: &ObjectStoreConfig) -> RetryConfig {
    RetryConfig {
        backoff: BackoffConfig {
            init_backoff: Duration::from_millis(50),
            max_backoff: Duration::from_secs(5),
            base: 2.0,
        },
        max_retries: RETRIES_MAX,
        retry_timeout: config.retry_timeout.get(),
    }
}

/// Syncs `folder` and all above it up to `root`, so that what was created in them survives.
pub(super) fn sync_folders(folder: &std::path::Path, root: &std::path::Path) -> std::io::Result<()> {
    let mut at = folder;
    loop {
        std::fs::File::open(at)?.sync_all()?;
        match at.parent() {
            Some(parent) if at != root && at.starts_with(root) => at = parent,
            _ => return Ok(()),
        }
    }
}
