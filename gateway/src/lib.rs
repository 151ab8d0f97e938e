//! One front door: gRPC, Azure Batch REST, authentication.
