//! HTTP/2 (RFC 9113) and HPACK (RFC 7541), as far as one must follow them to know which gRPC method each
//! request of a connection calls.
//!
//! | module | what it does |
//! |---|---|
//! | [`frame`] | frame types, flags, and which frame headers a client may send |
//! | [`walk`] | the streaming state machine: [`walk::step`] passes one token of the byte stream |
//! | [`track`] | one *send* of a connection: begins, joins, ends, and what is kept of it |
//! | [`bulk`] | DATA frames of a server, several in a receive, passed together |
//! | [`edit`] | the same walk for an enforcer: it overwrites the path of a call that is rejected |
//! | [`journal`] | what an enforcer has overwritten in a send that may be sent in part |
//! | [`paths`] | the watched paths, as a table that compares one byte of a string with all of them at once |
//! | [`substitute`] | what a watched path is overwritten with |
//! | [`quiet`] | the other way to reject a call: it becomes one of IsReady, and the answer one without a result |
//! | [`status`] | the gRPC status in a server's stream, as another such table |
//! | [`learn`] | what the server's answers tell of an index whose entry was inserted before anybody watched |
//! | [`pending`] | the count in a PendingResponse |
//! | [`huffman`] | the HPACK Huffman code (to build that table) |
//!
//! # What it knows of HPACK
//! There is no table of strings. Every insertion into the client's dynamic table has a number; an index
//! `i >= 62` names insertion `inserted - 1 - (i - 62)` (RFC 7541 §2.3.3). For each of the last
//! [`walk::RING`] insertions one byte says what it was: no path, a path that isn't watched, which
//! watched path, or a field whose name can't be known. Eviction needs no bookkeeping: a correct encoder never refers to an evicted entry.
//! A connection that was joined late has the count 0, and what an index beyond it means is unknown, until it has been learned ([`learn`]).
//!
//! # What it never does
//! It never guesses. What can't be followed ends in [`walk::Outcome::Fault`] with a [`walk::Fault`], or in the class
//! [`walk::UNRESOLVED`].

pub mod bulk;
pub mod edit;
pub mod frame;
pub mod huffman;
pub mod journal;
pub mod learn;
pub mod paths;
pub mod pending;
pub mod quiet;
pub mod status;
pub mod substitute;
pub mod track;
pub mod walk;
