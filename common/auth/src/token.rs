//! Signed bearer tokens: `kiln1.<claims>.<signature>`, both parts Base64 for
//! URLs, the claims JSON.
//!
//! | principal | signed with | who makes it |
//! |---|---|---|
//! | account | an account key | the user's client; `kiln-client` does |
//! | service | the cluster key | each service for its own calls |
//! | pool join | the cluster key | pool-svc, for machines that somebody lets join a pool; short-lived, for some uses |
//! | join | the cluster key | pool-svc, for one node that is about to start |
//! | node | the cluster key | pool-svc, when a node has registered; short-lived, for one life of its agent |
//! | job | the cluster key | job-svc, for a task that may work on its own job |

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

use crate::{SecretKey, constant_time_eq};

const PREFIX: &str = "kiln1.";
/// Tokens are small; anything longer is not one of ours.
const MAX_TOKEN_LEN: usize = 2048;
/// Clocks of two machines may differ by this many seconds.
const CLOCK_SKEW_SECONDS: i64 = 60;

/// On whose behalf a call is made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Principal {
    /// A user with an account key.
    Account {
        /// Account the key belongs to.
        account: String,
    },
    /// One of Kiln's services.
    Service {
        /// For example `gateway`.
        name: String,
    },
    /// A machine that may become a node of a pool.
    PoolJoin {
        /// Account that owns the pool.
        account: String,
        /// The pool.
        pool: String,
        /// Which of the pool's join tokens it is; the pool knows how often it may
        /// still be used.
        id: String,
    },
    /// A node that has not registered yet.
    Join {
        /// Account that owns the pool.
        account: String,
        /// Pool of the node.
        pool: String,
        /// The node.
        node: String,
        /// When the node's record was made, in microseconds since the Unix
        /// epoch: a later node of the same name is another one.
        #[serde(default)]
        made_micros: i64,
    },
    /// A registered node.
    Node {
        /// Account that owns the pool.
        account: String,
        /// Pool of the node.
        pool: String,
        /// The node.
        node: String,
        /// The life of its agent that registered.
        #[serde(default)]
        incarnation: String,
    },
    /// A task that may work on its own job.
    Job {
        /// Account that owns the job.
        account: String,
        /// The job.
        job: String,
        /// When that job was created, in microseconds since the Unix epoch: a
        /// later job of the same id is another one.
        created_micros: i64,
    },
}

/// What a token says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// On whose behalf.
    #[serde(flatten)]
    pub principal: Principal,
    /// Seconds since the Unix epoch after which the token is void.
    pub expires: i64,
}

/// Why a token is not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidToken {
    /// Not in the form of a token.
    #[error("the bearer token is malformed")]
    Malformed,
    /// No key that was tried signed it.
    #[error("the bearer token's signature is wrong")]
    WrongSignature,
    /// Too old.
    #[error("the bearer token has expired")]
    Expired,
}

/// Signs `claims`.
pub fn mint(key: &SecretKey, claims: &Claims) -> String {
    // Strings and numbers only: serialising cannot fail.
    #[allow(clippy::expect_used)]
    let json = serde_json::to_vec(claims).expect("claims are plain data");
    let body = format!("{PREFIX}{}", BASE64_URL_SAFE_NO_PAD.encode(json));
    let signature = BASE64_URL_SAFE_NO_PAD.encode(key.sign(body.as_bytes()));
    format!("{body}.{signature}")
}

/// What a token claims, without checking its signature: tells which account's
/// keys to check it with.
///
/// # Errors
/// [`InvalidToken::Malformed`] if it is not a token.
pub fn peek(token: &str) -> Result<Claims, InvalidToken> {
    let (body, _) = split(token)?;
    let json = BASE64_URL_SAFE_NO_PAD.decode(&body[PREFIX.len()..]).map_err(|_| InvalidToken::Malformed)?;
    serde_json::from_slice(&json).map_err(|_| InvalidToken::Malformed)
}

/// Checks signature and expiry.
///
/// # Errors
/// [`InvalidToken`] says which check failed.
pub fn verify<'k>(
    token: &str,
    keys: impl IntoIterator<Item = &'k SecretKey>,
    now_seconds: i64,
) -> Result<Claims, InvalidToken> {
    let (body, signature) = split(token)?;
    let claims = peek(token)?;
    let signed = keys.into_iter().any(|key| {
        let expected = BASE64_URL_SAFE_NO_PAD.encode(key.sign(body.as_bytes()));
        constant_time_eq(expected.as_bytes(), signature.as_bytes())
    });
    if !signed {
        return Err(InvalidToken::WrongSignature);
    }
    if claims.expires.saturating_add(CLOCK_SKEW_SECONDS) < now_seconds {
        return Err(InvalidToken::Expired);
    }
    Ok(claims)
}

fn split(token: &str) -> Result<(&str, &str), InvalidToken> {
    if token.len() > MAX_TOKEN_LEN || !token.starts_with(PREFIX) {
        return Err(InvalidToken::Malformed);
    }
    token.rsplit_once('.').filter(|(body, _)| body.len() > PREFIX.len()).ok_or(InvalidToken::Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claims(expires: i64) -> Claims {
        let (account, pool, node, incarnation) = ("a".into(), "p".into(), "n".into(), "i".into());
        Claims { principal: Principal::Node { account, pool, node, incarnation }, expires }
    }

    #[test]
    fn a_token_says_what_was_signed() {
        let key = SecretKey::generate();
        let token = mint(&key, &claims(1000));
        assert_eq!(verify(&token, [&SecretKey::generate(), &key], 1000), Ok(claims(1000)));
        assert_eq!(peek(&token), Ok(claims(1000)));
    }

    #[test]
    fn foreign_old_and_broken_tokens_are_refused() {
        let key = SecretKey::generate();
        let token = mint(&key, &claims(1000));
        assert_eq!(verify(&token, [&SecretKey::generate()], 1000), Err(InvalidToken::WrongSignature));
        assert_eq!(verify(&token, [&key], 1061), Err(InvalidToken::Expired));
        let other = mint(&key, &claims(2000));
        let spliced = format!("{}.{}", other.rsplit_once('.').unwrap().0, token.rsplit_once('.').unwrap().1);
        assert_eq!(verify(&spliced, [&key], 1000), Err(InvalidToken::WrongSignature));
        for text in ["", "kiln1.", "kiln1..", "kiln1.x", "Bearer", &"kiln1.".repeat(1000)] {
            assert_eq!(verify(text, [&key], 0), Err(InvalidToken::Malformed), "{text}");
        }
    }
}
