//! Conditions on the version of a record, as requests carry them.

use kiln_etag::{Conditions, EtagSet};
use kiln_proto::common::v1::Precondition;
use kiln_time::Timestamp;

/// The conditions of a request; none if it has none.
pub fn conditions(given: Option<&Precondition>) -> Conditions {
    let Some(given) = given else { return Conditions::default() };
    let etags = |text: &str| (!text.is_empty()).then(|| EtagSet::parse(text));
    let time = |stamp: &prost_types::Timestamp| Timestamp::from_micros(kiln_proto::time::micros(stamp));
    Conditions {
        if_match: etags(&given.if_match),
        if_none_match: etags(&given.if_none_match),
        if_modified_since: given.if_modified_since.as_ref().map(time),
        if_unmodified_since: given.if_unmodified_since.as_ref().map(time),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_given_is_no_condition() {
        assert_eq!(conditions(None), Conditions::default());
        assert_eq!(conditions(Some(&Precondition::default())), Conditions::default());
        let given = Precondition {
            if_match: "*".to_owned(),
            if_none_match: "\"0x8D1\"".to_owned(),
            if_modified_since: Some(prost_types::Timestamp { seconds: 1, nanos: 0 }),
            if_unmodified_since: None,
        };
        let expected = Conditions {
            if_match: Some(EtagSet::Any),
            if_none_match: Some(EtagSet::These(vec!["0x8D1".to_owned()])),
            if_modified_since: Some(Timestamp::from_micros(1_000_000)),
            if_unmodified_since: None,
        };
        assert_eq!(conditions(Some(&given)), expected);
    }
}
