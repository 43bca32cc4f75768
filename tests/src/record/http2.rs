//! Reads one direction of an HTTP/2 connection, from its preface, completely: the ground truth of the fixtures.
//!
//! Frames as in RFC 9113 §4 and §6, header blocks by a decoder that keeps the whole dynamic table. Nothing is
//! skipped or guessed: whatever isn't as the RFC says is an error.

use std::collections::BTreeSet;

use fluke_hpack::Decoder;
use fluke_hpack::decoder::DecoderError;

use crate::frames::{CONTINUATION, DATA, END_HEADERS, HEADERS, PADDED, PRIORITY};

/// RFC 9113 §3.4.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// RFC 9113 §4.1.
const FRAME_HEADER: usize = 9;

/// A request that a client started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Its stream.
    pub stream: u32,
    /// Its header fields, in order.
    pub fields: Vec<(String, String)>,
}

impl Request {
    /// The value of a field.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<&str> {
        let (_, value) = self.fields.iter().find(|(field, _)| field == name)?;
        Some(value)
    }
}

/// Bytes that are not one direction of an HTTP/2 connection.
#[derive(Debug, thiserror::Error)]
pub enum Malformed {
    /// The first bytes are something else.
    #[error("no connection preface")]
    Preface,
    /// The last frame isn't complete.
    #[error("the bytes end inside a frame that begins at {0}")]
    Truncated(usize),
    /// Something other than the CONTINUATION that had to come, or one that had not (RFC 9113 §6.10).
    #[error("frame of type {kind} on stream {stream} where a header block goes on, or none does")]
    Continuation {
        /// The frame's type.
        kind: u8,
        /// Its stream.
        stream: u32,
    },
    /// Padding or priority fields that don't fit (RFC 9113 §6.2).
    #[error("the frame at {0} is shorter than its padding")]
    Padding(usize),
    /// A header block that HPACK can't explain.
    #[error("header block on stream {stream}: {error:?}")]
    Hpack {
        /// The stream.
        stream: u32,
        /// Why.
        error: DecoderError,
    },
    /// A stream number that a client must not use (RFC 9113 §5.1.1).
    #[error("stream {0} is not a new stream of a client")]
    Stream(u32),
    /// A header block without `:path`: a client of gRPC never sends trailers.
    #[error("no :path on stream {0}")]
    Path(u32),
    /// DATA before HEADERS.
    #[error("DATA on stream {0}, which has no request")]
    Data(u32),
}

/// The requests in the bytes that a client sent, in order.
///
/// # Errors
/// The bytes aren't what a client may send, or end inside a frame.
pub fn requests(bytes: &[u8]) -> Result<Vec<Request>, Malformed> {
    let mut rest = bytes.strip_prefix(PREFACE).ok_or(Malformed::Preface)?;
    let mut decoder = Decoder::new();
    let mut requests = Vec::new();
    let mut streams = BTreeSet::new();
    // A header block that goes on, and its stream.
    let mut open: Option<(u32, Vec<u8>)> = None;
    while !rest.is_empty() {
        let at = bytes.len() - rest.len();
        let frame = Frame::parse(rest).ok_or(Malformed::Truncated(at))?;
        rest = frame.rest;
        let block = match (open.take(), frame.kind) {
            (Some((stream, mut block)), CONTINUATION) if stream == frame.stream => {
                block.extend_from_slice(frame.payload);
                block
            }
            (None, HEADERS) => frame.fragment().ok_or(Malformed::Padding(at))?.to_vec(),
            (None, DATA) if !streams.contains(&frame.stream) => {
                return Err(Malformed::Data(frame.stream));
            }
            (None, kind) if kind != CONTINUATION => continue,
            (_, kind) => {
                return Err(Malformed::Continuation {
                    kind,
                    stream: frame.stream,
                });
            }
        };
        let stream = frame.stream;
        if frame.flags & END_HEADERS == 0 {
            open = Some((stream, block));
            continue;
        }
        let fields = decoder
            .decode(&block)
            .map_err(|error| Malformed::Hpack { stream, error })?;
        let newest = streams.last().copied().unwrap_or(0);
        if stream % 2 == 0 || stream <= newest {
            return Err(Malformed::Stream(stream));
        }
        streams.insert(stream);
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        let request = Request {
            stream,
            fields: fields
                .into_iter()
                .map(|(name, value)| (text(name), text(value)))
                .collect(),
        };
        if request.field(":path").is_none() {
            return Err(Malformed::Path(stream));
        }
        requests.push(request);
    }
    match open {
        Some(_) => Err(Malformed::Truncated(bytes.len())),
        None => Ok(requests),
    }
}

struct Frame<'a> {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: &'a [u8],
    rest: &'a [u8],
}

impl<'a> Frame<'a> {
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (header, rest) = bytes.split_first_chunk::<FRAME_HEADER>()?;
        let [l0, l1, l2, kind, flags, s0, s1, s2, s3] = *header;
        let length = u32::from_be_bytes([0, l0, l1, l2]);
        let (payload, rest) = rest.split_at_checked(usize::try_from(length).ok()?)?;
        Some(Self {
            kind,
            flags,
            // The highest bit is reserved and to be ignored.
            stream: u32::from_be_bytes([s0 & 0x7f, s1, s2, s3]),
            payload,
            rest,
        })
    }

    /// The field block fragment of a HEADERS frame (RFC 9113 §6.2).
    fn fragment(&self) -> Option<&'a [u8]> {
        let mut fragment = self.payload;
        let mut padding = 0;
        if self.flags & PADDED != 0 {
            let (length, rest) = fragment.split_first()?;
            padding = usize::from(*length);
            fragment = rest;
        }
        if self.flags & PRIORITY != 0 {
            let (_, rest) = fragment.split_first_chunk::<5>()?;
            fragment = rest;
        }
        let end = fragment.len().checked_sub(padding)?;
        fragment.get(..end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frames::frame;

    fn connection(frames: &[Vec<u8>]) -> Vec<u8> {
        [PREFACE.to_vec(), frames.concat()].concat()
    }

    /// A literal that is inserted in the dynamic table, then a reference to it (RFC 7541 §6.1, §6.2.1), in frames
    /// that use all that HEADERS can have.
    #[test]
    fn paths_are_found_in_every_shape_of_frame() {
        let literal = [&[0x44, 0x02][..], b"/x"].concat();
        let padded = [&[3, 0, 0, 0, 0, 0][..], &literal[..1], &[0; 3]].concat();
        let bytes = connection(&[
            frame(4, 0, 0, &[]),
            frame(HEADERS, PADDED | PRIORITY, 1, &padded),
            frame(CONTINUATION, 0, 1, &literal[1..2]),
            frame(CONTINUATION, END_HEADERS, 1, &literal[2..]),
            frame(DATA, 1, 1, b"data"),
            frame(HEADERS, END_HEADERS, 3, &[0x80 | 62]),
        ]);
        let requests = requests(&bytes).unwrap();
        let found: Vec<_> = requests
            .iter()
            .map(|request| (request.stream, request.field(":path")))
            .collect();
        assert_eq!(found, [(1, Some("/x")), (3, Some("/x"))]);
    }

    #[test]
    fn what_a_client_may_not_send_is_an_error() {
        let path = frame(HEADERS, END_HEADERS, 1, &[0x84]);
        let open = frame(HEADERS, 0, 1, &[0x84]);
        assert!(matches!(requests(b"GET /"), Err(Malformed::Preface)));
        type Expected = fn(&Malformed) -> bool;
        let cases: [(Vec<Vec<u8>>, Expected); 8] = [
            (vec![path[..8].to_vec()], |e| {
                matches!(e, Malformed::Truncated(24))
            }),
            (vec![open.clone()], |e| matches!(e, Malformed::Truncated(_))),
            (vec![open, frame(DATA, 0, 1, &[])], |e| {
                matches!(e, Malformed::Continuation { kind: DATA, .. })
            }),
            (vec![frame(CONTINUATION, 0, 1, &[])], |e| {
                matches!(e, Malformed::Continuation { .. })
            }),
            (vec![path.clone(), path], |e| {
                matches!(e, Malformed::Stream(1))
            }),
            (vec![frame(HEADERS, END_HEADERS, 1, &[0x82])], |e| {
                matches!(e, Malformed::Path(1))
            }),
            (
                vec![frame(HEADERS, END_HEADERS | PADDED, 1, &[2, 0x84])],
                |e| matches!(e, Malformed::Padding(24)),
            ),
            (vec![frame(DATA, 0, 1, &[])], |e| {
                matches!(e, Malformed::Data(1))
            }),
        ];
        for (frames, expected) in cases {
            let error = requests(&connection(&frames)).unwrap_err();
            assert!(expected(&error), "{error}");
        }
    }
}
