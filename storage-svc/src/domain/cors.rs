//! Properties of an account's blob service: rules for scripts of other origins (CORS), and the version that
//! requests are taken to mean which name none.
//!
//! The first rule that fits decides. A preflight fits if origin, method and all headers are allowed; any other
//! request if origin and method are. Origins are compared letter by letter, headers without case; `*` stands for
//! all, and at the end of a header for all that begin so (Set Blob Service Properties; the CORS chapter of the
//! Blob service).

use serde::{Deserialize, Serialize};

use super::StorageError;
use super::sas::is_version;

/// Rules of one account.
pub const MAX_RULES: usize = 5;
/// Origins of one rule.
const MAX_ORIGINS: usize = 64;
/// Letters of an origin or header.
const MAX_LENGTH: usize = 256;
/// Headers of one list of a rule.
const MAX_HEADERS: usize = 66;
const METHODS: &[&str] = &["DELETE", "GET", "HEAD", "MERGE", "PATCH", "POST", "OPTIONS", "PUT"];
const ANY: &str = "*";

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ServiceProperties {
    /// In the order in which they are looked at.
    pub cors: Vec<CorsRule>,
    /// Version of requests that name none.
    pub default_version: Option<String>,
}

/// What changes in them; what is absent stays.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PropertiesChange {
    /// Replaces all rules.
    pub cors: Option<Vec<CorsRule>>,
    /// Replaces the version.
    pub default_version: Option<String>,
}

/// What scripts of some origins may do.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CorsRule {
    /// `https://example.org`, or `*`.
    pub origins: Vec<String>,
    /// In capitals.
    pub methods: Vec<String>,
    /// That a request may have beside the simple ones.
    pub allowed_headers: Vec<String>,
    /// That a script may see of an answer.
    pub exposed_headers: Vec<String>,
    /// How long a browser may remember the answer to a preflight.
    pub max_age_seconds: u32,
}

/// What a rule allows to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fit<'r> {
    /// The rule.
    pub rule: &'r CorsRule,
    /// Any origin may, so that it matters not which it is.
    pub any_origin: bool,
}

impl ServiceProperties {
    /// Checks and makes a change.
    ///
    /// # Errors
    /// Too many rules, or a rule that cannot be kept.
    pub fn change(&mut self, change: PropertiesChange) -> Result<(), StorageError> {
        if let Some(rules) = change.cors {
            if rules.len() > MAX_RULES {
                return Err(StorageError::InvalidXmlDocument(format!("at most {MAX_RULES} rules are allowed in Cors")));
            }
            rules.iter().try_for_each(CorsRule::check)?;
            self.cors = rules;
        }
        if let Some(version) = change.default_version {
            if !is_version(&version) {
                return Err(StorageError::InvalidXmlNodeValue { node: "DefaultServiceVersion", value: version });
            }
            self.default_version = Some(version);
        }
        Ok(())
    }

    /// The rule that lets a browser send `method` with `headers`.
    pub fn preflight(&self, origin: &str, method: &str, headers: &[&str]) -> Option<Fit<'_>> {
        self.fit(origin, method, |rule| headers.iter().all(|header| rule.allows_header(header)))
    }

    /// The rule that lets a script see the answer to a request.
    pub fn actual(&self, origin: &str, method: &str) -> Option<Fit<'_>> {
        self.fit(origin, method, |_| true)
    }

    fn fit(&self, origin: &str, method: &str, more: impl Fn(&CorsRule) -> bool) -> Option<Fit<'_>> {
        let allows = |rule: &&CorsRule| {
            rule.origins.iter().any(|known| known == ANY || known == origin)
                && rule.methods.iter().any(|known| known == method)
                && more(rule)
        };
        let rule = self.cors.iter().find(allows)?;
        Some(Fit { rule, any_origin: rule.origins.iter().any(|known| known == ANY) })
    }
}

impl CorsRule {
    fn allows_header(&self, header: &str) -> bool {
        let header = header.to_ascii_lowercase();
        self.allowed_headers.iter().map(|known| known.to_ascii_lowercase()).any(|known| match known.strip_suffix('*') {
            Some(start) => header.starts_with(start),
            None => known == header,
        })
    }

    fn check(&self) -> Result<(), StorageError> {
        let wrong = |node, values: &[String]| Err(StorageError::InvalidXmlNodeValue { node, value: values.join(",") });
        let too_long = |values: &[String]| values.iter().any(|value| value.is_empty() || value.len() > MAX_LENGTH);
        // They become headers of answers.
        let odd = |values: &[String]| values.iter().any(|value| !value.bytes().all(|byte| byte.is_ascii_graphic()));
        if self.origins.is_empty() || self.origins.len() > MAX_ORIGINS || too_long(&self.origins) || odd(&self.origins)
        {
            return wrong("AllowedOrigins", &self.origins);
        }
        if self.methods.is_empty() || self.methods.iter().any(|method| !METHODS.contains(&method.as_str())) {
            return wrong("AllowedMethods", &self.methods);
        }
        for (node, headers) in [("AllowedHeaders", &self.allowed_headers), ("ExposedHeaders", &self.exposed_headers)] {
            if headers.len() > MAX_HEADERS || too_long(headers) || odd(headers) {
                return wrong(node, headers);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(list: &str) -> Vec<String> {
        list.split(',').filter(|text| !text.is_empty()).map(str::to_owned).collect()
    }

    fn rule(origins: &str, methods: &str, headers: &str, max_age_seconds: u32) -> CorsRule {
        CorsRule {
            origins: texts(origins),
            methods: texts(methods),
            allowed_headers: texts(headers),
            exposed_headers: Vec::new(),
            max_age_seconds,
        }
    }

    #[test]
    fn the_first_rule_that_fits_decides() {
        let properties = ServiceProperties {
            cors: vec![
                rule("https://a.org,https://b.org", "GET", "x-ms-meta-k*,x-ms-date", 1),
                rule("https://a.org", "PUT", "*", 2),
                rule("*", "GET,HEAD", "", 3),
            ],
            default_version: None,
        };
        let found = |fit: Option<Fit<'_>>| fit.map(|fit| (fit.rule.max_age_seconds, fit.any_origin));
        // (origin, method, headers, rule of the preflight, rule of the request)
        for (origin, method, headers, preflight, actual) in [
            ("https://a.org", "GET", &[][..], Some((1, false)), Some((1, false))),
            (
                "https://b.org",
                "GET",
                &["X-MS-Date", "x-ms-meta-key", "x-ms-meta-k"],
                Some((1, false)),
                Some((1, false)),
            ),
            ("https://b.org", "GET", &["x-ms-meta-other"], None, Some((1, false))),
            ("https://b.org", "GET", &["x-ms-date2"], None, Some((1, false))),
            ("https://A.org", "GET", &[], Some((3, true)), Some((3, true))),
            ("https://a.org", "PUT", &["anything"], Some((2, false)), Some((2, false))),
            ("https://b.org", "PUT", &[], None, None),
            ("https://c.org", "HEAD", &[], Some((3, true)), Some((3, true))),
            ("https://c.org", "HEAD", &["x-ms-date"], None, Some((3, true))),
            ("https://c.org", "DELETE", &[], None, None),
        ] {
            assert_eq!(
                found(properties.preflight(origin, method, headers)),
                preflight,
                "{origin} {method} {headers:?}"
            );
            assert_eq!(found(properties.actual(origin, method)), actual, "{origin} {method}");
        }
        assert_eq!(ServiceProperties::default().actual("https://a.org", "GET"), None);
    }

    #[test]
    fn changes_replace_what_they_name() {
        let mut properties = ServiceProperties::default();
        let rules = vec![rule("*", "GET", "", 0)];
        let cors = |cors: Vec<CorsRule>| PropertiesChange { cors: Some(cors), default_version: None };
        let version = |text: &str| PropertiesChange { cors: None, default_version: Some(text.to_owned()) };
        properties.change(cors(rules.clone())).unwrap();
        properties.change(version("2019-02-02")).unwrap();
        properties.change(PropertiesChange::default()).unwrap();
        let kept = ServiceProperties { cors: rules.clone(), default_version: Some("2019-02-02".into()) };
        assert_eq!(properties, kept);
        for (change, code) in [
            (version("new"), "InvalidXmlNodeValue"),
            (cors(vec![rules[0].clone(); 6]), "InvalidXmlDocument"),
            (cors(vec![rule("", "GET", "", 0)]), "InvalidXmlNodeValue"),
            (cors(vec![rule("*", "", "", 0)]), "InvalidXmlNodeValue"),
            (cors(vec![rule("*", "GET,STEAL", "", 0)]), "InvalidXmlNodeValue"),
            (cors(vec![rule("a\nb", "GET", "", 0)]), "InvalidXmlNodeValue"),
            (cors(vec![rule("*", "GET", &"a".repeat(257), 0)]), "InvalidXmlNodeValue"),
            (cors(vec![rule(&"a,".repeat(65), "GET", "", 0)]), "InvalidXmlNodeValue"),
        ] {
            assert_eq!(properties.change(change.clone()).unwrap_err().code(), code, "{change:?}");
            assert_eq!(properties, kept);
        }
        properties.change(cors(Vec::new())).unwrap();
        assert_eq!(properties.cors, []);
    }
}
