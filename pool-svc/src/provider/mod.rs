//! What makes nodes.
//!
//! A [`Provider`] is level-triggered: it says what is there, and makes or takes
//! away nodes by name. Each call may be repeated; nothing depends on what the
//! provider remembers, so a restarted service goes on where it was.

pub mod local;

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use kiln_node::JoinConfig;
use tokio::sync::Notify;

use crate::domain::{NodeName, PoolName};

/// Something of a node's name that exists at the provider.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedNode {
    /// Its name, in lower case.
    pub name: NodeName,
    /// Its agent lives (or is about to).
    pub alive: bool,
}

/// A node that has to be made.
#[derive(Debug, Clone)]
pub struct NodePlan {
    /// Its name.
    pub name: NodeName,
    /// Size of the machine, in the provider's words.
    pub vm_size: String,
    /// What its agent has to know; the provider sets the directory.
    pub join: JoinConfig,
}

/// Why the provider did not do it.
#[derive(Debug, thiserror::Error)]
pub enum ProviderError {
    /// Trying again does not help.
    #[error("{0}")]
    Refused(String),
    /// It may work later.
    #[error("{what}: {source}")]
    Failed {
        /// What was tried.
        what: String,
        /// What went wrong.
        source: std::io::Error,
    },
}

/// Makes and takes away nodes.
#[async_trait]
pub trait Provider: fmt::Debug + Send + Sync + 'static {
    /// What exists, of one pool or of all.
    async fn observe(&self, pool: Option<&PoolName>) -> Result<Vec<ObservedNode>, ProviderError>;

    /// Makes a node, or starts the agent of one that exists. A node whose agent
    /// lives is left alone.
    async fn create(&self, plan: &NodePlan) -> Result<(), ProviderError>;

    /// Begins to take a node away: its agent is told to stop, killed if it does
    /// not within the provider's grace, and everything of it is removed. Answers
    /// at once; the node is gone when [`Provider::observe`] does not show it.
    async fn delete(&self, name: &NodeName) -> Result<(), ProviderError>;

    /// Stops all agents and waits, bounded, until they have; nodes stay.
    async fn stop_all(&self);

    /// Wakes whoever waits when something may have changed.
    fn changed(&self) -> Arc<Notify>;
}
