//! Containers, blobs and shared access signatures.
