//! The maps between the programs and the agent: their keys, values and sizes.
//!
//! `#[repr(C)]`, no implicit padding. What changes here changes [`VERSION`].

use crate::h2::paths::MAX_PATHS;
use crate::h2::walk::{Conn, Fault};

/// Version of these layouts.
pub const VERSION: u32 = 1;

/// Processes watched at once, candidates included.
pub const MAX_TARGETS: u32 = 8192;
/// Connections tracked at once.
pub const MAX_CONNECTIONS: u32 = 8192;
/// Counter slots. One a watched process; slot 0 is where calls go when none is free.
pub const MAX_SLOTS: u32 = 8192;
/// Bytes of the ring buffer for process events.
pub const EVENT_BYTES: u32 = 256 * 1024;

const _: () = assert!(
    MAX_SLOTS >= MAX_TARGETS,
    "every target can have a slot of its own"
);
const _: () = assert!(EVENT_BYTES.is_power_of_two());

/// A connection as the programs see it: a file descriptor of a process.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConnKey {
    /// Process (thread group) id in the initial pid namespace.
    pub tgid: u32,
    /// File descriptor.
    pub fd: u32,
}

/// A tracked connection.
#[repr(C)]
pub struct Tracked {
    /// The target's epoch when it was first seen: another program run by the same process has another.
    pub epoch: u64,
    /// Where the stream stands.
    pub conn: Conn,
}

const _: () = assert!(size_of::<Tracked>() == size_of::<Conn>() + 8);

/// A watched process.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// When this program began, in ns since boot: no two programs of one pid share it.
    pub generation: u64,
    /// When the process last closed all its descriptors at once; its generation if it never did. Connections of another
    /// epoch are gone.
    pub epoch: u64,
    /// Index into the counter slots.
    pub slot: u32,
    /// One of [`verdict`]: what a watched call counts as.
    pub verdict: u32,
}

const _: () = assert!(size_of::<Target>() == 24);

/// What a call counts as; below [`verdict::COUNT`] an index into [`Slot::calls`].
pub mod verdict {
    /// It went through.
    pub const ADMITTED: u32 = 0;
    /// Enforcement would have rejected it.
    pub const WOULD_REJECT: u32 = 1;
    /// Made by a process that the agent had not classified yet.
    pub const CANDIDATE: u32 = 2;
    /// It was rejected.
    pub const REJECTED: u32 = 3;
    /// How many columns there are.
    pub const COUNT: usize = 4;
    /// Neither counted nor rejected; it has no column.
    pub const OFF: u32 = 4;
}

/// The counters of one watched process. Programs add to them atomically; the agent reads them through `mmap`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Calls by watched path and verdict.
    pub calls: [[u64; verdict::COUNT]; MAX_PATHS],
    /// Calls whose method could not be known.
    pub unresolved: u64,
    /// Connections in sync with their stream.
    pub synced: u64,
    /// Connections that lost it.
    pub unsynced: u64,
    /// Fills the struct to a whole cache line.
    pub reserved: [u64; 5],
}

impl Slot {
    /// A slot of nothing.
    pub const ZERO: Self = Self {
        calls: [[0; verdict::COUNT]; MAX_PATHS],
        unresolved: 0,
        synced: 0,
        unsynced: 0,
        reserved: [0; 5],
    };
}

const _: () = assert!(size_of::<Slot>() == 320);

/// Why something that a watched process sent could not be followed; an index into [`Totals::unparsed`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
#[allow(missing_docs, reason = "Reason::name says it")]
pub enum Reason {
    Frame = 0,
    Continuation = 1,
    Padding = 2,
    Integer = 3,
    Truncated = 4,
    BlockSize = 5,
    TooLong = 6,
    Tls = 7,
    StreamGap = 8,
    TableFull = 9,
    Unreadable = 10,
}

impl Reason {
    /// All, in the order of their numbers.
    pub const ALL: [Self; 11] = [
        Self::Frame,
        Self::Continuation,
        Self::Padding,
        Self::Integer,
        Self::Truncated,
        Self::BlockSize,
        Self::TooLong,
        Self::Tls,
        Self::StreamGap,
        Self::TableFull,
        Self::Unreadable,
    ];

    /// The label of `pendguard_unparsed_total`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Frame => "frame",
            Self::Continuation => "continuation",
            Self::Padding => "padding",
            Self::Integer => "integer",
            Self::Truncated => "truncated",
            Self::BlockSize => "block_size",
            Self::TooLong => "too_long",
            Self::Tls => "tls",
            Self::StreamGap => "stream_gap",
            Self::TableFull => "table_full",
            Self::Unreadable => "unreadable",
        }
    }

    /// What it means and what follows, in a sentence.
    pub const fn help(self) -> &'static str {
        match self {
            Self::Frame => "a frame header that no HTTP/2 client may send",
            Self::Continuation => "a header block that another frame interrupts",
            Self::Padding => "more padding than payload",
            Self::Integer => "an HPACK integer of more than 28 bits, or index 0",
            Self::Truncated => "a header block that ends within a field",
            Self::BlockSize => "a header block of more than 64 KiB",
            Self::TooLong => "one send with more frames and fields than a program may walk",
            Self::Tls => "a connection encrypted by the process itself: its calls can't be seen",
            Self::StreamGap => {
                "a stream number left out: what the client indexed before is forgotten"
            }
            Self::TableFull => "no room for another connection",
            Self::Unreadable => "bytes of the process that could not be read",
        }
    }
}

impl From<Fault> for Reason {
    #[inline(always)]
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Preface | Fault::Frame => Self::Frame,
            Fault::Continuation => Self::Continuation,
            Fault::Padding => Self::Padding,
            Fault::Integer => Self::Integer,
            Fault::Truncated => Self::Truncated,
            Fault::BlockSize => Self::BlockSize,
        }
    }
}

/// Counters of the whole node. The only value of its map; read through `mmap`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Totals {
    /// By [`Reason`].
    pub unparsed: [u64; 16],
    /// Process events that found the ring buffer, or the table of processes, full.
    pub events_lost: u64,
}

impl Totals {
    /// Nothing counted.
    pub const ZERO: Self = Self {
        unparsed: [0; 16],
        events_lost: 0,
    };
}

/// Places in the array of programs that continue a send by tail call.
pub mod walks {
    /// `tap_follow`.
    pub const FOLLOW: u32 = 0;
    /// `tap_open`.
    pub const OPEN: u32 = 1;
    /// How many there are.
    pub const COUNT: u32 = 2;
}

/// What happened to a process.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcEvent {
    /// One of [`event`].
    pub kind: u32,
    /// The process.
    pub tgid: u32,
    /// Its parent, for [`event::FORK`].
    pub parent: u32,
    /// Its slot, for [`event::EXEC`] and [`event::FORK`].
    pub slot: u32,
    /// Its generation, for the same two.
    pub generation: u64,
}

/// Kinds of [`ProcEvent`].
pub mod event {
    /// It runs a new program, and is a candidate with a slot.
    pub const EXEC: u32 = 1;
    /// It was forked from a watched process and is watched like it.
    pub const FORK: u32 = 2;
    /// A watched process ended.
    pub const EXIT: u32 = 3;
}

#[cfg(feature = "user")]
mod pod {
    use super::*;
    // SAFETY: each is `repr(C)`, made of integers only, without padding (asserted above or evident), so any bytes
    // are a value and all its bytes are initialised.
    unsafe impl aya::Pod for ConnKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Target {}
    // SAFETY: as above.
    unsafe impl aya::Pod for ProcEvent {}
    // SAFETY: as above.
    unsafe impl aya::Pod for crate::h2::paths::PathTable {}
}
