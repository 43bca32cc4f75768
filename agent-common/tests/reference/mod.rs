//! The other opinion: a plain HTTP/2 frame parser on top of a full HPACK decoder from the registry, and what the tests
//! and the fuzz targets need to compare the tracker with it.
//!
//! | module | what it does |
//! |---|---|
//! | this one | says which requests a client's whole byte stream makes, and whether the tracker agrees |
//! | [`build`] | makes valid client streams of any shape out of random choices |
//! | [`drive`] | runs the tracker over a stream cut into sends, pieces and windows |
//! | [`late`] | a connection that is joined late, with what its server answers |

pub mod build;
pub mod choices;
pub mod drive;
pub mod late;

use agent_common::h2::frame::{PREFACE, flag, kind};
use agent_common::h2::paths::PathTable;
use agent_common::h2::walk::{Fault, MAX_BLOCK, OTHER, UNRESOLVED, WATCHED};
use loona_hpack::Decoder;
use loona_hpack::decoder::{DecoderError, StringDecodingError};

use drive::Walked;

/// Octets of dynamic table that a client may use unless told otherwise (RFC 9113 §6.5.2).
pub const TABLE_SIZE: usize = 4096;

/// What is watched in tests: Numaflow's methods, one path that begins another, one that differs from its neighbour in
/// the last octet, the shortest one and the longest one.
pub const PATHS: [&str; 8] = [
    "/source.v1.Source/PendingFn",
    "/source.v1.Source/AckFn",
    "/source.v1.Source/ReadFn",
    "/source.v1.Source/PendingF",
    "/source.v1.Source/PendingFm",
    "/a/b",
    "/XZ_.XZ_.XZ_.XZ_/XXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXX",
    "/source.v1.Source/IsReady",
];

/// A table of `paths`.
pub fn table<'a>(paths: impl IntoIterator<Item = &'a str> + Clone) -> Box<PathTable> {
    let mut table = Box::new(PathTable::EMPTY);
    table.fill(paths).expect("paths that can be watched");
    table
}

/// The class of a request with these values of `:path`.
pub fn class(paths: &[Vec<u8>]) -> u32 {
    let [path] = paths else { return UNRESOLVED };
    PATHS
        .iter()
        .position(|watched| watched.as_bytes() == path)
        .map_or(OTHER, |i| WATCHED + i as u32)
}

/// A request that the stream makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    pub stream: u32,
    /// Every `:path` in it; a correct client sends one.
    pub paths: Vec<Vec<u8>>,
    /// Where its HEADERS frame begins.
    pub start: usize,
    /// A stream number was left out since the connection began: the tracker may not know indices.
    pub after_gap: bool,
}

/// Why the reference reads no further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The stream ends, between two frames or in a frame that says nothing of requests.
    End,
    /// The stream ends within a header block.
    InBlock,
    /// Framing: the tracker must say the same.
    Frame(Fault),
    /// The block ends within a field, or has an integer that is too large: the tracker must say something.
    Malformed,
    /// Only who has the strings can refuse this: an index beyond the table, bad Huffman padding, a table
    /// larger than allowed. The tracker may go on.
    Undecodable,
    /// A preface between two frames. The tracker takes it for a new connection on the same descriptor.
    Preface,
}

/// What the reference makes of a stream.
#[derive(Clone, Debug)]
pub struct Parsed {
    pub requests: Vec<Request>,
    /// Where frames begin.
    pub frames: Vec<usize>,
    /// Whether a stream number was left out anywhere.
    pub gap: bool,
    pub stop: Stop,
}

/// Reads a client's stream, preface included.
pub fn parse(bytes: &[u8]) -> Parsed {
    let mut parsed = Parsed {
        requests: Vec::new(),
        frames: Vec::new(),
        gap: false,
        stop: Stop::End,
    };
    assert!(bytes.starts_with(&PREFACE));
    parsed.stop = Reader::new(bytes)
        .read(&mut parsed)
        .err()
        .unwrap_or(Stop::End);
    parsed
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    decoder: Decoder<'static>,
    last_stream: u32,
}

impl<'a> Reader<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        let mut decoder = Decoder::new();
        decoder.set_max_allowed_table_size(TABLE_SIZE);
        Self {
            bytes,
            at: PREFACE.len(),
            decoder,
            last_stream: 0,
        }
    }

    fn read(mut self, parsed: &mut Parsed) -> Result<(), Stop> {
        loop {
            let start = self.at;
            if self.bytes[start..].starts_with(&PREFACE) {
                return Err(Stop::Preface);
            }
            let Some(frame) = self.head(false)? else {
                return Ok(());
            };
            parsed.frames.push(start);
            if frame.kind != kind::HEADERS {
                if self.take(frame.len).is_none() {
                    return Ok(());
                }
                continue;
            }
            if self.last_stream != 0 && frame.stream > self.last_stream + 2 {
                parsed.gap = true;
            }
            let block = self.block(&frame)?;
            let paths = self.decode(&block)?;
            if frame.stream > self.last_stream {
                self.last_stream = frame.stream;
                if !paths.is_empty() {
                    parsed.requests.push(Request {
                        stream: frame.stream,
                        paths,
                        start,
                        after_gap: parsed.gap,
                    });
                }
            }
        }
    }

    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let taken = self.bytes[self.at..].get(..n);
        self.at = (self.at + n).min(self.bytes.len());
        taken
    }

    /// The next frame's header, unless the stream ends.
    fn head(&mut self, in_block: bool) -> Result<Option<Frame>, Stop> {
        let Some(head) = self.take(9) else {
            return Ok(None);
        };
        let frame = Frame {
            len: u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize,
            kind: head[3] as u32,
            flags: head[4] as u32,
            stream: u32::from_be_bytes([head[5], head[6], head[7], head[8]]) & 0x7fff_ffff,
        };
        match frame.legal(in_block) {
            Ok(()) => Ok(Some(frame)),
            Err(fault) => Err(Stop::Frame(fault)),
        }
    }

    /// The whole header block that begins with this HEADERS frame.
    fn block(&mut self, headers: &Frame) -> Result<Vec<u8>, Stop> {
        let mut rest = headers.len;
        let mut padding = 0;
        if headers.flags & flag::PADDED != 0 {
            if rest == 0 {
                return Err(Stop::Frame(Fault::Padding));
            }
            padding = self.take(1).ok_or(Stop::InBlock)?[0] as usize;
            rest -= 1;
        }
        let priority = if headers.flags & flag::PRIORITY != 0 {
            5
        } else {
            0
        };
        let fragment = rest
            .checked_sub(padding + priority)
            .ok_or(Stop::Frame(Fault::Padding))?;
        let mut size = fragment;
        limit(size)?;
        self.take(priority).ok_or(Stop::InBlock)?;
        let mut block = self.take(fragment).ok_or(Stop::InBlock)?.to_vec();
        // A tracker need not wait for the padding of the block's last frame.
        let whole = self.take(padding).is_some();
        let mut done = headers.flags & flag::END_HEADERS != 0;
        if !whole && !done {
            return Err(Stop::InBlock);
        }
        while !done {
            let next = self.head(true)?.ok_or(Stop::InBlock)?;
            if next.stream != headers.stream {
                return Err(Stop::Frame(Fault::Continuation));
            }
            size += 9 + next.len;
            limit(size)?;
            block.extend(self.take(next.len).ok_or(Stop::InBlock)?);
            done = next.flags & flag::END_HEADERS != 0;
        }
        Ok(block)
    }

    /// The values of `:path` in a block.
    fn decode(&mut self, block: &[u8]) -> Result<Vec<Vec<u8>>, Stop> {
        let mut paths = Vec::new();
        let decoded = self.decoder.decode_with_cb(block, |name, value| {
            if *name == *b":path" {
                paths.push(value.into_owned());
            }
        });
        match decoded {
            Ok(()) => Ok(paths),
            Err(
                DecoderError::IntegerDecodingError(_)
                | DecoderError::StringDecodingError(StringDecodingError::NotEnoughOctets),
            ) => Err(Stop::Malformed),
            Err(_) => Err(Stop::Undecodable),
        }
    }
}

fn limit(size: usize) -> Result<(), Stop> {
    if size > MAX_BLOCK as usize {
        return Err(Stop::Frame(Fault::BlockSize));
    }
    Ok(())
}

struct Frame {
    len: usize,
    kind: u32,
    flags: u32,
    stream: u32,
}

impl Frame {
    /// RFC 9113 §6, for frames of a client, as far as a frame header shows it.
    fn legal(&self, in_block: bool) -> Result<(), Fault> {
        if in_block != (self.kind == kind::CONTINUATION) {
            return Err(Fault::Continuation);
        }
        let connection = self.stream == 0;
        let legal = match self.kind {
            kind::DATA => !connection,
            kind::HEADERS => self.stream % 2 == 1,
            kind::PRIORITY => !connection && self.len == 5,
            kind::RST_STREAM => !connection && self.len == 4,
            kind::SETTINGS => connection && self.len.is_multiple_of(6),
            kind::PUSH_PROMISE => false,
            kind::PING => connection && self.len == 8,
            kind::GOAWAY => connection && self.len >= 8,
            kind::WINDOW_UPDATE => self.len == 4,
            kind::CONTINUATION => true,
            // The tracker takes a larger one of unknown type for no frame.
            _ => self.len <= 16_384,
        };
        if legal { Ok(()) } else { Err(Fault::Frame) }
    }
}

/// Whether the tracker's result for a connection that it saw from the preface on is what the reference found.
pub fn agree(parsed: &Parsed, walked: &Walked) -> Result<(), String> {
    let mut got = walked.requests.iter();
    for want in &parsed.requests {
        // After a gap, requests that have no path but unknown fields count as unresolved.
        let found = if want.after_gap {
            got.find(|(stream, class)| *stream == want.stream || *class != UNRESOLVED)
        } else {
            got.next()
        };
        let Some(&(stream, found)) = found else {
            return Err(format!("the tracker has no request like {want:?}"));
        };
        let class = class(&want.paths);
        let right = stream == want.stream
            && (found == class || want.after_gap && (found == UNRESOLVED || class == UNRESOLVED));
        if !right {
            return Err(format!(
                "stream {stream} class {found}, but {want:?}, class {class}"
            ));
        }
    }
    let fault = walked.fault;
    let early = matches!(fault, Some(Fault::Integer));
    let (agreed, more) = match parsed.stop {
        Stop::End => (fault.is_none(), false),
        Stop::InBlock => (fault.is_none() || early, false),
        Stop::Frame(want) => {
            let in_block = matches!(want, Fault::Continuation | Fault::BlockSize);
            (fault == Some(want) || in_block && early, false)
        }
        Stop::Malformed => (
            matches!(fault, Some(Fault::Integer | Fault::Truncated)),
            false,
        ),
        Stop::Undecodable | Stop::Preface => (true, true),
    };
    if !agreed {
        return Err(format!("fault {fault:?}, but {:?}", parsed.stop));
    }
    if !more && let Some(extra) = got.find(|r| r.1 != UNRESOLVED || !parsed.gap) {
        return Err(format!("a request that was not made: {extra:?}"));
    }
    Ok(())
}
