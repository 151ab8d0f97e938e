//! Who calls: `SharedKey` as clients of the dialect sign, or our bearer tokens,
//! of accounts and of tasks.

use http::header::AUTHORIZATION;
use http::request::Parts;
use kiln_error::Error;
use kiln_time::Timestamp;

use crate::accounts::{Accounts, Caller};
use crate::domain::shared_key::{self, Signed, failed};

/// The account, or the task, whose key or token the request carries.
///
/// # Errors
/// `AuthenticationFailed`, `InvalidAuthenticationInfo`.
pub async fn authenticate(accounts: &Accounts, parts: &Parts, now: Timestamp) -> Result<Caller, Error> {
    let authorization =
        parts.headers.get(AUTHORIZATION).ok_or_else(|| failed("an Authorization header is required"))?;
    let authorization = authorization.to_str().unwrap_or_default();
    if let Some(token) = authorization.strip_prefix("Bearer ") {
        return accounts.authenticate_bearer(token.trim(), now.as_micros() / 1_000_000).await;
    }
    let (name, signature) = shared_key::parse(authorization)?;
    let account = accounts.get(name).await?.ok_or_else(|| failed("the account does not exist"))?;
    let signed = Signed {
        method: parts.method.as_str(),
        path: parts.uri.path(),
        query: parts.uri.query().unwrap_or_default(),
        headers: &parts.headers,
    };
    shared_key::verify(signed, name, signature, &account.keys(), now)?;
    Ok(Caller { account, job: None })
}
