//! Setting up logs and span export, once per process.

use std::io::IsTerminal;

use anyhow::Context;
use opentelemetry::trace::TracerProvider;
use opentelemetry_otlp::WithExportConfig;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// For people at a terminal.
    #[default]
    Plain,
    /// One JSON object a line, for log collectors.
    Json,
}

/// What [`init`] sets up.
#[derive(Debug, Clone)]
pub struct Options {
    /// `service.name` of exported spans.
    pub service: &'static str,
    /// Form of the log lines.
    pub format: LogFormat,
    /// Filter if `KILN_LOG` is not set, for example `info`.
    pub default_filter: &'static str,
    /// OTLP/gRPC endpoint; usually [`Options::otlp_from_env`].
    pub otlp_endpoint: Option<String>,
}

impl Options {
    /// The endpoint in `OTEL_EXPORTER_OTLP_ENDPOINT`, if there is one.
    pub fn otlp_from_env() -> Option<String> {
        std::env::var("OTEL_EXPORTER_OTLP_ENDPOINT").ok().filter(|text| !text.trim().is_empty())
    }
}

/// Flushes spans when the process ends.
#[derive(Debug, Default)]
pub struct Guard {
    provider: Option<SdkTracerProvider>,
}

impl Guard {
    /// Sends what is left and stops the export. Blocks; call it at the end of
    /// `main`, outside the runtime's worker threads.
    pub fn shutdown(mut self) {
        if let Some(provider) = self.provider.take()
            && let Err(error) = provider.shutdown()
        {
            tracing::warn!(%error, "the last spans could not be exported");
        }
    }
}

/// Sets up logs and traces of the process. Must run inside a tokio runtime when
/// spans are exported.
///
/// # Errors
/// When the filter or the endpoint is not valid, or a subscriber is set already.
pub fn init(options: Options) -> anyhow::Result<Guard> {
    opentelemetry::global::set_text_map_propagator(TraceContextPropagator::new());
    let filter = match std::env::var("KILN_LOG") {
        Ok(text) => EnvFilter::try_new(&text).with_context(|| format!("KILN_LOG={text:?} is not a log filter"))?,
        Err(_) => EnvFilter::try_new(options.default_filter)?,
    };
    let lines =
        tracing_subscriber::fmt::layer().with_ansi(std::io::stderr().is_terminal()).with_writer(std::io::stderr);
    let lines = match options.format {
        LogFormat::Plain => lines.with_target(false).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).with_current_span(true).with_span_list(false).boxed(),
    };
    let provider = options.otlp_endpoint.map(|endpoint| exporter(options.service, &endpoint)).transpose()?;
    let spans = provider.as_ref().map(|provider| {
        // The exporter speaks gRPC itself; its own spans must not be exported.
        let export_filter = EnvFilter::new("info,h2=off,hyper=off,hyper_util=off,tonic=off,tower=off");
        tracing_opentelemetry::layer().with_tracer(provider.tracer("kiln")).with_filter(export_filter)
    });
    tracing_subscriber::registry()
        .with(spans)
        .with(lines.with_filter(filter))
        .try_init()
        .context("logs are set up already")?;
    Ok(Guard { provider })
}

fn exporter(service: &'static str, endpoint: &str) -> anyhow::Result<SdkTracerProvider> {
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_tonic()
        .with_endpoint(endpoint)
        .build()
        .with_context(|| format!("OTEL_EXPORTER_OTLP_ENDPOINT={endpoint:?}"))?;
    Ok(SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_resource(Resource::builder().with_service_name(service).build())
        .build())
}
