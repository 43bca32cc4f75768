//! The gRPC status in a server's stream: the field `grpc-status`, compared octet by octet with the numbers that gRPC knows.

use super::huffman;
use super::paths::Paths;
use super::walk::{NONE, OTHER, UNRESOLVED, WATCHED};
use crate::abi::answers::Code;

/// gRPC's statuses: 0 to 16.
const STATUSES: usize = 17;
const NAME: u32 = 1 << STATUSES;
const FIELD: &[u8] = b"grpc-status";
/// Positions in the table: `grpc-status` has 11 octets.
const POSITIONS: usize = 16;

const _: () = assert!(FIELD.len() < POSITIONS);

/// The table. It is the value of a BPF array map, as it stands.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct StatusTable {
    at: [[[u32; 256]; POSITIONS]; 2],
    lengths: [[u32; POSITIONS]; 2],
}

impl StatusTable {
    /// A table that knows nothing. It is 32 KiB large: keep it off the stack.
    pub const EMPTY: Self = Self {
        at: [[[0; 256]; POSITIONS]; 2],
        lengths: [[0; POSITIONS]; 2],
    };

    /// Fills an [`StatusTable::EMPTY`] table.
    pub fn fill(&mut self) {
        self.candidate(FIELD, NAME);
        for status in 0..STATUSES as u8 {
            let digits = [b'0' + status / 10, b'0' + status % 10];
            let text = if status < 10 { &digits[1..] } else { &digits };
            self.candidate(text, 1 << status);
        }
    }

    fn candidate(&mut self, text: &[u8], bit: u32) {
        self.spelling(0, text, bit);
        let mut code = [0; POSITIONS];
        if let Some(n) = huffman::encode(text, &mut code) {
            self.spelling(1, &code[..n], bit);
        }
    }

    fn spelling(&mut self, huffman: usize, octets: &[u8], bit: u32) {
        self.lengths[huffman][octets.len()] |= bit;
        for (position, &octet) in octets.iter().enumerate() {
            self.at[huffman][position][octet as usize] |= bit;
        }
    }
}

impl Paths for StatusTable {
    const SERVER: bool = true;
    const NAME: u32 = NAME;

    #[inline(always)]
    fn lengths(&self, huffman: u32, len: u32) -> u32 {
        if len as usize >= POSITIONS {
            return 0;
        }
        self.lengths[(huffman & 1) as usize][(len as usize) & (POSITIONS - 1)]
    }

    #[inline(always)]
    fn at(&self, huffman: u32, position: u32, octet: u8) -> u32 {
        self.at[(huffman & 1) as usize][(position as usize) & (POSITIONS - 1)][octet as usize]
    }

    #[inline(always)]
    fn number(mask: u32) -> u32 {
        // The position of the only bit, without a loop.
        (mask & 0xaaaa_aaaa != 0) as u32
            | ((mask & 0xcccc_cccc != 0) as u32) << 1
            | ((mask & 0xf0f0_f0f0 != 0) as u32) << 2
            | ((mask & 0xff00_ff00 != 0) as u32) << 3
            | ((mask & 0xffff_0000 != 0) as u32) << 4
    }

    /// `grpc-status` is not in the static table.
    #[inline(always)]
    fn of_static(_: u32) -> u32 {
        NONE
    }
}

/// The number of the [`Code`] with which a stream ended whose last header block had this class.
#[inline(always)]
pub fn code(class: u32) -> u32 {
    match class {
        UNRESOLVED => Code::Unresolved as u32,
        // No status, or none that gRPC knows: clients take it for UNKNOWN.
        NONE | OTHER => Code::Unknown as u32,
        _ => class - WATCHED,
    }
}
