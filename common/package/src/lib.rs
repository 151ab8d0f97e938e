//! What storage and nodes agree on about packages of applications: where their
//! zips are, and what a zip has to be before anybody reads its directory
//! ([`zip`]).

pub mod zip;

/// Container of all packages of an account. Users cannot choose such a name.
pub const CONTAINER: &str = "$packages";
/// What `restype` says in a node's question about a package.
pub const RESTYPE: &str = "package";
