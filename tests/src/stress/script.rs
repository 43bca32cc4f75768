//! What a connection says.

use std::ops::Range;

use crate::frames::{DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, SETTINGS, frame};
use crate::splitmix::SplitMix;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Octets of a frame's header (RFC 9113 §4.1).
pub const HEADER: usize = 9;
/// Octets of everything before the first item.
pub const BEGINNING: usize = PREFACE.len() + HEADER + HEADER + SEED;
/// Octets of the last frame.
pub const ENDING: usize = HEADER + 8 + 16;
/// A PING carries the seed.
const SEED: usize = 8;

/// PendingFn and what stands in for it, plain and in the Huffman code.
const PATHS: [[&[u8]; 2]; 2] = [
    [
        b"/source.v1.Source/PendingFn",
        b"/source.v1.Source/PendingF=",
    ],
    [
        b"\x61\x07\xb6\xc2\x15\x7e\xe1\x5f\x71\xed\xb0\x85\x63\x59\x6a\x90\xd5\x4d\x86\xaf",
        b"\x61\x07\xb6\xc2\x15\x7e\xe1\x5f\x71\xed\xb0\x85\x63\x59\x6a\x90\xd5\x4d\x86\x0f",
    ],
];
/// `te`, `content-type` and `user-agent`, as a client writes them when it opens its first stream, and as indices from then on.
const FIELDS: &[u8] = b"\x40\x02te\x08trailers\x5f\x10application/grpc\x7a\x0ctonic/0.14.2";
const INDICES: &[u8] = b"\xc0\xbf\xbe";
/// The longest DATA.
const MOST: u64 = 65_536;
/// One item in so many is a call.
const CALLS: u64 = 4;

/// Whether sends are cut anywhere, in the middle of paths too: the gate admits what it sees in parts.
const CUT: u64 = 1 << 63;
/// Nothing but calls.
const CALLS_ONLY: u64 = 1 << 62;

/// A connection's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seed(pub u64);

impl Seed {
    /// The same, for a connection that cuts its sends anywhere.
    #[must_use]
    pub fn cut(self) -> Self {
        Self(self.0 | CUT)
    }

    /// The same, for a connection that says nothing but calls.
    #[must_use]
    pub fn calls_only(self) -> Self {
        Self(self.0 | CALLS_ONLY)
    }

    /// A number without any of that.
    #[must_use]
    pub fn plain(number: u64) -> Self {
        Self(number & !(CUT | CALLS_ONLY))
    }

    /// Whether paths may be cut.
    #[must_use]
    pub fn is_cut(self) -> bool {
        self.0 & CUT != 0
    }
}

/// What was appended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// Bytes of a stream.
    Data,
    /// A call of PendingFn; where its path is.
    Call {
        /// Within what was appended.
        path: Range<usize>,
    },
}

/// A call, as the reader finds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// PendingFn.
    Admitted,
    /// What stands in for it.
    Rejected,
}

/// Makes what a connection says, item by item.
#[derive(Debug)]
pub struct Script {
    numbers: SplitMix,
    calls_only: bool,
    stream: u32,
    items: u64,
    bytes: u64,
}

impl Script {
    /// A script, after [`Script::beginning`].
    #[must_use]
    pub fn new(seed: Seed) -> Self {
        Self {
            numbers: SplitMix::new(seed.0),
            calls_only: seed.0 & CALLS_ONLY != 0,
            stream: 1,
            items: 0,
            bytes: BEGINNING as u64,
        }
    }

    /// The first bytes: preface, SETTINGS, and the seed in a PING.
    #[must_use]
    pub fn beginning(seed: Seed) -> Vec<u8> {
        let mut out = PREFACE.to_vec();
        out.extend(frame(SETTINGS, 0, 0, &[]));
        out.extend(frame(PING, 0, 0, &seed.0.to_be_bytes()));
        out
    }

    /// The seed of a beginning.
    #[must_use]
    pub fn seed(beginning: &[u8; BEGINNING]) -> Option<Seed> {
        let (_, seed) = beginning.split_last_chunk::<SEED>()?;
        let seed = Seed(u64::from_be_bytes(*seed));
        (Self::beginning(seed) == beginning).then_some(seed)
    }

    /// Items so far.
    #[must_use]
    pub fn items(&self) -> u64 {
        self.items
    }

    /// Bytes so far.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Appends the next item.
    pub fn next(&mut self, out: &mut Vec<u8>) -> Item {
        let before = out.len();
        // Some stream has to be open before there can be data in it.
        let call = self.items == 0 || self.calls_only || self.numbers.within(1..=CALLS) == 1;
        let item = if call {
            self.call(out)
        } else {
            let len = self.numbers.scattered(1..=MOST) as usize;
            let mut payload = Vec::with_capacity(len);
            self.numbers.fill(&mut payload, len);
            out.extend(frame(DATA, 0, 1, &payload));
            Item::Data
        };
        self.items += 1;
        self.bytes += (out.len() - before) as u64;
        item
    }

    fn call(&mut self, out: &mut Vec<u8>) -> Item {
        let huffman = usize::from(!self.numbers.within(1..=8).is_multiple_of(8));
        let path = PATHS[huffman][0];
        // POST, http, and the path as a literal that is not indexed (RFC 7541 §6.2.2).
        let mut block = vec![0x83, 0x86, 0x04, path.len() as u8 | (huffman as u8) << 7];
        let from = HEADER + block.len();
        block.extend_from_slice(path);
        block.extend_from_slice(if self.stream == 1 { FIELDS } else { INDICES });
        out.extend(frame(HEADERS, END_HEADERS, self.stream, &block));
        if self.stream > 1 {
            out.extend(frame(DATA, END_STREAM, self.stream, &[0; 5]));
        }
        self.stream += 2;
        Item::Call {
            path: from..from + path.len(),
        }
    }

    /// The last frame: how much there was before it.
    #[must_use]
    pub fn ending(&self) -> Vec<u8> {
        let mut payload = vec![0; 8];
        payload.extend_from_slice(&self.items.to_be_bytes());
        payload.extend_from_slice(&self.bytes.to_be_bytes());
        let mut out = Vec::with_capacity(ENDING);
        out.extend(frame(GOAWAY, 0, 0, &payload));
        out
    }
}

/// What became of a call: `None` where its bytes are neither the watched path nor what stands in for it.
#[must_use]
pub fn verdict(sent: &[u8], read: &[u8], path: &Range<usize>) -> Option<Verdict> {
    if sent == read {
        return Some(Verdict::Admitted);
    }
    let same = sent.get(..path.start)? == read.get(..path.start)?
        && sent.get(path.end..)? == read.get(path.end..)?;
    let [watched, substitute] = PATHS.iter().find(|paths| paths[0] == &sent[path.clone()])?;
    debug_assert_eq!(watched.len(), substitute.len());
    (same && &read[path.clone()] == *substitute).then_some(Verdict::Rejected)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By a decoder that shares no code with anything here.
    #[test]
    fn calls_are_what_they_should_be() {
        let mut script = Script::new(Seed(7));
        let mut decoder = fluke_hpack::Decoder::new();
        for _ in 0..40 {
            let mut out = Vec::new();
            let Item::Call { path } = script.call(&mut out) else {
                unreachable!()
            };
            let len = usize::from(out[1]) << 8 | usize::from(out[2]);
            let mut read = out.clone();
            let coded = PATHS.iter().find(|p| p[0] == &out[path.clone()]).unwrap();
            read[path.clone()].copy_from_slice(coded[1]);
            assert_eq!(verdict(&out, &out, &path), Some(Verdict::Admitted));
            assert_eq!(verdict(&out, &read, &path), Some(Verdict::Rejected));
            let fields = decoder.decode(&read[HEADER..HEADER + len]).unwrap();
            let text: Vec<_> = fields
                .iter()
                .map(|(name, value)| {
                    let name = String::from_utf8_lossy(name);
                    format!("{name}={}", String::from_utf8_lossy(value))
                })
                .collect();
            assert_eq!(
                text,
                [
                    ":method=POST",
                    ":scheme=http",
                    ":path=/source.v1.Source/PendingF=",
                    "te=trailers",
                    "content-type=application/grpc",
                    "user-agent=tonic/0.14.2"
                ]
            );
            for at in 0..read.len() {
                let mut mixed = read.clone();
                mixed[at] ^= 0x10;
                assert_eq!(verdict(&out, &mixed, &path), None, "octet {at}");
            }
            let mut mixed = out.clone();
            let half = (path.start + path.end) / 2;
            mixed[half..path.end].copy_from_slice(&read[half..path.end]);
            assert!(mixed == read || verdict(&out, &mixed, &path).is_none());
        }
    }

    #[test]
    fn both_ends_make_the_same() {
        let seed = Seed(99).cut();
        let beginning: [u8; BEGINNING] = Script::beginning(seed).try_into().unwrap();
        assert_eq!(Script::seed(&beginning), Some(seed));
        let (mut a, mut b) = (Script::new(seed), Script::new(seed));
        for _ in 0..100 {
            let (mut one, mut other) = (Vec::new(), vec![1, 2, 3]);
            assert_eq!(a.next(&mut one), b.next(&mut other));
            assert_eq!(one, other[3..]);
        }
        assert_eq!(a.ending().len(), ENDING);
        assert_eq!(a.ending(), b.ending());
    }
}
