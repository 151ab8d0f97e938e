//! Who sends a request: shared keys, signatures in the URL, tokens of nodes,
//! nobody.

use kiln_auth::token::{self, Principal};
use kiln_time::Timestamp;

use super::DataPlane;
use super::call::{Call, Place};
use crate::domain::StorageError;
use crate::domain::access::{Allowed, Grant, Operation};
use crate::domain::model::{Account, PublicAccess};
use crate::domain::query::Query;
use crate::domain::sas::{Circumstances, Sas};
use crate::domain::shared_key::{self, SignedRequest};
use crate::service::remote;

/// A signed request may be this old or this early.
const CLOCK_SKEW: std::time::Duration = std::time::Duration::from_secs(15 * 60);
/// Older clients are told that a private thing does not exist.
const ASKS_FOR_CREDENTIALS_SINCE: &str = "2019-12-12";

impl DataPlane {
    /// Finds out who sends a request and whether they may.
    ///
    /// # Errors
    /// 401, 403 or 404, as Azure answers each case.
    pub async fn authorize(&self, call: &Call) -> Result<(Grant, Allowed), StorageError> {
        let grant = self.authenticate(call).await?;
        let mut public = PublicAccess::Private;
        if grant == Grant::Anonymous && !call.container.is_empty() {
            match self.storage.catalogue().container(&call.account.name, &call.container).await {
                Ok(container) => public = container.public_access,
                // Whether it exists is nobody's business.
                Err(StorageError::ContainerNotFound) => {}
                Err(error) => return Err(error),
            }
        }
        match grant.check(call.operation, public) {
            Ok(allowed) => Ok((grant, allowed)),
            Err(StorageError::NoAuthenticationInformation)
                if call
                    .header("x-ms-version")
                    .or(call.default_version.as_deref())
                    .is_none_or(|version| version < ASKS_FOR_CREDENTIALS_SINCE) =>
            {
                Err(StorageError::ResourceNotFound)
            }
            Err(error) => Err(error),
        }
    }

    async fn authenticate(&self, call: &Call) -> Result<Grant, StorageError> {
        if let Some(value) = call.headers.get(http::header::AUTHORIZATION) {
            let value = value.to_str().map_err(|_| failed("The Authorization header is malformed"))?;
            return match value.strip_prefix("Bearer ") {
                Some(bearer) => self.check_bearer(call, bearer),
                None => check_shared_key(call, value),
            };
        }
        match Sas::from_query(&call.query)? {
            Some(sas) => self.check_sas(call, &call.account, &call.container, &call.blob, sas).await.map(Grant::Sas),
            None => Ok(Grant::Anonymous),
        }
    }

    /// Checks a token of the query against a container and a blob.
    async fn check_sas(
        &self,
        call: &Call,
        account: &Account,
        container: &str,
        blob: &str,
        sas: Sas,
    ) -> Result<crate::domain::sas::SasGrant, StorageError> {
        sas.verify(&account.keys, &account.name, container, blob)?;
        let mut policy = None;
        if !sas.si.is_empty() && !sas.is_account() {
            match self.storage.catalogue().container(&account.name, container).await {
                Ok(found) => policy = found.policies.into_iter().find(|policy| policy.id == sas.si),
                Err(StorageError::ContainerNotFound) => {}
                Err(error) => return Err(error),
            }
        }
        let https = self.scheme() == "https";
        let circumstances = Circumstances { now: Timestamp::now(), peer: call.peer, https };
        sas.grant(policy.as_ref(), &circumstances)
    }

    /// Whether a blob of this service may be read as the source of a copy: by the key of the account, which the caller
    /// has shown, by a signature in the source's own URL, or by anybody.
    ///
    /// # Errors
    /// [`StorageError::CannotVerifyCopySource`].
    pub async fn authorize_source(
        &self,
        call: &Call,
        grant: &Grant,
        account: &Account,
        place: &Place,
        query: &Query,
    ) -> Result<(), StorageError> {
        if *grant == Grant::Owner && account.name == call.account.name {
            return Ok(());
        }
        let refused = |_| remote::unreadable(403, "its signature does not allow to read it");
        let shown = match Sas::from_query(query).map_err(refused)? {
            Some(sas) => {
                let found = self.check_sas(call, account, &place.container, &place.blob, sas).await;
                Grant::Sas(found.map_err(refused)?)
            }
            None => Grant::Anonymous,
        };
        let public = match self.storage.catalogue().container(&account.name, &place.container).await {
            Ok(container) => container.public_access,
            // Whether it exists is nobody's business.
            Err(StorageError::ContainerNotFound) => PublicAccess::Private,
            Err(error) => return Err(error),
        };
        match shown.check(Operation::GetBlob, public) {
            Ok(_) => Ok(()),
            Err(_) if shown == Grant::Anonymous => Err(remote::unreadable(403, "its URL needs a signature")),
            Err(error) => Err(refused(error)),
        }
    }

    fn check_bearer(&self, call: &Call, bearer: &str) -> Result<Grant, StorageError> {
        let invalid = |error: token::InvalidToken| failed(&error.to_string());
        let now = Timestamp::now().as_micros() / 1_000_000;
        let same = |account: &str| account.eq_ignore_ascii_case(&call.account.name);
        let claims = token::peek(bearer).map_err(invalid)?;
        match &claims.principal {
            Principal::Node { account, .. } if same(account) => {
                token::verify(bearer, [&*self.cluster_key], now).map_err(invalid)?;
                Ok(Grant::Node)
            }
            Principal::Account { account } if same(account) => {
                token::verify(bearer, &call.account.keys, now).map_err(invalid)?;
                Ok(Grant::Owner)
            }
            _ => Err(failed("The bearer token is not for this account")),
        }
    }
}

fn check_shared_key(call: &Call, authorization: &str) -> Result<Grant, StorageError> {
    let (scheme, account, signature) = shared_key::parse_authorization(authorization)
        .ok_or_else(|| failed("The Authorization header is neither SharedKey, SharedKeyLite nor Bearer"))?;
    if !account.eq_ignore_ascii_case(&call.account.name) {
        return Err(failed("The account of the signature is not the account of the URL"));
    }
    let request = SignedRequest {
        method: call.method.as_str(),
        account,
        path: &call.path,
        query: &call.query,
        headers: &call.headers,
    };
    if !shared_key::verify(scheme, &request, &call.account.keys, signature) {
        let forms = shared_key::string_forms(scheme, &request);
        let shown = forms.first().map(String::as_str).unwrap_or_default();
        return Err(failed(&format!("The MAC signature does not match. Server used this string to sign: {shown:?}")));
    }
    // After the signature, so that only key holders learn about the clock.
    let date = call.header("x-ms-date").or_else(|| call.header("date"));
    let date = date.ok_or_else(|| failed("Neither x-ms-date nor Date is given"))?;
    let date = Timestamp::parse_http_date(date).map_err(|_| failed("The date is malformed"))?;
    let now = Timestamp::now();
    if now.since(date).max(date.since(now)) > CLOCK_SKEW {
        return Err(failed("Request date header too old or too early"));
    }
    Ok(Grant::Owner)
}

fn failed(detail: &str) -> StorageError {
    StorageError::AuthenticationFailed(detail.to_owned())
}
