//! Signatures for others.

use kiln_error::Error;
use kiln_proto::storage::v1 as proto;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::convert;
use crate::domain::model::Account;
use crate::domain::names;
use crate::domain::sas::{self, NewSas};

/// Signatures of one call.
pub const MAX_BATCH: usize = 10_000;
/// What stays as it is in the path of a URL.
const PATH: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~').remove(b'/');

/// Signs with the account's first key. `endpoint` is the public one of the data plane.
pub fn create(
    account: &Account,
    endpoint: &str,
    wanted: &proto::CreateSasRequest,
) -> Result<proto::CreateSasResponse, Error> {
    names::check_container(&wanted.container)?;
    let blob = (!wanted.blob.is_empty()).then_some(wanted.blob.as_str());
    if let Some(blob) = blob {
        names::check_blob(blob)?;
    }
    let expires = wanted.expires.as_ref().ok_or_else(|| Error::missing_property("expires"))?;
    let new = NewSas {
        account: &account.name,
        container: &wanted.container,
        blob,
        permissions: &wanted.permissions,
        starts: wanted.starts.as_ref().map(convert::instant),
        expires: convert::instant(expires),
    };
    let sas = sas::create(&new, &account.keys[0])?;
    let mut url = format!("{endpoint}/{}/{}", account.name, wanted.container);
    if let Some(blob) = blob {
        url.push('/');
        url.extend(utf8_percent_encode(blob, PATH));
    }
    url.push('?');
    url.push_str(&sas);
    Ok(proto::CreateSasResponse { sas, url })
}

/// All of them, or which is the first that is wrong.
pub fn create_batch(
    account: &Account,
    endpoint: &str,
    wanted: &[proto::CreateSasRequest],
) -> Result<Vec<proto::CreateSasResponse>, Error> {
    if wanted.is_empty() || wanted.len() > MAX_BATCH {
        return Err(Error::invalid_property("requests", wanted.len(), format!("must be 1 to {MAX_BATCH}")));
    }
    let numbered = wanted.iter().enumerate();
    numbered
        .map(|(at, request)| {
            create(account, endpoint, request).map_err(|error| error.with_detail("request", at.to_string()))
        })
        .collect()
}
