//! Properties of the blob service of an account, and what follows of them: preflights, and headers for scripts of
//! other origins.

use http::{HeaderMap, HeaderValue};
use serde::Deserialize;

use super::call::Call;
use super::input::Input;
use super::reply::Reply;
use super::xml::{self, Document};
use super::{Answer, DataPlane, Job};
use crate::domain::StorageError;
use crate::domain::cors::{CorsRule, Fit, PropertiesChange, ServiceProperties};

/// Bytes of the document at most.
const MAX_DOCUMENT: usize = 64 * 1024;
const ORIGIN: &str = "origin";
const METHOD: &str = "access-control-request-method";
const HEADERS: &str = "access-control-request-headers";

impl Job<'_> {
    pub(super) async fn get_service_properties(self) -> Answer {
        let found = self.plane.storage.catalogue().service_properties(&self.call.account.name).await?;
        Ok(Reply::xml(200, document(&found)))
    }

    pub(super) async fn set_service_properties(self, input: &mut Input) -> Answer {
        let change = parse(&input.document(MAX_DOCUMENT).await?)?;
        self.plane.storage.catalogue().change_service_properties(&self.call.account.name, change).await?;
        Ok(Reply::new(202))
    }
}

impl DataPlane {
    /// Answers a browser that asks whether it may send a request. Nobody has to be known for that.
    pub(super) async fn preflight(&self, call: &Call) -> Answer {
        let origin = call.header(ORIGIN).ok_or(StorageError::MissingRequiredHeader("Origin"))?;
        let method = call.header(METHOD).ok_or(StorageError::MissingRequiredHeader("Access-Control-Request-Method"))?;
        let asked = call.header(HEADERS).unwrap_or_default();
        let headers: Vec<&str> = asked.split(',').map(str::trim).filter(|name| !name.is_empty()).collect();
        let properties = self.storage.catalogue().service_properties(&call.account.name).await?;
        let fit = properties.preflight(origin, method, &headers).ok_or(StorageError::CorsPreflightFailure)?;
        let mut reply = Reply::new(200)
            .header("access-control-allow-methods", method)
            .header_if("access-control-allow-headers", asked)
            .header("access-control-max-age", fit.rule.max_age_seconds.to_string());
        for (name, value) in origin_headers(&fit, origin) {
            reply = reply.header(name, value);
        }
        Ok(reply)
    }

    /// What goes on the answer of a request that a script of another origin sent.
    pub(super) async fn cors_headers(&self, call: &Call) -> Result<HeaderMap, StorageError> {
        let mut headers = HeaderMap::new();
        let Some(origin) = call.header(ORIGIN) else { return Ok(headers) };
        let properties = self.storage.catalogue().service_properties(&call.account.name).await?;
        if properties.cors.is_empty() {
            return Ok(headers);
        }
        // Caches have to tell origins apart, also those that no rule allows.
        headers.insert("vary", HeaderValue::from_static("Origin"));
        if let Some(fit) = properties.actual(origin, call.method.as_str()) {
            if fit.any_origin {
                headers.remove("vary");
            }
            let exposed = fit.rule.exposed_headers.join(",");
            let exposed = (!exposed.is_empty()).then_some(("access-control-expose-headers", exposed.as_str()));
            for (name, value) in origin_headers(&fit, origin).into_iter().chain(exposed) {
                if let Ok(value) = HeaderValue::from_str(value) {
                    headers.insert(name, value);
                }
            }
        }
        Ok(headers)
    }
}

fn origin_headers<'a>(fit: &Fit<'_>, origin: &'a str) -> Vec<(&'static str, &'a str)> {
    if fit.any_origin {
        return vec![("access-control-allow-origin", "*")];
    }
    vec![("access-control-allow-origin", origin), ("access-control-allow-credentials", "true"), ("vary", "Origin")]
}

/// What cannot be switched on here says that it is off.
fn document(properties: &ServiceProperties) -> String {
    const OFF: &str = "<Enabled>false</Enabled><RetentionPolicy><Enabled>false</Enabled></RetentionPolicy>";
    let mut document = Document::new();
    document.raw("<StorageServiceProperties><Logging><Version>1.0</Version><Delete>false</Delete><Read>false</Read>");
    document.raw("<Write>false</Write><RetentionPolicy><Enabled>false</Enabled></RetentionPolicy></Logging>");
    document.raw(&format!("<HourMetrics><Version>1.0</Version>{OFF}</HourMetrics>"));
    document.raw(&format!("<MinuteMetrics><Version>1.0</Version>{OFF}</MinuteMetrics><Cors>"));
    for rule in &properties.cors {
        document.raw("<CorsRule>");
        document.element("AllowedOrigins", &rule.origins.join(","));
        document.element("AllowedMethods", &rule.methods.join(","));
        document.element("MaxAgeInSeconds", &rule.max_age_seconds.to_string());
        document.element("ExposedHeaders", &rule.exposed_headers.join(","));
        document.element("AllowedHeaders", &rule.allowed_headers.join(","));
        document.raw("</CorsRule>");
    }
    document.raw("</Cors>");
    document.element_if("DefaultServiceVersion", properties.default_version.as_deref().unwrap_or_default());
    document.raw("<DeleteRetentionPolicy><Enabled>false</Enabled></DeleteRetentionPolicy>");
    document.raw("<StaticWebsite><Enabled>false</Enabled></StaticWebsite></StorageServiceProperties>");
    document.finish()
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct PropertiesDocument {
    logging: Option<Switches>,
    hour_metrics: Option<Switches>,
    minute_metrics: Option<Switches>,
    cors: Option<CorsDocument>,
    default_service_version: Option<String>,
    delete_retention_policy: Option<Switches>,
    static_website: Option<Switches>,
}

/// Whatever switches something on, wherever it stands.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Switches {
    enabled: String,
    delete: String,
    read: String,
    write: String,
}

#[derive(Debug, Deserialize)]
struct CorsDocument {
    #[serde(rename = "CorsRule", default)]
    rules: Vec<RuleDocument>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RuleDocument {
    allowed_origins: String,
    allowed_methods: String,
    max_age_in_seconds: String,
    #[serde(default)]
    exposed_headers: String,
    #[serde(default)]
    allowed_headers: String,
}

/// Body of Set Blob Service Properties.
///
/// # Errors
/// No such document, or it switches on what there is not.
fn parse(body: &[u8]) -> Result<PropertiesChange, StorageError> {
    let document: PropertiesDocument = xml::parse(body, "StorageServiceProperties")?;
    for (name, switches) in [
        ("Logging", &document.logging),
        ("HourMetrics", &document.hour_metrics),
        ("MinuteMetrics", &document.minute_metrics),
        ("DeleteRetentionPolicy", &document.delete_retention_policy),
        ("StaticWebsite", &document.static_website),
    ] {
        let on = |text: &String| text.trim().eq_ignore_ascii_case("true");
        if switches.as_ref().is_some_and(|s| [&s.enabled, &s.delete, &s.read, &s.write].into_iter().any(on)) {
            return Err(StorageError::UnsupportedXmlNode(name));
        }
    }
    let rules = |cors: CorsDocument| cors.rules.into_iter().map(rule).collect::<Result<Vec<_>, _>>();
    Ok(PropertiesChange {
        cors: document.cors.map(rules).transpose()?,
        default_version: document.default_service_version.map(|text| text.trim().to_owned()).filter(|t| !t.is_empty()),
    })
}

fn rule(document: RuleDocument) -> Result<CorsRule, StorageError> {
    let list = |text: &str| -> Vec<String> {
        text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect()
    };
    let max_age_seconds = document.max_age_in_seconds.trim().parse().map_err(|_| {
        StorageError::InvalidXmlNodeValue { node: "MaxAgeInSeconds", value: document.max_age_in_seconds.clone() }
    })?;
    Ok(CorsRule {
        origins: list(&document.allowed_origins),
        methods: list(&document.allowed_methods),
        allowed_headers: list(&document.allowed_headers),
        exposed_headers: list(&document.exposed_headers),
        max_age_seconds,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: &str = "<CorsRule><AllowedOrigins>https://a.org, *</AllowedOrigins><AllowedMethods>GET,PUT</AllowedMethods>\
        <MaxAgeInSeconds>5</MaxAgeInSeconds><ExposedHeaders/><AllowedHeaders>x-ms-*</AllowedHeaders></CorsRule>";

    fn change(inner: &str) -> Result<PropertiesChange, StorageError> {
        parse(format!("<?xml version=\"1.0\"?><StorageServiceProperties>{inner}</StorageServiceProperties>").as_bytes())
    }

    #[test]
    fn documents_come_back_as_they_were() {
        let mut properties = ServiceProperties::default();
        let inner = format!("<Cors>{RULE}</Cors><DefaultServiceVersion>2019-02-02</DefaultServiceVersion>");
        properties.change(change(&inner).unwrap()).unwrap();
        assert_eq!(properties.cors[0].origins, ["https://a.org", "*"]);
        assert_eq!(properties.cors[0].exposed_headers, Vec::<String>::new());
        let mut again = ServiceProperties::default();
        again.change(parse(document(&properties).as_bytes()).unwrap()).unwrap();
        assert_eq!(again, properties);
        assert_eq!(change("").unwrap(), PropertiesChange::default());
        assert_eq!(change("<Cors/>").unwrap().cors, Some(Vec::new()));
    }

    #[test]
    fn what_there_is_not_is_refused_by_name() {
        for (inner, code, named) in [
            ("<Logging><Version>1.0</Version><Read>true</Read></Logging>", "UnsupportedXmlNode", "Logging"),
            ("<HourMetrics><Enabled>true</Enabled></HourMetrics>", "UnsupportedXmlNode", "HourMetrics"),
            ("<MinuteMetrics><Enabled>True</Enabled></MinuteMetrics>", "UnsupportedXmlNode", "MinuteMetrics"),
            (
                "<DeleteRetentionPolicy><Enabled>true</Enabled><Days>7</Days></DeleteRetentionPolicy>",
                "UnsupportedXmlNode",
                "DeleteRetentionPolicy",
            ),
            ("<StaticWebsite><Enabled>true</Enabled></StaticWebsite>", "UnsupportedXmlNode", "StaticWebsite"),
            ("<Telepathy/>", "InvalidXmlDocument", "Telepathy"),
            ("<Cors><CorsRule/></Cors>", "InvalidXmlDocument", "AllowedOrigins"),
            (&format!("<Cors>{}</Cors>", RULE.replace('5', "soon")), "InvalidXmlNodeValue", "MaxAgeInSeconds"),
        ] {
            let error = change(inner).unwrap_err();
            assert_eq!(error.code(), code, "{inner}");
            assert!(error.to_string().contains(named), "{inner}: {error}");
        }
        assert_eq!(parse(b"hello").unwrap_err().code(), "InvalidXmlDocument");
    }
}
