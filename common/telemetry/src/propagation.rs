//! W3C trace context between processes: `traceparent` and `tracestate`.

use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tonic::metadata::{MetadataKey, MetadataMap};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// Name of the header and of the metadata key.
pub const TRACEPARENT: &str = "traceparent";

/// Writes the current span's context into the metadata of an outgoing call.
pub fn inject(metadata: &mut MetadataMap) {
    let context = Span::current().context();
    TraceContextPropagator::new().inject_context(&context, &mut MetadataInjector(metadata));
}

/// Makes the sender's span the parent of `span`. Call before entering it.
pub fn continue_from_headers(span: &Span, headers: &http::HeaderMap) {
    let context = TraceContextPropagator::new().extract(&HeaderExtractor(headers));
    // Fails only if no exporter is set up; then there is no trace to continue.
    let _ = span.set_parent(context);
}

/// Makes the span named by a `traceparent` text the parent of `span`.
pub fn continue_from_text(span: &Span, traceparent: &str) {
    if traceparent.is_empty() {
        return;
    }
    let context = TraceContextPropagator::new().extract(&TextExtractor(traceparent));
    let _ = span.set_parent(context);
}

/// The current span's context as a `traceparent` text; empty if nothing is traced.
pub fn current_traceparent() -> String {
    traceparent_of(&Span::current())
}

/// The context of `span` as a `traceparent` text; empty if it is not traced.
pub fn traceparent_of(span: &Span) -> String {
    let mut text = TextInjector::default();
    TraceContextPropagator::new().inject_context(&span.context(), &mut text);
    text.0
}

struct MetadataInjector<'a>(&'a mut MetadataMap);

impl Injector for MetadataInjector<'_> {
    fn set(&mut self, key: &str, value: String) {
        if let (Ok(key), Ok(value)) = (MetadataKey::from_bytes(key.as_bytes()), value.parse()) {
            self.0.insert(key, value);
        }
    }
}

struct HeaderExtractor<'a>(&'a http::HeaderMap);

impl Extractor for HeaderExtractor<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).and_then(|value| value.to_str().ok())
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}

struct TextExtractor<'a>(&'a str);

impl Extractor for TextExtractor<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        (key == TRACEPARENT).then_some(self.0)
    }

    fn keys(&self) -> Vec<&str> {
        vec![TRACEPARENT]
    }
}

#[derive(Default)]
struct TextInjector(String);

impl Injector for TextInjector {
    fn set(&mut self, key: &str, value: String) {
        if key == TRACEPARENT {
            self.0 = value;
        }
    }
}
