//! What a test hands to the programs of `agent-ebpf/src/cases.rs`, and gets back: the parser as it was built for the kernel is run on
//! the same bytes as the parser that was built for the host.

use crate::h2::track::{Begin, End};
use crate::h2::walk::Conn;
use crate::vol::Vol;

/// Calls that are handed back.
pub const CALLS: usize = 32;
/// Octets in front of a buffer for `case_buffer`: the kernel wants an Ethernet header there.
pub const IN_FRONT: usize = 16;

/// The cookie of the connection that `case_buffer` is about.
pub const COOKIE: u64 = 1;

/// How a send begins, as a number.
#[inline(always)]
pub const fn begun(begin: Begin) -> u32 {
    match begin {
        Begin::Fresh => 1,
        Begin::Join => 2,
        Begin::Follow => 3,
        Begin::Tls => 4,
        Begin::Ignore => 5,
    }
}

/// What is kept of it, as a number.
#[inline(always)]
pub const fn kept(end: End) -> u32 {
    match end {
        End::Keep => KEEP,
        End::Lost(_) => 2,
        End::Drop => 3,
    }
}

/// [`End::Keep`]'s.
pub const KEEP: u32 = 1;

/// One send, and what came of it.
#[repr(C)]
pub struct Case {
    /// Where the bytes lie, or the `struct iovec`s that say so.
    pub address: u64,
    /// Buffers; 0: one, at `address`.
    pub buffers: u32,
    /// Bytes.
    pub total: u32,
    /// How it begins: [`begun`]'s number, or 0.
    pub begun: Vol<u32>,
    /// How the walk ended: `tap`'s numbers.
    pub ended: Vol<u32>,
    /// What is kept: [`kept`]'s number, or 0.
    pub kept: Vol<u32>,
    /// Calls that were noted.
    pub calls: Vol<u32>,
    /// Requests found, by the last five bits of their class.
    pub found: [Vol<u32>; 32],
    /// The calls: the stream in the lower half, the class in the upper one.
    pub call: [Vol<u64>; CALLS],
    /// The connection.
    pub conn: Conn,
}

const _: () = assert!(size_of::<Case>() == 32 + 128 + 8 * CALLS + size_of::<Conn>());
