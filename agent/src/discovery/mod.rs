//! Finding the source replicas of this node.
//!
//! What lives is told by the node (`/proc`), always. Whose it is, is told by its environment, and, with `--discover kube`, by the pod
//! that the API server has for its cgroup.

pub mod cgroup;
pub mod identity;
pub mod kube;
pub mod merge;
pub mod proc;
