//! Turns a trace of system calls into a fixture.

use anyhow::{Context as _, Result};
use serde::Deserialize;

use super::fixture::{Fixture, from_hex};

/// One line of the trace: a send.
#[derive(Debug, Deserialize)]
struct Send {
    /// What the caller offered.
    iov: Vec<String>,
    /// How much of it the kernel took, or an error.
    ret: i64,
}

/// A fixture from a trace with one JSON object for each send of a client.
///
/// # Errors
/// The trace isn't one, or its bytes are not HTTP/2.
pub fn convert(trace: &str, encoder: String) -> Result<Fixture> {
    let mut chunks = Vec::new();
    for (number, line) in (1..).zip(trace.lines()) {
        let chunk = sent(line).with_context(|| format!("line {number}"))?;
        // A send that failed, or sent nothing, put nothing on the wire.
        if !chunk.is_empty() {
            chunks.push(chunk);
        }
    }
    Fixture::of_client(encoder, &chunks)
}

/// The bytes that a send really sent.
fn sent(line: &str) -> Result<Vec<u8>> {
    let send: Send = serde_json::from_str(line)?;
    let mut bytes = from_hex(&send.iov.concat())?;
    let length = usize::try_from(send.ret.max(0))?;
    let rest = bytes.len().checked_sub(length);
    rest.context("more was sent than offered")?;
    bytes.truncate(length);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_sent_counts() {
        let bytes = |line| sent(line).unwrap();
        assert_eq!(bytes(r#"{"iov":["0102","03"],"ret":3}"#), [1, 2, 3]);
        assert_eq!(bytes(r#"{"iov":["0102","03"],"ret":2}"#), [1, 2]);
        assert_eq!(bytes(r#"{"iov":["0102"],"ret":-11}"#), [0; 0]);
        assert!(sent(r#"{"iov":["01"],"ret":2}"#).is_err());
    }
}
