//! Settings that Kiln keeps for the client and gives back unchanged.
//!
//! [`remainder`] takes out of a request what the contracts have no field for;
//! it travels as `client_settings_json`. [`merge`] puts it into the answer
//! again, without secrets.

use serde_json::{Map, Value};

/// Properties that are kept whole, wherever they occur.
const KEPT: [&str; 15] = [
    "virtualMachineConfiguration",
    "cloudServiceConfiguration",
    "networkConfiguration",
    "mountConfiguration",
    "identity",
    "upgradePolicy",
    "certificateReferences",
    "applicationLicenses",
    "targetNodeCommunicationMode",
    "resourceTags",
    "registry",
    "containerHostBatchBindMounts",
    "identityReference",
    "linuxUserConfiguration",
    "windowsUserConfiguration",
];

/// Parts that keep their own: they travel with their own
/// `client_settings_json`.
const APART: [&str; 2] = ["pool", "jobSpecification"];

/// Properties that never go out again.
const SECRET: [&str; 6] = ["password", "accountKey", "sasKey", "protectedSettings", "sshPrivateKey", "secretKey"];

/// What of `request` is kept, as JSON text; empty if nothing is. `answer` is
/// the request as the contracts understood it, written in the same form.
pub fn remainder(request: &Value, answer: &Value) -> String {
    rest(request, answer).map_or_else(String::new, |value| value.to_string())
}

fn rest(request: &Value, answer: &Value) -> Option<Value> {
    match (request, answer) {
        (Value::Object(request), Value::Object(answer)) => {
            let mut kept = Map::new();
            for (name, value) in request {
                if value.is_null() || APART.contains(&name.as_str()) {
                    continue;
                }
                if KEPT.contains(&name.as_str()) {
                    kept.insert(name.clone(), value.clone());
                } else if let Some(inner) = answer.get(name).and_then(|known| rest(value, known)) {
                    kept.insert(name.clone(), inner);
                }
            }
            (!kept.is_empty()).then_some(Value::Object(kept))
        }
        (Value::Array(request), Value::Array(answer)) if request.len() == answer.len() => {
            let parts: Vec<Option<Value>> = request.iter().zip(answer).map(|(a, b)| rest(a, b)).collect();
            parts
                .iter()
                .any(Option::is_some)
                .then(|| Value::Array(parts.into_iter().map(Option::unwrap_or_default).collect()))
        }
        _ => None,
    }
}

/// Puts kept settings into an answer; what the answer says already stands.
pub fn merge(answer: &mut Value, client_settings_json: &str) {
    if client_settings_json.is_empty() {
        return;
    }
    // Written by us; if a gRPC client wrote something else, it is not shown.
    if let Ok(kept) = serde_json::from_str(client_settings_json) {
        put_back(answer, kept);
    }
}

fn put_back(answer: &mut Value, kept: Value) {
    match (answer, kept) {
        (Value::Object(answer), Value::Object(kept)) => {
            for (name, mut value) in kept {
                match answer.get_mut(&name) {
                    Some(known) => put_back(known, value),
                    None if KEPT.contains(&name.as_str()) => {
                        remove_secrets(&mut value);
                        answer.insert(name, value);
                    }
                    // The part it belonged to has been replaced since.
                    None => {}
                }
            }
        }
        (Value::Array(answer), Value::Array(kept)) if answer.len() == kept.len() => {
            for (known, value) in answer.iter_mut().zip(kept) {
                put_back(known, value);
            }
        }
        _ => {}
    }
}

fn remove_secrets(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|name, _| !SECRET.contains(&name.as_str()));
            map.values_mut().for_each(remove_secrets);
        }
        Value::Array(values) => values.iter_mut().for_each(remove_secrets),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn unmodelled_settings_come_back_without_secrets() {
        let request = json!({
            "id": "p", "unknownKey": 1, "networkConfiguration": {"subnetId": "s"},
            "startTask": {"commandLine": "x", "containerSettings": {"imageName": "i",
                "registry": {"username": "u", "password": "geheim"}}},
            "resourceFiles": [{"httpUrl": "a"}, {"httpUrl": "b", "identityReference": {"resourceId": "r"}}],
        });
        let answer = json!({
            "id": "p", "startTask": {"commandLine": "x", "containerSettings": {"imageName": "i"}},
            "resourceFiles": [{"httpUrl": "a"}, {"httpUrl": "b"}],
        });
        let kept = remainder(&request, &answer);
        let mut back = answer;
        merge(&mut back, &kept);
        assert_eq!(
            back,
            json!({
                "id": "p",
                "startTask": {"commandLine": "x",
                    "containerSettings": {"imageName": "i", "registry": {"username": "u"}}},
                "resourceFiles": [{"httpUrl": "a"}, {"httpUrl": "b", "identityReference": {"resourceId": "r"}}],
                "networkConfiguration": {"subnetId": "s"},
            })
        );
    }

    #[test]
    fn settings_of_replaced_parts_stay_away() {
        let kept = json!({"startTask": {"containerSettings": {"registry": {"username": "u"}}}}).to_string();
        let mut answer = json!({"startTask": {"commandLine": "new"}});
        merge(&mut answer, &kept);
        assert_eq!(answer, json!({"startTask": {"commandLine": "new"}}));
        merge(&mut answer, "not json");
    }

    #[test]
    fn nothing_special_keeps_nothing() {
        assert_eq!(remainder(&json!({"id": "t", "commandLine": "x"}), &json!({"id": "t", "commandLine": "x"})), "");
    }
}
