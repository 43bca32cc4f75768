//! Enforcement, as far as it happens in user space.
//!
//! | module | what it does |
//! |---|---|
//! | [`gate`] | puts the gate before connections: when it is safe, and why not otherwise |
//! | [`peer`] | finds the source's end of a connection, across network namespaces |

pub mod gate;
pub mod peer;
