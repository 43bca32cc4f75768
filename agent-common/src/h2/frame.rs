//! Frame headers (RFC 9113 §4.1, §6): which of them a client may send.

use super::walk::{Fault, Source};

/// Octets of a frame header.
pub const HEAD: u32 = 9;
/// Octets of payload that a frame may have where no SETTINGS say otherwise (RFC 9113 §4.2).
pub const DEFAULT_MAX_SIZE: u32 = 16_384;
/// The client connection preface (RFC 9113 §3.4).
pub const PREFACE: [u8; 24] = *b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Frame types (RFC 9113 §6).
pub mod kind {
    #![allow(missing_docs)]
    pub const DATA: u32 = 0;
    pub const HEADERS: u32 = 1;
    pub const PRIORITY: u32 = 2;
    pub const RST_STREAM: u32 = 3;
    pub const SETTINGS: u32 = 4;
    pub const PUSH_PROMISE: u32 = 5;
    pub const PING: u32 = 6;
    pub const GOAWAY: u32 = 7;
    pub const WINDOW_UPDATE: u32 = 8;
    pub const CONTINUATION: u32 = 9;
}

/// Frame flags (RFC 9113 §6).
pub mod flag {
    #![allow(missing_docs)]
    pub const ACK: u32 = 0x1;
    pub const END_STREAM: u32 = 0x1;
    pub const END_HEADERS: u32 = 0x4;
    pub const PADDED: u32 = 0x8;
    pub const PRIORITY: u32 = 0x20;
}

/// A frame header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Octets of payload, 24 bits.
    pub len: u32,
    /// One of [`kind`], or an extension's.
    pub kind: u32,
    /// Bits of [`flag`].
    pub flags: u32,
    /// Stream identifier with the reserved bit still in it.
    pub raw_stream: u32,
}

impl Head {
    /// The frame header of which `octet` gives each of the nine octets (RFC 9113 §4.1).
    #[inline(always)]
    pub fn of(octet: impl Fn(u32) -> u8) -> Self {
        Self {
            len: (octet(0) as u32) << 16 | (octet(1) as u32) << 8 | octet(2) as u32,
            kind: octet(3) as u32,
            flags: octet(4) as u32,
            raw_stream: u32::from_be_bytes([octet(5), octet(6), octet(7), octet(8)]),
        }
    }

    /// The frame header in front of `s`, of which [`HEAD`] octets are ready.
    #[inline(always)]
    pub fn read<S: Source>(s: &S) -> Self {
        Self::of(|at| s.peek(at))
    }

    /// The stream identifier (RFC 9113 §4.1: the reserved bit is ignored).
    #[inline(always)]
    pub const fn stream(&self) -> u32 {
        self.raw_stream & 0x7fff_ffff
    }

    /// Whether a client may send this frame header at this place.
    ///
    /// `open_block` is the stream whose header block waits for a CONTINUATION, or 0. `strict` is for joining a
    /// connection in the middle: it also refuses what is legal but unheard of (extension types, undefined
    /// flags, the reserved bit), because there the question is "is this a frame header at all".
    #[inline(always)]
    pub fn check(&self, open_block: u32, strict: bool) -> Result<(), Fault> {
        use kind::*;
        let stream = self.stream();
        // RFC 9113 §6.10: nothing but CONTINUATION of the same stream may follow an unfinished block.
        if open_block != 0 || self.kind == CONTINUATION {
            return if open_block != 0 && self.kind == CONTINUATION && stream == open_block {
                Ok(())
            } else {
                Err(Fault::Continuation)
            };
        }
        // (on a stream or on the connection, length, defined flags)
        let (place, length, flags) = match self.kind {
            DATA => (stream != 0, true, flag::END_STREAM | flag::PADDED),
            // RFC 9113 §5.1.1: a client's streams are odd.
            HEADERS => (
                stream & 1 == 1,
                true,
                flag::END_STREAM | flag::END_HEADERS | flag::PADDED | flag::PRIORITY,
            ),
            PRIORITY => (stream != 0, self.len == 5, 0),
            RST_STREAM => (stream != 0, self.len == 4, 0),
            SETTINGS => (stream == 0, self.len.is_multiple_of(6), flag::ACK),
            PING => (stream == 0, self.len == 8, flag::ACK),
            GOAWAY => (stream == 0, self.len >= 8, 0),
            WINDOW_UPDATE => (true, self.len == 4, 0),
            // RFC 9113 §8.4: a client can't push.
            PUSH_PROMISE => (false, false, 0),
            // RFC 9113 §5.5: unknown types are ignored. One that is larger than any frame may be unless the peer
            // asked for it (§4.2) is rather no frame header at all: passing it would swallow megabytes.
            _ => (true, !strict && self.len <= DEFAULT_MAX_SIZE, 0xff),
        };
        if !place || !length {
            return Err(Fault::Frame);
        }
        if strict && (self.flags & !flags != 0 || self.raw_stream != stream) {
            return Err(Fault::Frame);
        }
        Ok(())
    }
}
