//! Bulk data of a server: whole DATA frames, several of them in one receive, passed together.
//!
//! [`pass`] leaves a connection as [`walk::step`] would behind the same octets, and finds nothing that it would tell of: it ends before the
//! header of any frame but a plain DATA frame whose payload nobody waits for. It costs one read of nine octets a frame, and no walk.

use core::mem::MaybeUninit;

use super::frame::HEAD;
use super::walk::{self, Conn};

/// Frames that one run passes. 64 of Numaflow's messages of 1 KiB are as much as a client of gRPC receives at once.
pub const FRAMES: u32 = 64;

/// What lies ahead, in one piece.
pub trait Ahead {
    /// Copies the frame header that begins `at` octets ahead to where it belongs. `false`: it can't be read now.
    fn read(&self, at: u64, header: &mut Header) -> bool;
    /// Whether somebody waits for the payload of a DATA frame on this stream.
    fn is_awaited(&self, stream: u32) -> bool;
}

/// A frame header (RFC 9113 §4.1) in memory, three octets behind an aligned place: so all fields but the stream are one word.
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

    /// Sets all of it to 0. Word by word: a BPF program would call a function for both.
    #[inline(always)]
    fn clear(place: *mut Self) {
        let words = place.cast::<u64>();
        // SAFETY: it is two words.
        unsafe {
            words.write_volatile(0);
            words.add(1).write_volatile(0);
        }
    }

    /// Length, type and flags.
    #[inline(always)]
    const fn first(&self) -> u64 {
        u64::from_be(self.0[0])
    }

    /// The stream (RFC 9113 §4.1: the reserved bit is ignored).
    #[inline(always)]
    const fn stream(&self) -> u32 {
        (u64::from_be(self.0[1]) >> 32) as u32 & 0x7fff_ffff
    }
}

const _: () = assert!(Header::BEFORE + HEAD as usize <= size_of::<Header>());

/// Passes octets of a server's stream that has `left` more of them here, as far as they are of DATA frames, and says how many.
///
/// The frames passed have no flags, and nobody waits for them, which is asked once for those in a row on one stream. Others, and those that
/// are cut within their header, are left to [`walk::step`], as is what stands behind [`FRAMES`] of them.
#[inline(always)]
pub fn pass<A: Ahead>(c: &Conn, ahead: &A, left: u32) -> u32 {
    if !c.before_border() {
        return 0;
    }
    let mut header = MaybeUninit::uninit();
    Header::clear(header.as_mut_ptr());
    // SAFETY: any octets make a header.
    let header = unsafe { header.assume_init_mut() };
    // BPF has arithmetic of 64 bits: in fewer, each step would be three.
    let left = left as u64;
    // Octets to the next border, from here.
    let mut count = c.count.get() as u64;
    let mut at = 0;
    // Of the last frame passed: no frame of DATA has 0.
    let mut stream = 0;
    for _ in 0..FRAMES {
        if count > left - at {
            count -= left - at;
            at = left;
            break;
        }
        at += count;
        count = 0;
        if left - at < HEAD as u64 || !ahead.read(at, header) {
            break;
        }
        let first = header.first();
        let of = header.stream();
        // The type of DATA is 0.
        if first & 0xffff != 0 || of == 0 || of != stream && ahead.is_awaited(of) {
            break;
        }
        at += HEAD as u64;
        count = first >> 16;
        stream = of;
    }
    if stream != 0 {
        walk::data(c, 0, stream, count as u32);
    } else {
        c.skip_to_border(count as u32);
    }
    at as u32
}
