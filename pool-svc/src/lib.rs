//! Pools, nodes and the providers that make nodes.
