//! The watched paths, compared with a string octet by octet, all at once.
//!
//! A candidate is a watched path in one of its two spellings on the wire (plain or Huffman coded), or the name
//! `:path` in one of its two. A set of candidates is a bit mask. A string begins with the candidates of its length
//! and spelling, and each octet takes away those that have another octet there: what is left at the end is equal to the
//! string. It is exact (no hash), needs no more state than the mask, and so a string may be cut anywhere.
//!
//! Each path has one Huffman spelling: the code is a prefix code and its padding is prescribed (RFC 7541 §5.2).

use super::huffman;
use super::walk::{self, OTHER};

/// Watched paths at most.
pub const MAX_PATHS: usize = 8;
/// Octets of a watched path at most. Characters that gRPC paths are made of take 5 to 8 bits in the Huffman code, so its
/// Huffman spelling is no longer.
pub const MAX_LEN: usize = 96;
/// Positions in the table: the next power of two, so that a masked position is always in it.
const POSITIONS: usize = MAX_LEN.next_power_of_two();

const HUFFMAN_SHIFT: u32 = MAX_PATHS as u32;
const NAME_PLAIN: u32 = 1 << 16;
const NAME_HUFFMAN: u32 = 1 << 17;
const AGENT_PLAIN: u32 = 1 << 18;
const AGENT_HUFFMAN: u32 = 1 << 19;
const PATH: &[u8] = b":path";
/// How the gRPC client of Rust begins its `user-agent`. In the Huffman code these are whole octets, so that what follows
/// changes none of them.
const TONIC: &[u8] = b"tonic/";
const TONIC_HUFFMAN: [u8; 4] = [0x49, 0xea, 0x31, 0x18];

const _: () = assert!(2 * MAX_PATHS <= 16, "the name's bits lie above the paths'");

/// What [`super::walk::step`] compares strings with: one header field's name, and values of it. In a client's stream the field is
/// `:path` and the values are the watched paths; in a server's it is `grpc-status` ([`super::status`]).
pub trait Paths {
    /// Whether the stream is a server's.
    const SERVER: bool = false;
    /// The candidates that are the field's name.
    const NAME: u32;
    /// The candidates that are the beginning of a client's `user-agent`; 0: nobody asks for it.
    const AGENT: u32 = 0;

    /// The candidates of this length in octets; `huffman` is 1 for the Huffman spelling and 0 for the plain one.
    fn lengths(&self, huffman: u32, len: u32) -> u32;
    /// The candidates that have `octet` at `position`, of a string in that spelling.
    fn at(&self, huffman: u32, position: u32, octet: u8) -> u32;
    /// Which value a mask of one candidate means.
    fn number(mask: u32) -> u32;
    /// The class of an entry of the static table (RFC 7541 appendix A), whose index is below 62.
    fn of_static(index: u32) -> u32;
}

/// The table. It is the value of a BPF array map, as it stands.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct PathTable {
    at: [[u32; 256]; POSITIONS],
    lengths: [[u32; POSITIONS]; 2],
}

/// Why a path can't be watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathError {
    /// More than [`MAX_PATHS`].
    TooMany,
    /// More than [`MAX_LEN`] octets.
    TooLong,
    /// Not `/package.Service/Method` in letters, digits, `_` and `.`.
    NotAMethod,
    /// Named twice.
    Twice,
}

impl PathTable {
    /// A table without a path. It is 129 KiB large: keep it off the stack.
    pub const EMPTY: Self = Self {
        at: [[0; 256]; POSITIONS],
        lengths: [[0; POSITIONS]; 2],
    };

    /// Fills an [`PathTable::EMPTY`] table.
    pub fn fill<'a>(
        &mut self,
        paths: impl IntoIterator<Item = &'a str> + Clone,
    ) -> Result<(), PathError> {
        self.candidate(PATH, NAME_PLAIN, NAME_HUFFMAN);
        self.prefix(0, TONIC, AGENT_PLAIN);
        self.prefix(1, &TONIC_HUFFMAN, AGENT_HUFFMAN);
        for (i, path) in paths.clone().into_iter().enumerate() {
            if i >= MAX_PATHS {
                return Err(PathError::TooMany);
            }
            check(path)?;
            if paths.clone().into_iter().take(i).any(|other| other == path) {
                return Err(PathError::Twice);
            }
            self.candidate(path.as_bytes(), 1 << i, 1 << (i as u32 + HUFFMAN_SHIFT));
        }
        Ok(())
    }

    fn candidate(&mut self, text: &[u8], plain: u32, huffman: u32) {
        self.spelling(0, text, plain);
        let mut code = [0; MAX_LEN];
        // `check` admits only characters of at most 8 bits, so this always fits.
        if let Some(n) = huffman::encode(text, &mut code) {
            self.spelling(1, &code[..n], huffman);
        }
    }

    /// A candidate for every string that begins so. (One that is longer than the table is none.)
    fn prefix(&mut self, huffman: usize, octets: &[u8], bit: u32) {
        for position in 0..POSITIONS {
            match octets.get(position) {
                Some(&octet) => self.at[position][octet as usize] |= bit,
                None => {
                    self.lengths[huffman][position] |= bit;
                    self.at[position].iter_mut().for_each(|cell| *cell |= bit);
                }
            }
        }
    }

    fn spelling(&mut self, huffman: usize, octets: &[u8], bit: u32) {
        self.lengths[huffman][octets.len()] |= bit;
        for (position, &octet) in octets.iter().enumerate() {
            self.at[position][octet as usize] |= bit;
        }
    }
}

/// Whether `path` is the path of a gRPC method that can be watched: `/package.Service/Method`.
pub fn check(path: &str) -> Result<(), PathError> {
    if path.len() > MAX_LEN {
        return Err(PathError::TooLong);
    }
    let name = |s: &str| {
        !s.is_empty()
            && s.bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'.')
    };
    let mut parts = path.split('/');
    match (parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some(""), Some(service), Some(method), None) if name(service) && name(method) => Ok(()),
        _ => Err(PathError::NotAMethod),
    }
}

impl Paths for PathTable {
    const NAME: u32 = NAME_PLAIN | NAME_HUFFMAN;
    const AGENT: u32 = AGENT_PLAIN | AGENT_HUFFMAN;

    #[inline(always)]
    fn lengths(&self, huffman: u32, len: u32) -> u32 {
        if len as usize >= POSITIONS {
            return 0;
        }
        self.lengths[(huffman & 1) as usize][(len as usize) & (POSITIONS - 1)]
    }

    #[inline(always)]
    fn at(&self, _: u32, position: u32, octet: u8) -> u32 {
        self.at[(position as usize) & (POSITIONS - 1)][octet as usize]
    }

    /// 0 to [`MAX_PATHS`] - 1.
    #[inline(always)]
    fn number(mask: u32) -> u32 {
        let one = (mask | mask >> HUFFMAN_SHIFT) & ((1 << MAX_PATHS) - 1);
        // The position of the only bit, without a loop.
        ((one & 0xaa != 0) as u32)
            | ((one & 0xcc != 0) as u32) << 1
            | ((one & 0xf0 != 0) as u32) << 2
    }

    /// 4 is `:path: /`, 5 is `:path: /index.html`.
    #[inline(always)]
    fn of_static(index: u32) -> u32 {
        if index == 4 || index == 5 {
            OTHER
        } else {
            walk::NONE
        }
    }
}
