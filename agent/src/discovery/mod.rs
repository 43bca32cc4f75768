//! Finding the source replicas of this node.

pub mod identity;
pub mod proc;
