//! Logs to standard error and, when asked for, traces to an OTLP collector.
//!
//! [`init`] sets the global `tracing` subscriber: the one process global of this crate, because
//! `tracing` knows no other way to be heard by every thread. Only `main` calls it, once; tests set
//! a subscriber for their own thread. Logs come from `tracing`; the spans of traces are made by
//! [`crate::trace`], and those of `tracing` only name them in log lines. Spans are dropped, never
//! waited for, when the collector is slow or away; the first failed export of a row is logged.

use std::io::{self, IsTerminal};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry_otlp::WithExportConfig;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracerProvider, SpanData, SpanExporter,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tracing::Subscriber;
use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::{ConfigError, Validate};
use crate::random::Random;
use crate::trace::Tracer;

/// How long one export may take.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long [`TelemetryGuard::shutdown`] waits for the last spans.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);

/// How long dropping the guard blocks: it may sit on a thread that the export needs.
const DROP_TIMEOUT: Duration = Duration::from_secs(1);

/// A finished span waits at most about so long for others to be exported with it.
const EXPORT_EVERY: Duration = Duration::from_secs(1);
/// Finished spans that wait for the exporter; more are dropped.
const QUEUE_MAX: usize = 8192;

/// Logs and traces.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TelemetryConfig {
    /// The form of a log line.
    pub log_format: LogFormat,
    /// What is logged: a level, or directives such as `info,forebay_broker=debug`.
    pub log_filter: String,
    /// URL of an OTLP gRPC collector, such as `http://localhost:4317`; no traces without it.
    pub otlp_endpoint: Option<String>,
    /// The share of traces begun here that is recorded, from 0 to 1. A request that names a trace
    /// goes by that one's own decision.
    pub traces_sample_ratio: f64,
    /// What the process is called in its traces; empty for a name made of its roles.
    pub service_name: String,
    /// What this one of several such processes is called; empty for its role's id.
    pub instance_id: String,
}

/// The form of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people; in colour on a terminal.
    Text,
    /// One JSON object a line.
    Json,
}

impl Default for TelemetryConfig {
    fn default() -> Self {
        Self {
            log_format: LogFormat::Text,
            log_filter: "info".to_owned(),
            otlp_endpoint: None,
            traces_sample_ratio: 0.01,
            service_name: String::new(),
            instance_id: String::new(),
        }
    }
}

impl Validate for TelemetryConfig {
    fn validate(&self) -> Result<(), ConfigError> {
        let filter = &self.log_filter;
        EnvFilter::try_new(filter)
            .map_err(|error| ConfigError::invalid("log_filter", format!("{filter:?}: {error}")))?;
        if let Some(endpoint) = &self.otlp_endpoint
            && !endpoint.starts_with("http://")
        {
            let reason = format!("{endpoint:?} does not start with http://");
            return Err(ConfigError::invalid("otlp_endpoint", reason));
        }
        if !(0.0..=1.0).contains(&self.traces_sample_ratio) {
            let reason = format!("{} is not between 0 and 1", self.traces_sample_ratio);
            return Err(ConfigError::invalid("traces_sample_ratio", reason));
        }
        Ok(())
    }
}

/// Why [`init`] or [`TelemetryGuard::shutdown`] failed.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The configuration does not pass [`Validate`].
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A subscriber is set already: [`init`] was called before, or somebody else set one.
    #[error("a global subscriber is set already")]
    AlreadyInitialised(#[source] tracing_subscriber::util::TryInitError),
    /// Traces are exported through tokio, and no runtime is running.
    #[error("trace export needs a tokio runtime")]
    NoRuntime,
    /// The exporter refused the endpoint.
    #[error("no trace export to {endpoint}")]
    Exporter {
        /// The configured endpoint.
        endpoint: String,
        /// What the exporter said.
        source: opentelemetry_otlp::ExporterBuildError,
    },
    /// The last spans did not get out.
    #[error("last spans not exported: {0}")]
    Flush(String),
}

/// Who says what is logged and traced, as far as the configuration does not name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// What the process is, such as `forebay-broker`.
    pub name: String,
    /// Which one of several it is, such as `broker-3`.
    pub instance: String,
    /// The deployment it belongs to.
    pub namespace: String,
}

/// Keeps the trace export going. `main` ends with [`TelemetryGuard::shutdown`]; dropping it
/// instead flushes as well, but blocks the thread for up to a second.
#[derive(Debug)]
#[must_use = "dropping the guard ends the trace export"]
pub struct TelemetryGuard {
    provider: Option<SdkTracerProvider>,
    tracer: Tracer,
}

/// Sets the global subscriber and begins to export traces. Call it from `main`, once, inside the
/// tokio runtime.
pub fn init(
    config: &TelemetryConfig,
    service: &Service,
    random: &dyn Random,
) -> Result<TelemetryGuard, TelemetryError> {
    // From here on the guard owns the provider, so that it ends also when the next line fails.
    let guard = traces(config, service, random)?;
    let logs = log_layer(config, io::stderr, io::stderr().is_terminal());
    tracing_subscriber::registry()
        .with(logs)
        .try_init()
        .map_err(TelemetryError::AlreadyInitialised)?;
    Ok(guard)
}

/// Begins to export traces, and leaves logs alone.
pub fn traces(
    config: &TelemetryConfig,
    service: &Service,
    random: &dyn Random,
) -> Result<TelemetryGuard, TelemetryError> {
    config.validate()?;
    let provider = match &config.otlp_endpoint {
        Some(endpoint) => Some(tracer_provider(config, service, endpoint)?),
        None => None,
    };
    let tracer = provider.as_ref().map_or_else(Tracer::off, |provider| {
        Tracer::with_share(provider, config.traces_sample_ratio, random.u64())
    });
    Ok(TelemetryGuard { provider, tracer })
}

impl TelemetryGuard {
    /// Begins spans; records nothing where no collector is configured.
    #[must_use]
    pub fn tracer(&self) -> Tracer {
        self.tracer.clone()
    }

    /// Exports what is left and ends the export.
    pub async fn shutdown(mut self) -> Result<(), TelemetryError> {
        let Some(provider) = self.provider.take() else {
            return Ok(());
        };
        // On a thread of its own: it blocks until the runtime has carried the last export.
        let ended = tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(FLUSH_TIMEOUT));
        match ended.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(TelemetryError::Flush(error.to_string())),
            Err(error) => Err(TelemetryError::Flush(error.to_string())),
        }
    }
}

impl Drop for TelemetryGuard {
    fn drop(&mut self) {
        if let Some(provider) = self.provider.take()
            && let Err(error) = provider.shutdown_with_timeout(DROP_TIMEOUT)
        {
            tracing::warn!(%error, "last spans not exported");
        }
    }
}

fn tracer_provider(
    config: &TelemetryConfig,
    service: &Service,
    endpoint: &str,
) -> Result<SdkTracerProvider, TelemetryError> {
    if tokio::runtime::Handle::try_current().is_err() {
        return Err(TelemetryError::NoRuntime);
    }
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_tonic()
        .with_endpoint(endpoint)
        .with_timeout(EXPORT_TIMEOUT)
        .build()
        .map_err(|source| TelemetryError::Exporter {
            endpoint: endpoint.to_owned(),
            source,
        })?;
    let reported = Reported {
        inner: exporter,
        failing: AtomicBool::new(false),
    };
    let batches = BatchConfigBuilder::default()
        .with_max_queue_size(QUEUE_MAX)
        .with_scheduled_delay(EXPORT_EVERY)
        .build();
    Ok(SdkTracerProvider::builder()
        .with_span_processor(
            BatchSpanProcessor::builder(reported)
                .with_batch_config(batches)
                .build(),
        )
        // Which traces are begun at all is drawn by the tracer, before a span is made.
        .with_sampler(Sampler::ParentBased(Box::new(Sampler::AlwaysOn)))
        .with_resource(resource(config, service))
        .build())
}

fn resource(config: &TelemetryConfig, service: &Service) -> Resource {
    let or = |configured: &String, default: &String| match configured.is_empty() {
        true => default.clone(),
        false => configured.clone(),
    };
    Resource::builder()
        .with_service_name(or(&config.service_name, &service.name))
        .with_attributes([
            KeyValue::new("service.namespace", service.namespace.clone()),
            KeyValue::new("service.instance.id", or(&config.instance_id, &service.instance)),
            KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
            KeyValue::new("process.pid", i64::from(std::process::id())),
        ])
        .build()
}

fn log_layer<S, W>(config: &TelemetryConfig, writer: W, colour: bool) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let layer = tracing_subscriber::fmt::layer().with_writer(writer);
    let filter = filter(&config.log_filter);
    match config.log_format {
        LogFormat::Text => layer.with_ansi(colour).with_filter(filter).boxed(),
        LogFormat::Json => {
            let layer = layer.json().flatten_event(true).with_span_list(false);
            layer.with_filter(filter).boxed()
        }
    }
}

/// Directives that were validated before; the lossy form only saves a second error path.
fn filter(directives: &str) -> EnvFilter {
    EnvFilter::builder().parse_lossy(directives)
}

/// Says when exports begin to fail and when they work again; the exporter itself is silent.
#[derive(Debug)]
struct Reported<E> {
    inner: E,
    failing: AtomicBool,
}

impl<E: SpanExporter> SpanExporter for Reported<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len();
        let result = self.inner.export(batch).await;
        let was_failing = self.failing.swap(result.is_err(), Ordering::Relaxed);
        match &result {
            Err(error) if !was_failing => {
                tracing::warn!(%error, spans, "trace export fails, spans are dropped");
            }
            Ok(()) if was_failing => tracing::info!("trace export works again"),
            Ok(()) | Err(_) => {}
        }
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.inner.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
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

    use std::io::Write;
    use std::sync::Arc;

    use opentelemetry_sdk::error::OTelSdkError;
    use parking_lot::Mutex;

    use super::*;
    use crate::trace::SpanKind;

    #[derive(Clone, Default)]
    struct Captured(Arc<Mutex<Vec<u8>>>);

    impl Write for Captured {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(config: &TelemetryConfig, body: impl FnOnce()) -> String {
        let captured = Captured::default();
        let writer = captured.clone();
        let layer = log_layer(config, move || writer.clone(), false);
        let subscriber = tracing_subscriber::registry().with(layer);
        tracing::subscriber::with_default(subscriber, body);
        let bytes = captured.0.lock().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn text_lines_carry_level_message_and_fields() {
        let text = logged(&TelemetryConfig::default(), || {
            tracing::info!(partition = 7, "rolled");
            tracing::debug!("not shown");
        });
        assert!(
            text.contains("INFO") && text.contains("rolled partition=7"),
            "{text}"
        );
        assert!(!text.contains("not shown"), "{text}");
    }

    #[test]
    fn json_lines_are_objects_with_flat_fields() {
        let config = TelemetryConfig {
            log_format: LogFormat::Json,
            ..Default::default()
        };
        let text = logged(&config, || tracing::warn!(partition = 7, "rolled"));
        assert!(text.starts_with('{') && text.ends_with("}\n"), "{text}");
        assert!(text.contains(r#""level":"WARN""#), "{text}");
        assert!(text.contains(r#""message":"rolled","partition":7"#), "{text}");
    }

    #[test]
    fn lines_of_a_traced_piece_of_work_name_its_trace() {
        let context = crate::trace::TraceContext::new([0xab; 16], [0xcd; 8], 1, "").unwrap();
        let span = Tracer::off().child(Some(&context), SpanKind::Server, || "append");
        for (log_format, trace, id) in [
            (
                LogFormat::Json,
                format!(r#""trace_id":"{}""#, "ab".repeat(16)),
                format!(r#""span_id":"{}""#, "cd".repeat(8)),
            ),
            (
                LogFormat::Text,
                format!(r#"trace_id="{}""#, "ab".repeat(16)),
                format!(r#"span_id="{}""#, "cd".repeat(8)),
            ),
        ] {
            let config = TelemetryConfig {
                log_format,
                ..Default::default()
            };
            let text = logged(&config, || {
                span.log().in_scope(|| tracing::warn!("slow disk"));
                tracing::warn!("elsewhere");
            });
            let (first, second) = text.split_once('\n').unwrap();
            assert!(first.contains(&trace) && first.contains(&id), "{text}");
            assert!(!second.contains("trace_id"), "{text}");
        }
    }

    #[test]
    fn directives_choose_levels_by_target() {
        let log_filter = "warn,forebay_runtime::telemetry=trace".to_owned();
        let config = TelemetryConfig {
            log_filter,
            ..Default::default()
        };
        let text = logged(&config, || {
            tracing::trace!("ours");
            tracing::info!(target: "other", "theirs");
        });
        assert!(text.contains("ours") && !text.contains("theirs"), "{text}");
    }

    #[test]
    fn validation_names_the_bad_key() {
        let default = TelemetryConfig::default;
        default().validate().unwrap();
        for (config, key) in [
            (
                TelemetryConfig {
                    log_filter: "info,=x=".to_owned(),
                    ..default()
                },
                "log_filter",
            ),
            (
                TelemetryConfig {
                    otlp_endpoint: Some("localhost:4317".to_owned()),
                    ..default()
                },
                "otlp_endpoint",
            ),
            (
                TelemetryConfig {
                    traces_sample_ratio: f64::NAN,
                    ..default()
                },
                "traces_sample_ratio",
            ),
        ] {
            let error = config.validate().unwrap_err().to_string();
            assert!(error.starts_with(&format!("bad value for {key}: ")), "{error}");
        }
    }

    #[test]
    fn export_without_a_runtime_is_refused() {
        let otlp_endpoint = Some("http://127.0.0.1:4317".to_owned());
        let config = TelemetryConfig {
            otlp_endpoint,
            ..Default::default()
        };
        let service = Service {
            name: "forebay".to_owned(),
            instance: "one".to_owned(),
            namespace: "forebay".to_owned(),
        };
        let refused = init(&config, &service, &crate::random::OsRandom);
        assert!(matches!(refused, Err(TelemetryError::NoRuntime)));
    }

    #[derive(Debug)]
    struct Flaky(AtomicBool);

    impl SpanExporter for Flaky {
        async fn export(&self, _: Vec<SpanData>) -> OTelSdkResult {
            match self.0.load(Ordering::Relaxed) {
                true => Ok(()),
                false => Err(OTelSdkError::InternalFailure("no collector".to_owned())),
            }
        }
    }

    #[test]
    fn a_row_of_failed_exports_is_logged_once_and_its_end_too() {
        let text = logged(&TelemetryConfig::default(), || {
            let exporter = Reported {
                inner: Flaky(AtomicBool::new(false)),
                failing: AtomicBool::new(false),
            };
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async {
                exporter.export(Vec::new()).await.unwrap_err();
                exporter.export(Vec::new()).await.unwrap_err();
                exporter.inner.0.store(true, Ordering::Relaxed);
                exporter.export(Vec::new()).await.unwrap();
                exporter.export(Vec::new()).await.unwrap();
            });
        });
        assert_eq!(text.matches("trace export fails").count(), 1, "{text}");
        assert!(text.contains("no collector"), "{text}");
        assert_eq!(text.matches("works again").count(), 1, "{text}");
    }
}
