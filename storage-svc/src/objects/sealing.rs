//! Encryption at rest: AES-256-GCM by ring, which is here for TLS already.
//!
//! [`Keyring`] has the keys of the key file. The first is for what is written
//! from now on, the others open what was written before. The name of an object
//! ends with the id of its key, so nothing else has to be remembered about it.
//!
//! An object is cut into chunks of [`CHUNK`] bytes, each sealed by itself, so
//! that a range needs no more than its own chunks. No object shares its key with
//! another: it follows from the key of the file and the object's name, which is
//! never used twice (HKDF with SHA-256, RFC 5869). A chunk's nonce is its number,
//! so a chunk in another place, or in another object, does not open. How many
//! chunks there must be follows from the length in the catalogue: an object that
//! lacks some at its end is an error for its reader.
//!
//! Small blobs are one sealed piece in the catalogue, under a key that follows
//! from a random salt before it.

use std::collections::BTreeMap;
use std::fmt;
use std::io;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::{Bytes, BytesMut};
use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hkdf;
use ring::rand::{SecureRandom, SystemRandom};

use crate::domain::model::{ObjectKey, SealedBytes};
use crate::domain::range::Span;

/// Plain bytes of one chunk: a range of a few bytes costs little, and the tags
/// are a four-thousandth of an object.
pub const CHUNK: u64 = 64 * 1024;
/// What sealing adds to a chunk.
const TAG: u64 = 16;
/// Random bytes before a small blob.
const SALT: usize = 16;
const _: () = assert!(SALT as u64 + TAG == SealedBytes::ADDED);
/// Characters of a key's id.
const MAX_ID: usize = 32;
/// Keys of one file.
const MAX_KEYS: usize = 100;

/// The keys of a key file. `Debug` shows their ids alone.
pub struct Keyring {
    current: String,
    keys: BTreeMap<String, hkdf::Prk>,
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keyring({}; {})", self.current, self.ids().collect::<Vec<_>>().join(" "))
    }
}

impl Keyring {
    /// Reads a key file: lines of an id (`a-z 0-9 -`) and 32 bytes in Base64.
    /// The first is for new bytes. Empty lines and those with `#` are skipped.
    ///
    /// # Errors
    /// What is wrong with which line; never the key.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (mut current, mut keys) = (None, BTreeMap::new());
        for (number, line) in text.lines().enumerate() {
            let (line, number) = (line.trim(), number + 1);
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (id, key) = line
                .split_once(char::is_whitespace)
                .ok_or_else(|| format!("line {number} must be an id, a space and 32 bytes in Base64"))?;
            let good = id.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
            if !good || id.len() > MAX_ID {
                return Err(format!("line {number}: an id is at most {MAX_ID} of a-z 0-9 -"));
            }
            let key = BASE64_STANDARD
                .decode(key.trim())
                .ok()
                .filter(|key| key.len() == 32)
                .ok_or_else(|| format!("line {number}: the key {id} is not 32 bytes in Base64"))?;
            let key = hkdf::Salt::new(hkdf::HKDF_SHA256, b"kiln storage").extract(&key);
            if keys.insert(id.to_owned(), key).is_some() {
                return Err(format!("line {number}: the id {id} is there twice"));
            }
            if keys.len() > MAX_KEYS {
                return Err(format!("there are more than {MAX_KEYS} keys"));
            }
            current.get_or_insert_with(|| id.to_owned());
        }
        let current = current.ok_or("there is no key in it")?;
        Ok(Self { current, keys })
    }

    /// Id of the key for new bytes.
    pub fn current(&self) -> &str {
        &self.current
    }

    /// Ids of all keys.
    pub fn ids(&self) -> impl Iterator<Item = &str> {
        self.keys.keys().map(String::as_str)
    }

    /// Tells keys of one id apart without giving them away.
    ///
    /// # Errors
    /// There is no key of this id.
    pub fn proof(&self, id: &str) -> io::Result<String> {
        let mut proof = [0; 32];
        let parts = [b"proof".as_slice()];
        self.key(id)?.expand(&parts, hkdf::HKDF_SHA256).and_then(|okm| okm.fill(&mut proof)).map_err(not_derived)?;
        Ok(BASE64_STANDARD.encode(proof))
    }

    fn key(&self, id: &str) -> io::Result<&hkdf::Prk> {
        self.keys.get(id).ok_or_else(|| {
            let ids = self.ids().collect::<Vec<_>>().join(", ");
            io::Error::other(format!("the bytes are encrypted with the key {id:?}, but the key file has only {ids}"))
        })
    }

    fn derive(&self, id: &str, purpose: &[u8], name: &[u8]) -> io::Result<LessSafeKey> {
        let parts = [purpose, name];
        let key = self.key(id)?.expand(&parts, &AES_256_GCM).map_err(not_derived)?;
        Ok(LessSafeKey::new(UnboundKey::from(key)))
    }

    /// Seals a new object, whose name ends with the id of the current key.
    pub(super) fn sealer(&self, object: &ObjectKey) -> io::Result<Sealer> {
        let key = self.derive(&self.current, b"object ", object.0.as_bytes())?;
        Ok(Sealer { key, next: 0, pending: BytesMut::new() })
    }

    /// Opens an object that was sealed with the key `id`.
    pub(super) fn opener(&self, id: &str, object: &ObjectKey) -> io::Result<Opener> {
        Ok(Opener { key: self.derive(id, b"object ", object.0.as_bytes())?, object: object.clone() })
    }

    /// Seals a small blob.
    ///
    /// # Errors
    /// The system has no random bytes.
    pub fn seal_small(&self, plain: &[u8]) -> io::Result<SealedBytes> {
        let mut salt = [0; SALT];
        SystemRandom::new().fill(&mut salt).map_err(|_| io::Error::other("no random bytes"))?;
        let key = self.derive(&self.current, b"small ", &salt)?;
        let mut bytes = BytesMut::with_capacity(SALT + plain.len() + TAG as usize);
        bytes.extend_from_slice(&salt);
        bytes.extend_from_slice(plain);
        let tag =
            key.seal_in_place_separate_tag(nonce(0), Aad::empty(), &mut bytes[SALT..]).map_err(|_| not_sealed())?;
        bytes.extend_from_slice(tag.as_ref());
        Ok(SealedBytes { key: self.current.clone(), bytes: bytes.freeze() })
    }

    /// Opens a small blob.
    ///
    /// # Errors
    /// The key is not there or another one, or the bytes were changed.
    pub fn open_small(&self, sealed: &SealedBytes) -> io::Result<Bytes> {
        let broken = || not_opened(&format!("a small blob, key {}", sealed.key));
        let (salt, rest) = sealed.bytes.split_at_checked(SALT).ok_or_else(broken)?;
        let key = self.derive(&sealed.key, b"small ", salt)?;
        let mut rest = rest.to_vec();
        let length = key.open_in_place(nonce(0), Aad::empty(), &mut rest).map_err(|_| broken())?.len();
        rest.truncate(length);
        Ok(Bytes::from(rest))
    }
}

fn not_derived(_: ring::error::Unspecified) -> io::Error {
    io::Error::other("a key cannot be derived")
}

fn not_sealed() -> io::Error {
    io::Error::other("bytes cannot be encrypted")
}

fn not_opened(what: &str) -> io::Error {
    let why = "the bytes were changed, or the key of this id is not the one they were encrypted with";
    io::Error::new(io::ErrorKind::InvalidData, format!("{what} cannot be decrypted: {why}"))
}

fn nonce(number: u64) -> Nonce {
    let mut bytes = [0; NONCE_LEN];
    bytes[NONCE_LEN - 8..].copy_from_slice(&number.to_be_bytes());
    Nonce::assume_unique_for_key(bytes)
}

/// Seals one object from its first byte to its last.
#[derive(Debug)]
pub(super) struct Sealer {
    key: LessSafeKey,
    next: u64,
    /// Less than a chunk.
    pending: BytesMut,
}

impl Sealer {
    /// Takes plain bytes; gives the chunks that are complete, sealed.
    pub(super) fn seal(&mut self, mut plain: &[u8]) -> io::Result<Bytes> {
        let chunk = CHUNK as usize;
        let chunks = (self.pending.len() + plain.len()) / chunk;
        let mut out = BytesMut::with_capacity(chunks * (chunk + TAG as usize));
        while self.pending.len() + plain.len() >= chunk {
            let (now, later) = plain.split_at(chunk - self.pending.len());
            let start = out.len();
            out.extend_from_slice(&self.pending);
            out.extend_from_slice(now);
            self.pending.clear();
            self.close(&mut out, start)?;
            plain = later;
        }
        self.pending.extend_from_slice(plain);
        Ok(out.freeze())
    }

    /// The last chunk, if it is not empty.
    pub(super) fn finish(mut self) -> io::Result<Bytes> {
        let mut last = std::mem::take(&mut self.pending);
        if !last.is_empty() {
            self.close(&mut last, 0)?;
        }
        Ok(last.freeze())
    }

    fn close(&mut self, bytes: &mut BytesMut, start: usize) -> io::Result<()> {
        let sealed = self.key.seal_in_place_separate_tag(nonce(self.next), Aad::empty(), &mut bytes[start..]);
        bytes.extend_from_slice(sealed.map_err(|_| not_sealed())?.as_ref());
        self.next += 1;
        Ok(())
    }
}

/// Opens chunks of one object.
#[derive(Debug)]
pub(super) struct Opener {
    key: LessSafeKey,
    object: ObjectKey,
}

/// Where the chunks of `span`, which is not empty, are in the sealed object.
/// The last one may be shorter there.
pub(super) fn sealed_span(span: Span) -> Span {
    let (first, last) = (span.start / CHUNK, (span.start + span.length - 1) / CHUNK);
    Span { start: first * (CHUNK + TAG), length: (last - first + 1) * (CHUNK + TAG) }
}

struct Opening {
    inner: BoxStream<'static, io::Result<Bytes>>,
    opener: Opener,
    pending: BytesMut,
    /// Number of the next chunk.
    next: u64,
    /// What is still wanted of the plain bytes.
    wanted: Span,
}

/// Opens the bytes of [`sealed_span`] and cuts `span` out of them.
pub(super) fn open(
    inner: BoxStream<'static, io::Result<Bytes>>,
    opener: Opener,
    span: Span,
) -> BoxStream<'static, io::Result<Bytes>> {
    let opening = Opening { inner, opener, pending: BytesMut::new(), next: span.start / CHUNK, wanted: span };
    stream::try_unfold(opening, |mut opening| async move {
        while opening.wanted.length > 0 {
            let sealed = (CHUNK + TAG) as usize;
            let ended = match opening.inner.try_next().await? {
                Some(piece) => {
                    opening.pending.extend_from_slice(&piece);
                    false
                }
                None => true,
            };
            let mut out = BytesMut::new();
            while opening.pending.len() >= sealed || (ended && !opening.pending.is_empty()) {
                let chunk = opening.pending.split_to(sealed.min(opening.pending.len()));
                opening.take(chunk, &mut out)?;
            }
            if !out.is_empty() {
                return Ok(Some((out.freeze(), opening)));
            }
            if ended {
                let why =
                    format!("{} bytes are missing at the end of {}", opening.wanted.length, opening.opener.object.0);
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, why));
            }
        }
        Ok(None)
    })
    .boxed()
}

impl Opening {
    fn take(&mut self, mut chunk: BytesMut, out: &mut BytesMut) -> io::Result<()> {
        let number = self.next;
        self.next += 1;
        let plain = self
            .opener
            .key
            .open_in_place(nonce(number), Aad::empty(), &mut chunk)
            .map_err(|_| not_opened(&format!("chunk {number} of {}", self.opener.object.0)))?;
        let skip = (self.wanted.start - number * CHUNK).min(plain.len() as u64);
        let length = (plain.len() as u64 - skip).min(self.wanted.length);
        out.extend_from_slice(&plain[skip as usize..(skip + length) as usize]);
        self.wanted = Span { start: self.wanted.start + length, length: self.wanted.length - length };
        Ok(())
    }
}
