//! The format of a recording: one JSON object, see tests/fixtures/README.md.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};

use super::http2::{self, Request};

/// What one end of a connection sent, and what it means.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fixture {
    /// Whose encoder made the bytes, and its version.
    pub encoder: String,
    /// Which end sent them; only `client` so far.
    pub direction: String,
    /// The bytes in hex, in the pieces in which they were sent.
    pub chunks: Vec<String>,
    /// Each request's stream and path, in order.
    pub requests: Vec<(u32, String)>,
}

impl Fixture {
    /// A recording of a client; its requests are decoded here.
    ///
    /// # Errors
    /// The bytes aren't HTTP/2.
    pub fn of_client(encoder: String, chunks: &[Vec<u8>]) -> Result<Self> {
        let requests = http2::requests(&chunks.concat())?;
        Ok(Self {
            encoder,
            direction: "client".to_owned(),
            chunks: chunks.iter().map(|chunk| to_hex(chunk)).collect(),
            requests: requests.iter().map(stream_and_path).collect(),
        })
    }

    /// Reads a recording.
    ///
    /// # Errors
    /// The file isn't one.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        serde_json::from_str(&text).with_context(|| path.display().to_string())
    }

    /// Writes the recording with one piece and one request a line, so that a change can be read.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let mut text = String::from("{\n");
        writeln!(
            text,
            "\"encoder\": {},",
            serde_json::to_string(&self.encoder)?
        )?;
        writeln!(
            text,
            "\"direction\": {},",
            serde_json::to_string(&self.direction)?
        )?;
        writeln!(text, "\"chunks\": {},", lines(&self.chunks)?)?;
        writeln!(text, "\"requests\": {}", lines(&self.requests)?)?;
        text.push_str("}\n");
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory)?;
        }
        std::fs::write(path, text).with_context(|| path.display().to_string())
    }

    /// The bytes, in their pieces.
    ///
    /// # Errors
    /// A piece isn't hex.
    pub fn bytes(&self) -> Result<Vec<Vec<u8>>> {
        self.chunks.iter().map(|chunk| from_hex(chunk)).collect()
    }

    /// How many requests have this path.
    #[must_use]
    pub fn count(&self, path: &str) -> u64 {
        let same = self.requests.iter().filter(|(_, found)| found == path);
        same.count() as u64
    }
}

fn stream_and_path(request: &Request) -> (u32, String) {
    let path = request.field(":path").unwrap_or_default();
    (request.stream, path.to_owned())
}

/// A JSON array with one element a line.
fn lines<T: Serialize>(elements: &[T]) -> Result<String, serde_json::Error> {
    let lines: Result<Vec<String>, _> = elements.iter().map(serde_json::to_string).collect();
    Ok(format!("[\n{}\n]", lines?.join(",\n")))
}

/// Bytes as lower-case hex digits.
#[must_use]
pub fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut hex, byte| {
        // Writing to a string can't fail.
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

/// The bytes that hex digits stand for.
///
/// # Errors
/// Something else is there, or half a byte.
pub fn from_hex(hex: &str) -> Result<Vec<u8>> {
    let digits: Option<Vec<u8>> = hex
        .chars()
        .map(|digit| digit.to_digit(16)?.try_into().ok())
        .collect();
    let digits = digits.context("not hex")?;
    let (pairs, odd) = digits.as_chunks::<2>();
    ensure!(odd.is_empty(), "half a byte");
    Ok(pairs.iter().map(|[high, low]| high << 4 | low).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hex_is_read_as_written() {
        let bytes: Vec<u8> = (0..=255).collect();
        assert_eq!(from_hex(&to_hex(&bytes)).unwrap(), bytes);
        assert!(from_hex("0").is_err());
        assert!(from_hex("0g").is_err());
    }

    #[test]
    fn a_fixture_is_read_as_written() {
        let fixture = Fixture {
            encoder: "test \"1\"".to_owned(),
            direction: "client".to_owned(),
            chunks: vec!["00".to_owned(), "ff01".to_owned()],
            requests: vec![(1, "/x".to_owned())],
        };
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("new/fixture.json");
        fixture.write(&path).unwrap();
        assert_eq!(Fixture::read(&path).unwrap(), fixture);
    }
}
