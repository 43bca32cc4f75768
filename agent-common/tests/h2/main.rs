//! Tests of the HTTP/2 and HPACK tracker on the host.

#[path = "../reference/mod.rs"]
mod reference;

mod bulk;
mod captures;
mod edits;
mod late;
mod malformed;
mod paths;
mod properties;
mod quiet;
mod rfc7541;
