//! The maps between the programs and the agent: their keys, values and sizes.
//!
//! `#[repr(C)]`, no implicit padding. What changes here changes [`VERSION`], with which pinned maps are marked: an agent
//! never reads maps of another version, but for what is *frozen* ([`Control`], [`Target`], [`Slot`] and their keys), through
//! which it goes on governing connections that programs of an older build enforce.

pub mod answers;
pub mod cases;
pub mod turns;

use crate::h2::edit::Segments;
use crate::h2::paths::MAX_PATHS;
use crate::h2::walk::{Conn, Fault};
use crate::vol::Vol;

/// Version of these layouts.
pub const VERSION: u32 = 7;

/// Processes watched at once, candidates included.
pub const MAX_TARGETS: u32 = 8192;
/// Processes of which is remembered that they are not watched.
pub const ABSENT_PLACES: u32 = 256;
/// Connections tracked at once.
pub const MAX_CONNECTIONS: u32 = 8192;
/// Counter slots. One a watched process; slot 0 is where calls go when none is free.
pub const MAX_SLOTS: u32 = 8192;
/// Threads that are in a send of which something was overwritten, at once.
pub const MAX_EDITS: u32 = 1024;
/// Connections that the gate stands before at once.
pub const MAX_GATED: u32 = 2048;
/// Bytes of the ring buffer for process events.
pub const EVENT_BYTES: u32 = 256 * 1024;

const _: () = assert!(
    MAX_SLOTS >= MAX_TARGETS,
    "every target can have a slot of its own"
);
const _: () = assert!(EVENT_BYTES.is_power_of_two());
const _: () = assert!(ABSENT_PLACES.is_power_of_two());

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
    /// Bytes sent since it was first seen.
    pub sent: Vol<u64>,
    /// Of those, how many the gate has passed: it says so at each buffer. Less than [`Tracked::sent`]: the source has read some
    /// before the gate could see them.
    pub passed: Vol<u64>,
    /// Not 0 while a send is under way (only while the hold programs are attached).
    pub sending: Vol<u64>,
    /// 1 while the gate counts its calls.
    pub gated: Vol<u32>,
    /// 1 once the server's dynamic table has a substitute in it.
    pub latched: Vol<u32>,
    /// Where the stream stands.
    pub conn: Conn,
}

const _: () = assert!(size_of::<Tracked>() == size_of::<Conn>() + 40);

/// Where [`Tracked`]'s fields lie, for an agent that reads one as bytes.
pub mod tracked {
    use super::Tracked;
    use core::mem::offset_of;
    /// Of [`Tracked::sent`].
    pub const SENT: usize = offset_of!(Tracked, sent);
    /// Of [`Tracked::sending`].
    pub const SENDING: usize = offset_of!(Tracked, sending);
    /// Of [`Tracked::gated`].
    pub const GATED: usize = offset_of!(Tracked, gated);
    /// Of the connection's status.
    pub const STATUS: usize = offset_of!(Tracked, conn) + offset_of!(super::Conn, status);
}

/// A connection that the gate stands before. The key is the client socket's cookie (`SO_COOKIE`), which is what the program
/// is told of each buffer.
#[repr(C)]
pub struct Gated {
    /// Which connection of the tap's it is. Frozen, at this place.
    pub key: ConnKey,
    /// The target's generation when it was joined.
    pub generation: u64,
    /// [`Tracked::sent`] when the socket was joined.
    pub joined_at: u64,
    /// Bytes that passed since.
    pub seen: Vol<u64>,
    /// One of [`gate`].
    pub state: Vol<u32>,
    /// Octets of the current buffer before the window.
    pub offset: Vol<u32>,
    /// Octets of the current buffer from here on.
    pub left: Vol<u32>,
    /// Octets passed in the window.
    pub window_at: Vol<u32>,
    /// Octets in the window.
    pub window_len: Vol<u32>,
    /// Fills up.
    pub reserved: u32,
    /// Where the stream stands.
    pub conn: Conn,
    /// Where the path in progress lies.
    pub segments: Segments,
    /// The octets being walked.
    pub window: [Vol<u8>; GATE_WINDOW],
}

/// In the agent's notes on connections, beside [`Failure`]'s numbers: programs of another build enforce this one, and count it.
pub const FOREIGN: u32 = 255;

/// Looks at the mark of the hold that a send makes before it goes on (`hold` in agent-ebpf).
pub const HOLD_ROUNDS: u32 = 4096;
/// Looks at the clock between two of these.
pub const HOLD_READS: u32 = 8;

/// Octets that the gate reads at once.
pub const GATE_WINDOW: usize = 256;

const _: () =
    assert!(size_of::<Gated>() == 56 + size_of::<Conn>() + size_of::<Segments>() + GATE_WINDOW);

/// States of a [`Gated`] connection.
pub mod gate {
    /// It waits for the tap's state, to begin where that stands.
    pub const JOINING: u32 = 0;
    /// It follows the stream itself.
    pub const ACTIVE: u32 = 1;
    /// It lost its place: everything passes.
    pub const LOST: u32 = 2;
}

/// What governs enforcement. The only value of its map; read and written through `mmap`. Frozen.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Control {
    /// Nothing is rejected after this moment, in ns since boot.
    pub lease: u64,
    /// An agent has been there until this moment, in ns since boot: without one, no candidates are made.
    pub attended: u64,
    /// Not 0: another build's agent has taken over ([`closing`]); what is followed is followed on, and nothing new is taken up.
    pub closing: u64,
    /// Where in a buffer (`struct sk_buff`) the kernel notes how much of it a Unix socket's reader has taken already.
    pub consumed_at: u64,
    /// Not 0: somebody watches calls as they happen.
    pub watched: u64,
    /// 0: answers aren't followed. Else one more than the number of the method that answers a pending count, or [`NO_PENDING`].
    pub answers: u64,
    /// How many methods are watched.
    pub methods: u64,
    /// For later.
    pub reserved: u64,
}

/// Values of [`Control::closing`].
pub mod closing {
    /// No: this build's agent is the one.
    pub const NO: u64 = 0;
    /// Calls of all connections that are followed are counted here.
    pub const ALL: u64 = 1;
    /// Calls of connections before which a gate stands are counted here; all others by the other build.
    pub const GATED: u64 = 2;
}

/// Of [`Control::answers`]: answers are followed, and none has a pending count.
pub const NO_PENDING: u64 = 256;

impl Control {
    /// No lease.
    pub const ZERO: Self = Self {
        lease: 0,
        attended: 0,
        closing: 0,
        consumed_at: 0,
        watched: 0,
        answers: 0,
        methods: 0,
        reserved: 0,
    };
}

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
    /// It is rejected, if it can be.
    pub const REJECTED: u32 = 3;
    /// How many there are counters for.
    pub const COUNT: usize = 4;
    /// Not counted, and not rejected.
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
    /// Connections whose server has a substitute in its dynamic table.
    pub latched: u64,
    /// Connections that the gate stands before.
    pub gated: u64,
    /// Until when no send of the process may begin, in ns since boot, since the gate joins; 0: it may. Some ms ahead, so that an agent
    /// that dies meanwhile holds nothing.
    pub hold: u64,
    /// Not 0: a send could not be held any longer.
    pub broken: u64,
    /// Fills the struct to a whole cache line.
    pub reserved: u64,
}

impl Slot {
    /// A slot of nothing.
    pub const ZERO: Self = Self {
        calls: [[0; verdict::COUNT]; MAX_PATHS],
        unresolved: 0,
        synced: 0,
        unsynced: 0,
        latched: 0,
        gated: 0,
        hold: 0,
        broken: 0,
        reserved: 0,
    };
}

const _: () = assert!(size_of::<Slot>() == 320);

/// How a call was rejected that was to be answered quietly ([`crate::h2::quiet`]); an index into [`Quieted::calls`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
#[allow(missing_docs, reason = "Manner::name says it")]
pub enum Manner {
    Quiet = 0,
    Enforcer = 1,
    Client = 2,
    UnknownClient = 3,
    Indexed = 4,
    Order = 5,
    Split = 6,
    Answers = 7,
    Full = 8,
    Unwritable = 9,
}

impl Manner {
    /// All, in the order of their numbers.
    pub const ALL: [Self; 10] = [
        Self::Quiet,
        Self::Enforcer,
        Self::Client,
        Self::UnknownClient,
        Self::Indexed,
        Self::Order,
        Self::Split,
        Self::Answers,
        Self::Full,
        Self::Unwritable,
    ];

    /// The `reason` label of `pendguard_rejections_total`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Quiet => "policy",
            Self::Enforcer => "enforcer",
            Self::Client => "client",
            Self::UnknownClient => "unknown_client",
            Self::Indexed => "indexed",
            Self::Order => "order",
            Self::Split => "split",
            Self::Answers => "answers",
            Self::Full => "full",
            Self::Unwritable => "unwritable",
        }
    }

    /// What it means, in a sentence.
    pub const fn help(self) -> &'static str {
        match self {
            Self::Quiet => "it ended as the policy says",
            Self::Enforcer => {
                "a quiet answer was asked for, and the enforcer in use has none: `gate`"
            }
            Self::Client => {
                "a quiet answer was asked for, and the client is none that is known to take it (not `tonic/…` by its user-agent)"
            }
            Self::UnknownClient => {
                "a quiet answer was asked for, and the client's user-agent was not seen: the connection is older than its watch, or this is its first \
                 request"
            }
            Self::Indexed => {
                "a quiet answer was asked for, and the client names the path by an index of the connection's table"
            }
            Self::Order => {
                "a quiet answer was asked for, and the path is not the last one of the request's four pseudo-header fields"
            }
            Self::Split => "a quiet answer was asked for, and the path lies in more than one send",
            Self::Answers => {
                "a quiet answer was asked for, and the connection's answers are not followed"
            }
            Self::Full => {
                "a quiet answer was asked for, and as many quiet calls are under way on the connection as can be"
            }
            Self::Unwritable => {
                "a quiet answer was asked for, and the octet before the path could not be overwritten: the kernel was moving the client's memory"
            }
        }
    }
}

/// What there is of a process's quiet calls, by its slot. Programs add to it atomically; the agent reads and writes it through `mmap`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quieted {
    /// One more than the number of the method whose rejected calls are to be answered quietly; 0: none.
    pub asked: u64,
    /// Rejected calls of that method, by [`Manner`].
    pub calls: [u64; 15],
}

impl Quieted {
    /// None.
    pub const ZERO: Self = Self {
        asked: 0,
        calls: [0; 15],
    };
}

const _: () = assert!(size_of::<Quieted>() == 128 && Manner::ALL.len() <= 15);

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
    Answer = 11,
    Untimed = 12,
}

impl Reason {
    /// All, in the order of their numbers.
    pub const ALL: [Self; 13] = [
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
        Self::Answer,
        Self::Untimed,
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
            Self::Answer => "answer",
            Self::Untimed => "untimed",
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
            Self::Answer => {
                "answers of a connection that could not be followed any further: its calls are counted, not timed"
            }
            Self::Untimed => {
                "a call of a watched method that was counted and not timed: its connection's answers are not followed, or too \
                 many are under way"
            }
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

/// Why a call that should have been rejected was admitted; an index into [`Totals::failures`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
#[allow(missing_docs, reason = "Failure::name says it")]
pub enum Failure {
    Joining = 0,
    Busy = 1,
    Blocking = 2,
    Tcp = 3,
    NoPeer = 4,
    Full = 5,
    Refused = 6,
    Lost = 7,
    Split = 8,
    LongIndex = 9,
    NoSubstitute = 10,
    Unwritable = 11,
    TooMany = 12,
    Lease = 13,
    Candidate = 14,
    NotRestored = 15,
    Unedited = 16,
}

impl Failure {
    /// All, in the order of their numbers.
    pub const ALL: [Self; 17] = [
        Self::Joining,
        Self::Busy,
        Self::Blocking,
        Self::Tcp,
        Self::NoPeer,
        Self::Full,
        Self::Refused,
        Self::Lost,
        Self::Split,
        Self::LongIndex,
        Self::NoSubstitute,
        Self::Unwritable,
        Self::TooMany,
        Self::Lease,
        Self::Candidate,
        Self::NotRestored,
        Self::Unedited,
    ];

    /// The failure of this number.
    #[inline(always)]
    pub const fn of(number: u32) -> Option<Self> {
        // A match, not an index into ALL: a BPF program can't index a constant.
        match number {
            0 => Some(Self::Joining),
            1 => Some(Self::Busy),
            2 => Some(Self::Blocking),
            3 => Some(Self::Tcp),
            4 => Some(Self::NoPeer),
            5 => Some(Self::Full),
            6 => Some(Self::Refused),
            7 => Some(Self::Lost),
            8 => Some(Self::Split),
            9 => Some(Self::LongIndex),
            10 => Some(Self::NoSubstitute),
            11 => Some(Self::Unwritable),
            12 => Some(Self::TooMany),
            13 => Some(Self::Lease),
            14 => Some(Self::Candidate),
            15 => Some(Self::NotRestored),
            16 => Some(Self::Unedited),
            _ => None,
        }
    }

    /// The label of `pendguard_enforcement_failures_total`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Joining => "joining",
            Self::Busy => "busy",
            Self::Blocking => "blocking",
            Self::Tcp => "tcp",
            Self::NoPeer => "no_peer",
            Self::Full => "full",
            Self::Refused => "refused",
            Self::Lost => "lost",
            Self::Split => "split",
            Self::LongIndex => "long_index",
            Self::NoSubstitute => "no_substitute",
            Self::Unwritable => "unwritable",
            Self::TooMany => "too_many",
            Self::Lease => "lease",
            Self::Candidate => "candidate",
            Self::NotRestored => "not_restored",
            Self::Unedited => "unedited",
        }
    }

    /// What it means, in a sentence.
    pub const fn help(self) -> &'static str {
        match self {
            Self::Joining => "the connection was not followed yet, or no gate stood before it yet",
            Self::Busy => "no moment was found in which the gate could safely join the connection",
            Self::Blocking => {
                "the source reads from a blocking socket, before which no gate can stand"
            }
            Self::Tcp => "the gate stands before Unix sockets only",
            Self::NoPeer => "the source's end of the connection was not found",
            Self::Full => {
                "the gate stands before as many connections as it can, or as many sends are being rewritten as can be"
            }
            Self::Refused => "the kernel refused the source's socket",
            Self::Lost => "the connection's place was lost",
            Self::Split => "the path lies in more than one send, or in too many pieces",
            Self::LongIndex => "the path is an index of more than one octet",
            Self::NoSubstitute => "the path has no substitute of its length",
            Self::Unwritable => "the octets could not be read or overwritten",
            Self::TooMany => "one send with more calls than can be rewritten",
            Self::Lease => "no agent has renewed the lease",
            Self::Candidate => "the process was not yet known as a replica's",
            Self::NotRestored => {
                "a call was rejected, and the sender's bytes could not be put back"
            }
            Self::Unedited => {
                "a call was rejected quietly, and its answer may have reached the client as it was: an error to it"
            }
        }
    }
}

/// A [`Failure`], or none, in memory: all zero is none.
#[repr(transparent)]
pub struct Why(Vol<u32>);

impl Why {
    /// None.
    #[inline(always)]
    pub fn clear(&self) {
        self.0.set(0);
    }

    /// This one.
    #[inline(always)]
    pub fn set(&self, why: Failure) {
        self.0.set(why as u32 + 1);
    }

    /// Which, if any.
    #[inline(always)]
    pub fn get(&self) -> Option<Failure> {
        Failure::of(self.0.get().wrapping_sub(1))
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
    /// By [`Failure`].
    pub failures: [u64; 32],
    /// Calls that nobody who watches is told of: the ring buffer was full.
    pub calls_lost: u64,
}

impl Totals {
    /// Nothing counted.
    pub const ZERO: Self = Self {
        unparsed: [0; 16],
        events_lost: 0,
        failures: [0; 32],
        calls_lost: 0,
    };
}

/// Places in the array of programs that continue a send by tail call.
pub mod walks {
    /// `tap_follow`.
    pub const FOLLOW: u32 = 0;
    /// `tap_open`.
    pub const OPEN: u32 = 1;
    /// `mend`.
    pub const MEND: u32 = 2;
    /// `replay`.
    pub const REPLAY: u32 = 3;
    /// `edit_walk`.
    pub const EDIT: u32 = 4;
    /// `answer_begun`.
    pub const BEGUN: u32 = 5;
    /// `answer_walk`.
    pub const ANSWER: u32 = 6;
    /// `answer_join`.
    pub const JOIN: u32 = 7;
    /// `answer_ended`.
    pub const ENDED: u32 = 8;
    /// `answer_quiet`.
    pub const QUIET: u32 = 9;
    /// How many there are.
    pub const COUNT: u32 = 10;
}

/// Places in the array of the gate's programs.
pub mod gates {
    /// `gate_walk`.
    pub const WALK: u32 = 0;
    /// How many there are.
    pub const COUNT: u32 = 1;
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
    /// Its slot, for [`event::EXEC`] and [`event::FORK`]; the descriptor, for [`event::CONNECT`].
    pub slot: u32,
    /// Its generation, but for [`event::EXIT`].
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
    /// A watched process has a new connection, or one that was joined.
    pub const CONNECT: u32 = 4;
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
    unsafe impl aya::Pod for crate::h2::substitute::Substitute {}
    // SAFETY: as above.
    unsafe impl aya::Pod for crate::h2::paths::PathTable {}
    // SAFETY: as above.
    unsafe impl aya::Pod for crate::h2::status::StatusTable {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::answers::HistogramKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::answers::GoneKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::answers::CallEvent {}
}
