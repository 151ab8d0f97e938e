//! Reading objects in pieces.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path as StorePath;
use object_store::{GetOptions, GetRange, GetResultPayload, ObjectStore};

use super::blocking;
use super::sealing::{self, Opener};
use crate::domain::range::Span;

/// Bytes read from a file at once: few enough calls, little memory per reader.
const CHUNK: u64 = 512 * 1024;

pub(super) fn read(
    store: Arc<dyn ObjectStore>,
    path: StorePath,
    span: Span,
    opener: Option<Opener>,
) -> BoxStream<'static, io::Result<Bytes>> {
    if span.length == 0 {
        return stream::empty().boxed();
    }
    match opener {
        None => stored(store, path, span, true),
        Some(opener) => sealing::open(stored(store, path, sealing::sealed_span(span), false), opener, span),
    }
}

/// The bytes as they are stored. If not `all` of them must be there, the end of
/// the object may come first.
fn stored(
    store: Arc<dyn ObjectStore>,
    path: StorePath,
    span: Span,
    all: bool,
) -> BoxStream<'static, io::Result<Bytes>> {
    stream::once(async move {
        let range = GetRange::Bounded(span.start..span.start + span.length);
        let options = GetOptions { range: Some(range), ..GetOptions::default() };
        let found = store.get_opts(&path, options).await.map_err(io::Error::other)?;
        let there = Span { start: span.start, length: found.range.end.saturating_sub(span.start) };
        let span = if all { span } else { there };
        Ok::<_, io::Error>(match found.payload {
            GetResultPayload::File(file, _) => pieces(file, span),
            GetResultPayload::Stream(stream) => exactly(stream.map_err(io::Error::other).boxed(), span.length),
        })
    })
    .try_flatten()
    .boxed()
}

/// Reads a file piece by piece on the blocking pool.
fn pieces(file: File, span: Span) -> BoxStream<'static, io::Result<Bytes>> {
    let end = span.start + span.length;
    stream::try_unfold((Arc::new(file), span.start), move |(file, at)| async move {
        if at >= end {
            return Ok(None);
        }
        let length = CHUNK.min(end - at);
        let source = file.clone();
        let piece = blocking(move || {
            let mut buffer = vec![0; usize::try_from(length).map_err(io::Error::other)?];
            source.read_exact_at(&mut buffer, at)?;
            Ok(Bytes::from(buffer))
        })
        .await?;
        Ok(Some((piece, (file, at + length))))
    })
    .boxed()
}

/// Fails if the stream ends before `length` bytes.
fn exactly(inner: BoxStream<'static, io::Result<Bytes>>, length: u64) -> BoxStream<'static, io::Result<Bytes>> {
    stream::try_unfold((inner, length), |(mut inner, left)| async move {
        match inner.try_next().await? {
            Some(piece) => {
                let left = left.saturating_sub(piece.len() as u64);
                Ok(Some((piece, (inner, left))))
            }
            None if left > 0 => Err(io::ErrorKind::UnexpectedEof.into()),
            None => Ok(None),
        }
    })
    .boxed()
}
