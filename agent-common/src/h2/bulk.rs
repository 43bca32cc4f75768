//! Bulk data of a server: whole DATA frames, several of them in one receive, passed together.
//!
//! [`pass`] leaves a connection as [`walk::step`] would behind the same octets, and finds nothing that it would tell of: it ends before the
//! header of any frame but a plain DATA frame whose payload nobody waits for. It costs one read of nine octets a frame, and no walk.

use super::frame::HEAD;
use super::walk::{self, Conn};

/// Frames that one run passes. 64 of Numaflow's messages of 1 KiB are as much as a client of gRPC receives at once.
pub const FRAMES: u32 = 64;

/// What lies ahead, in one piece.
pub trait Ahead {
    /// Copies the frame header that begins `at` octets ahead to where it belongs. `false`: it can't be read now.
    fn read(&self, at: u32, header: &mut Header) -> bool;
    /// Whether somebody waits for the payload of a DATA frame on this stream.
    fn is_awaited(&self, stream: u32) -> bool;
}

/// A frame header (RFC 9113 §4.1) in memory, three octets behind an aligned place: so that all fields but the stream are one word.
#[repr(C, align(8))]
pub struct Header([u64; 2]);

impl Header {
    const BEFORE: usize = 3;

    /// Where its octets belong: [`HEAD`] of them.
    #[inline(always)]
    pub const fn octets(&mut self) -> *mut u8 {
        // SAFETY: 3 and HEAD octets are less than the two words have.
        unsafe { self.0.as_mut_ptr().cast::<u8>().add(Self::BEFORE) }
    }

    /// Length, type and flags, and behind them the stream.
    #[inline(always)]
    fn words(&self) -> (u64, u32) {
        (
            u64::from_be(self.0[0]),
            (u64::from_be(self.0[1]) >> 32) as u32,
        )
    }
}

const _: () = assert!(Header::BEFORE + HEAD as usize <= size_of::<Header>());

/// Passes octets of the server's stream that has `left` more in front of it here, if they are of DATA frames, and says how many.
///
/// The frames passed are plain: no flag is set. Any others, and those that are cut within their header, are left to
/// [`walk::step`], as is what stands behind [`FRAMES`] of them.
#[inline(always)]
pub fn pass<A: Ahead>(c: &Conn, ahead: &A, left: u32) -> u32 {
    if !c.before_border() {
        return 0;
    }
    let mut header = Header([0; 2]);
    // Octets to the next border, and where it is.
    let mut count = c.count.get();
    let mut at = 0;
    // Of the last frame; none has 0.
    let mut stream = 0;
    for _ in 0..FRAMES {
        if count > left - at {
            count -= left - at;
            at = left;
            break;
        }
        at += count;
        count = 0;
        if left - at < HEAD || !ahead.read(at, &mut header) {
            break;
        }
        let (head, raw_stream) = header.words();
        let of = raw_stream & 0x7fff_ffff;
        // DATA is type 0.
        if head & 0xffff != 0 || of == 0 || ahead.is_awaited(of) {
            break;
        }
        at += HEAD;
        count = (head >> 16) as u32;
        stream = of;
    }
    if stream != 0 {
        walk::data(c, 0, stream, count);
    } else {
        c.skip_to_border(count);
    }
    at
}
