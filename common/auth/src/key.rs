//! Secret keys: account keys and the cluster key.

use std::fmt;

use base64::Engine;
use base64::alphabet::{STANDARD, URL_SAFE};
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use subtle::ConstantTimeEq;

/// Keys arrive from configuration files and environment variables with and
/// without padding, in either alphabet.
const LENIENT: GeneralPurposeConfig =
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);

/// Bytes of a new key, as many as an Azure account key has.
const NEW_KEY_BYTES: usize = 64;

/// A secret that signs with HMAC-SHA-256.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretKey(Vec<u8>);

/// Why a text is not a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidKey {
    /// Neither the standard nor the URL-safe alphabet decodes it.
    #[error("the key is not Base64")]
    NotBase64,
    /// A short key could be guessed.
    #[error("the key has {0} bytes; at least 16 are needed")]
    TooShort(usize),
}

impl SecretKey {
    /// A new random key.
    pub fn generate() -> Self {
        let mut bytes = vec![0; NEW_KEY_BYTES];
        rand::fill(&mut bytes[..]);
        Self(bytes)
    }

    /// From Base64 in either alphabet, padding optional.
    ///
    /// # Errors
    /// [`InvalidKey`] if the text does not decode or is too short to be a secret.
    pub fn from_base64(text: &str) -> Result<Self, InvalidKey> {
        let text = text.trim();
        let bytes = GeneralPurpose::new(&STANDARD, LENIENT)
            .decode(text)
            .or_else(|_| GeneralPurpose::new(&URL_SAFE, LENIENT).decode(text))
            .map_err(|_| InvalidKey::NotBase64)?;
        if bytes.len() < 16 {
            return Err(InvalidKey::TooShort(bytes.len()));
        }
        Ok(Self(bytes))
    }

    /// Base64 with padding, as clients expect keys.
    pub fn to_base64(&self) -> String {
        base64::prelude::BASE64_STANDARD.encode(&self.0)
    }

    /// HMAC-SHA-256 of `message`.
    pub fn sign(&self, message: &[u8]) -> [u8; 32] {
        // HMAC takes keys of any length, so this cannot fail.
        #[allow(clippy::expect_used)]
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).expect("HMAC takes any key length");
        mac.update(message);
        mac.finalize().into_bytes().into()
    }

    /// [`SecretKey::sign`] in Base64.
    pub fn sign_base64(&self, message: &[u8]) -> String {
        base64::prelude::BASE64_STANDARD.encode(self.sign(message))
    }

    /// Whether `signature` (Base64) is this key's for `message`; takes the same
    /// time wherever the two differ.
    pub fn verify_base64(&self, message: &[u8], signature: &str) -> bool {
        constant_time_eq(self.sign_base64(message).as_bytes(), signature.as_bytes())
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretKey(redacted)")
    }
}

/// Compares without telling by its duration where the two differ.
pub fn constant_time_eq(a: &[u8], b: &[u8]) -> bool {
    a.ct_eq(b).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_survive_base64_and_do_not_print() {
        let key = SecretKey::generate();
        assert_eq!(SecretKey::from_base64(&key.to_base64()).unwrap(), key);
        assert_eq!(SecretKey::from_base64(key.to_base64().trim_end_matches('=')).unwrap(), key);
        assert_eq!(format!("{key:?}"), "SecretKey(redacted)");
        assert_eq!(SecretKey::from_base64("!!"), Err(InvalidKey::NotBase64));
        assert_eq!(SecretKey::from_base64("AAAA"), Err(InvalidKey::TooShort(3)));
    }

    #[test]
    fn signatures_verify_only_with_the_same_key_and_message() {
        let key = SecretKey::generate();
        let signature = key.sign_base64(b"message");
        assert!(key.verify_base64(b"message", &signature));
        assert!(!key.verify_base64(b"massage", &signature));
        assert!(!SecretKey::generate().verify_base64(b"message", &signature));
    }
}
