//! What is kept of answers: how calls ended, how long they took, and the value that the source told.

use core::mem::offset_of;

use super::ConnKey;
use crate::h2::pending::KEPT;
use crate::h2::walk::Conn;
use crate::vol::{Vol, if_below, masked};

/// Connections whose answers are followed at once.
pub const MAX_ANSWERS: u32 = 4096;
/// Connections at once that were closed while calls were under way, until the agent has accounted for them.
pub const MAX_GONE: u32 = 256;
/// Histograms at once: one a process, method and code. Number 0 is nobody's.
pub const MAX_HISTOGRAMS: u32 = 2048;
/// Bytes of the ring buffer for calls, which is filled only while somebody watches.
pub const CALL_BYTES: u32 = 1024 * 1024;
/// Calls of watched methods that are timed at once on one connection; more are counted, not timed.
pub const UNDER_WAY: usize = 32;
/// Answers that may end before their requests are accounted for, at once on one connection: as many as can be timed. (A send may have them
/// all, and the program that accounts for it may be preempted.)
pub const EARLY: usize = UNDER_WAY;
/// Calls at once on one connection whose method is to be learned from what is answered.
pub const ASKED: usize = 4;
/// Quiet calls ([`crate::h2::quiet`]) that are under way at once on one connection.
pub const QUIET: usize = 32;

const _: () = assert!(CALL_BYTES.is_power_of_two());
const _: () = assert!(
    UNDER_WAY.is_power_of_two()
        && EARLY.is_power_of_two()
        && ASKED.is_power_of_two()
        && QUIET.is_power_of_two()
        && KEPT.is_power_of_two()
);

/// The answers of one connection: where its server's stream stands, and the calls that wait for their ends. The client's sends add
/// calls, its receives take them away, on two CPUs perhaps.
#[repr(C)]
pub struct Answers {
    /// The target's epoch when the connection began.
    pub epoch: u64,
    /// The calls under way, each at the first free place from that of its stream's number on.
    pub calls: [UnderWay; UNDER_WAY],
    /// Answers that ended before their requests were accounted for, at the place of their stream's number.
    pub early: [Early; EARLY],
    /// What the gate made of calls, at the place of their stream's number: the stream in the lower half, the verdict in the upper one.
    pub gated: [Vol<u64>; UNDER_WAY],
    /// Calls under way.
    pub waiting: Vol<u64>,
    /// Octets of the current DATA frame that are still to be kept.
    pub keep: Vol<u32>,
    /// The place of its call; [`UNDER_WAY`] + n: that of [`Answers::asked`]; [`KEEP_QUIET`]: they are not kept, but looked at.
    pub keep_at: Vol<u32>,
    /// Not 0: the server was heard before the client's preface was seen.
    pub unclaimed: Vol<u32>,
    /// Fills up.
    pub reserved: Vol<u32>,
    /// What was answered to the calls under way, by place, of which [`Answers::lens`] octets are there.
    pub messages: [[Vol<u64>; KEPT / 8]; UNDER_WAY],
    /// How many; more than [`KEPT`]: the message is longer.
    pub lens: [Vol<u32>; UNDER_WAY],
    /// Calls whose method isn't known, at the place of their stream's number.
    pub asked: [Asked; ASKED],
    /// The streams of quiet calls whose answers have not been edited yet, each at the place of its number; 0 is none.
    pub quiet: [Vol<u32>; QUIET],
    /// Where the server's stream stands.
    pub conn: Conn,
}

/// In [`Answers::keep_at`]: the answer is a quiet call's.
pub const KEEP_QUIET: u32 = (UNDER_WAY + ASKED) as u32;

impl Answers {
    /// The place of a stream's quiet call.
    #[inline(always)]
    pub fn quiet_of(&self, stream: u32) -> &Vol<u32> {
        &self.quiet[masked(UnderWay::place(stream), QUIET as u32 - 1) as usize]
    }
}

/// A call of a method that isn't known ([`crate::h2::learn`]).
#[repr(C)]
pub struct Asked {
    /// Its stream in the lower half, the candidates in the upper one; 0 is none. Written last, with an exchange.
    pub key: Vol<u64>,
    /// [`Conn::generation`] when it was sent.
    pub generation: Vol<u32>,
    /// Octets of its answer; more than [`KEPT`]: it is longer.
    pub len: Vol<u32>,
    /// They.
    pub message: [Vol<u64>; KEPT / 8],
}

/// A call under way.
#[repr(C)]
pub struct UnderWay {
    /// [`UnderWay::key`]; 0 is none. Written last, with an exchange.
    pub key: Vol<u64>,
    /// When its send had ended, in ns since boot.
    pub start: Vol<u64>,
}

impl UnderWay {
    /// The stream in the lower half, then the method's number, then the verdict.
    #[inline(always)]
    pub const fn key(stream: u32, method: u32, verdict: u32) -> u64 {
        stream as u64 | (method as u64) << 32 | (verdict as u64) << 40
    }

    /// Stream, method and verdict.
    #[inline(always)]
    pub const fn of(key: u64) -> (u32, u32, u32) {
        (
            key as u32,
            (key >> 32) as u32 & 0xff,
            (key >> 40) as u32 & 0xff,
        )
    }

    /// The place of a stream's number.
    #[inline(always)]
    pub const fn place(stream: u32) -> u32 {
        stream / 2
    }
}

/// An answer that ended before its request was accounted for.
#[repr(C)]
pub struct Early {
    /// The stream; 0 is none.
    pub stream: Vol<u32>,
    /// A [`Code`].
    pub code: Vol<u32>,
    /// When it ended, in ns since boot.
    pub at: Vol<u64>,
}

const _: () = assert!(
    size_of::<Answers>()
        == 8 + (28 + KEPT) * UNDER_WAY
            + 16 * EARLY
            + 24
            + (16 + KEPT) * ASKED
            + 4 * QUIET
            + size_of::<Conn>()
);

/// Where [`Answers`]' fields lie, for an agent that reads one as bytes.
pub mod layout {
    use super::{Answers, offset_of};
    /// Of [`Answers::epoch`].
    pub const EPOCH: usize = offset_of!(Answers, epoch);
    /// Of [`Answers::calls`].
    pub const CALLS: usize = offset_of!(Answers, calls);
    /// Of [`Answers::quiet`].
    pub const QUIET: usize = offset_of!(Answers, quiet);
}

/// A connection that was closed while calls were under way.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GoneKey {
    /// It.
    pub key: ConnKey,
    /// When it was closed, in ns since boot.
    pub at: u64,
}

/// What has a histogram: a process's slot, a method and a code.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HistogramKey {
    /// The process's slot.
    pub slot: u32,
    /// The method's number in the upper half, the [`Code`] in the lower one.
    pub what: u32,
}

impl HistogramKey {
    /// Nobody's.
    pub const NONE: Self = Self { slot: 0, what: 0 };

    /// The key of these.
    #[inline(always)]
    pub const fn new(slot: u32, method: u32, code: u32) -> Self {
        Self {
            slot,
            what: method << 16 | code,
        }
    }

    /// Method and code.
    pub const fn of(self) -> (u32, u32) {
        (self.what >> 16, self.what & 0xffff)
    }
}

/// How long calls took. Programs add to it atomically; the agent reads it through `mmap`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Histogram {
    /// The sum of all durations, in ns.
    pub sum: u64,
    /// How many in each bucket ([`bucket`]).
    pub buckets: [u64; BUCKETS],
}

impl Histogram {
    /// Nobody's.
    pub const ZERO: Self = Self {
        sum: 0,
        buckets: [0; BUCKETS],
    };
}

const _: () = assert!(size_of::<Histogram>() == 8 + 8 * BUCKETS);

/// The message of the answer that ended last of a process's calls of one method that has one. Read through `mmap`; whole where
/// [`Message::written`] is the same before and after, and [`Message::lock`] is 0.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Message {
    /// Not 0 while it is written.
    pub lock: u64,
    /// How many were written.
    pub written: u64,
    /// The method's number in the upper half, the message's octets in the lower one.
    pub len: u64,
    /// When it ended, in ns since boot.
    pub at: u64,
    /// The message, as [`crate::h2::pending`] reads it.
    pub octets: [u8; KEPT],
}

impl Message {
    /// None.
    pub const ZERO: Self = Self {
        lock: 0,
        written: 0,
        len: 0,
        at: 0,
        octets: [0; KEPT],
    };
}

const _: () = assert!(size_of::<Message>() == 64);

/// A call that has ended, or that isn't timed: what is told of it while somebody watches.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallEvent {
    /// When its send had ended, in ns since boot.
    pub start: u64,
    /// When its answer ended; 0 where that isn't known.
    pub end: u64,
    /// Its process.
    pub tgid: u32,
    /// The process's slot.
    pub slot: u32,
    /// The connection's descriptor.
    pub fd: u32,
    /// Its stream.
    pub stream: u32,
    /// The method's number.
    pub method: u32,
    /// One of [`super::verdict`].
    pub verdict: u32,
    /// A [`Code`], where `end` isn't 0.
    pub code: u32,
    /// Octets of its message.
    pub len: u32,
    /// The message.
    pub octets: [u8; KEPT],
}

const _: () = assert!(size_of::<CallEvent>() == 48 + KEPT);

/// How a call ended: a gRPC status, or what took its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u32)]
#[allow(missing_docs, reason = "gRPC's own names")]
pub enum Code {
    Ok = 0,
    Cancelled = 1,
    Unknown = 2,
    InvalidArgument = 3,
    DeadlineExceeded = 4,
    NotFound = 5,
    AlreadyExists = 6,
    PermissionDenied = 7,
    ResourceExhausted = 8,
    FailedPrecondition = 9,
    Aborted = 10,
    OutOfRange = 11,
    Unimplemented = 12,
    Internal = 13,
    Unavailable = 14,
    DataLoss = 15,
    Unauthenticated = 16,
    /// The source reset the stream (RFC 9113 §6.4) without a status.
    Reset = 17,
    /// The connection closed before the answer came.
    ConnectionLost = 18,
    /// It ended with a status that can't be known: an index into a part of the source's dynamic table that was sent before
    /// anybody watched.
    Unresolved = 19,
    /// The call was rejected, and the status was OK: a quiet answer ([`crate::h2::quiet`]).
    Quiet = 20,
}

impl Code {
    /// All, in the order of their numbers.
    pub const ALL: [Self; 21] = [
        Self::Ok,
        Self::Cancelled,
        Self::Unknown,
        Self::InvalidArgument,
        Self::DeadlineExceeded,
        Self::NotFound,
        Self::AlreadyExists,
        Self::PermissionDenied,
        Self::ResourceExhausted,
        Self::FailedPrecondition,
        Self::Aborted,
        Self::OutOfRange,
        Self::Unimplemented,
        Self::Internal,
        Self::Unavailable,
        Self::DataLoss,
        Self::Unauthenticated,
        Self::Reset,
        Self::ConnectionLost,
        Self::Unresolved,
        Self::Quiet,
    ];

    /// The code of this number.
    pub fn of(number: u32) -> Option<Self> {
        Self::ALL.get(number as usize).copied()
    }

    /// The `code` label: gRPC's name of the status, or, where there was none, what happened instead.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ok => "OK",
            Self::Cancelled => "CANCELLED",
            Self::Unknown => "UNKNOWN",
            Self::InvalidArgument => "INVALID_ARGUMENT",
            Self::DeadlineExceeded => "DEADLINE_EXCEEDED",
            Self::NotFound => "NOT_FOUND",
            Self::AlreadyExists => "ALREADY_EXISTS",
            Self::PermissionDenied => "PERMISSION_DENIED",
            Self::ResourceExhausted => "RESOURCE_EXHAUSTED",
            Self::FailedPrecondition => "FAILED_PRECONDITION",
            Self::Aborted => "ABORTED",
            Self::OutOfRange => "OUT_OF_RANGE",
            Self::Unimplemented => "UNIMPLEMENTED",
            Self::Internal => "INTERNAL",
            Self::Unavailable => "UNAVAILABLE",
            Self::DataLoss => "DATA_LOSS",
            Self::Unauthenticated => "UNAUTHENTICATED",
            Self::Reset => "RESET",
            Self::ConnectionLost => "CONNECTION_LOST",
            Self::Unresolved => "UNRESOLVED",
            Self::Quiet => "QUIET",
        }
    }
}

/// Steps of a decade: the preferred numbers R40 (ISO 3), in hundredths. Each is at most 8 % above the one before, and
/// 1, 2.5 and 5, which exporters show, are among them.
const STEPS: [u64; 40] = [
    100, 106, 112, 118, 125, 132, 140, 150, 160, 170, 180, 190, 200, 212, 224, 236, 250, 265, 280,
    300, 315, 335, 355, 375, 400, 425, 450, 475, 500, 530, 560, 600, 630, 670, 710, 750, 800, 850,
    900, 950,
];
/// Decades, the first from 10 µs on.
const DECADES: usize = 7;
/// Upper bounds of buckets: 10 µs to 100 s.
pub const BOUNDS: usize = STEPS.len() * DECADES + 1;
/// Buckets: one a bound, and one for what takes longer than 100 s; the rest fills up.
pub const BUCKETS: usize = 288;
/// Places in the table of bounds that programs search: a power of two.
pub const BOUNDS_TABLE: usize = 512;

const _: () = assert!(BOUNDS < BUCKETS && BUCKETS < BOUNDS_TABLE);

/// Upper bounds of the buckets in ns, inclusive as Prometheus' are. Behind the last one lies the largest number, so that a
/// search by halves needs no other end.
pub const BOUNDS_NS: [u64; BOUNDS_TABLE] = {
    let mut bounds = [u64::MAX >> 1; BOUNDS_TABLE];
    let mut unit = 100;
    let mut i = 0;
    while i < BOUNDS {
        bounds[i] = STEPS[i % STEPS.len()] * unit;
        i += 1;
        if i % STEPS.len() == 0 {
            unit *= 10;
        }
    }
    bounds
};

/// The bucket of a duration: how many bounds lie below it, which is below [`BUCKETS`].
#[inline(always)]
pub fn bucket(bounds: &[u64; BOUNDS_TABLE], ns: u64) -> usize {
    // What takes longer than 292 years doesn't matter here, but its sign does.
    let ns = ns & (u64::MAX >> 1);
    let mut at = 0u64;
    let mut half = BOUNDS_TABLE as u64 / 2;
    while half > 0 {
        let bound = bounds[(at + half - 1) as usize & (BOUNDS_TABLE - 1)];
        at += if_below(bound, ns, half);
        half /= 2;
    }
    at as usize & (BOUNDS_TABLE - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_their_numbers() {
        for (number, code) in (0..).zip(Code::ALL) {
            assert_eq!(code as u32, number);
            assert_eq!(Code::of(number), Some(code));
        }
        assert_eq!(Code::of(21), None);
    }

    #[test]
    fn bounds_are_decimal_and_close() {
        assert_eq!(BOUNDS_NS[0], 10_000);
        assert_eq!(BOUNDS_NS[BOUNDS - 1], 100_000_000_000);
        assert_eq!(BOUNDS_NS[BOUNDS], u64::MAX >> 1);
        for pair in BOUNDS_NS[..BOUNDS].windows(2) {
            assert!(
                pair[0] < pair[1] && pair[1] * 100 <= pair[0] * 108,
                "{pair:?}"
            );
        }
        for exported in [10_000, 25_000, 50_000, 1_000_000, 2_500_000, 5_000_000_000] {
            assert!(BOUNDS_NS.contains(&exported), "{exported}");
        }
    }

    #[test]
    fn a_bound_is_in_its_bucket() {
        assert_eq!(bucket(&BOUNDS_NS, 0), 0);
        for (i, &bound) in BOUNDS_NS[..BOUNDS].iter().enumerate() {
            assert_eq!(bucket(&BOUNDS_NS, bound), i);
            assert_eq!(bucket(&BOUNDS_NS, bound + 1), i + 1);
        }
        assert_eq!(bucket(&BOUNDS_NS, u64::MAX >> 1), BOUNDS);
    }
}
