//! What is kept of answers: how calls ended, how long they took, and the value that the source told.

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
}

impl Code {
    /// All, in the order of their numbers.
    pub const ALL: [Self; 20] = [
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
        }
    }
}

/// Steps of a decade: the preferred numbers R20 (ISO 3), in hundredths. Each is at most 13 % above the one before, and
/// 1, 2.5 and 5, which exporters show, are among them.
const STEPS: [u64; 20] = [
    100, 112, 125, 140, 160, 180, 200, 224, 250, 280, 315, 355, 400, 450, 500, 560, 630, 710, 800,
    900,
];
/// Decades, the first from 10 µs on.
const DECADES: usize = 7;
/// Upper bounds of buckets: 10 µs to 100 s.
pub const BOUNDS: usize = STEPS.len() * DECADES + 1;
/// Buckets: one a bound, and one for what takes longer than 100 s; the rest fills up.
pub const BUCKETS: usize = 144;
/// Places in the table of bounds that programs search: a power of two.
pub const BOUNDS_TABLE: usize = 256;

const _: () = assert!(BOUNDS < BUCKETS && BUCKETS < BOUNDS_TABLE);

/// Upper bounds of the buckets in ns, inclusive as Prometheus' are. Behind the last one lies the largest number, so that a
/// search by halves needs no other end.
pub const BOUNDS_NS: [u64; BOUNDS_TABLE] = {
    let mut bounds = [u64::MAX; BOUNDS_TABLE];
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

/// The bucket of a duration: how many bounds lie below it.
#[inline(always)]
pub fn bucket(bounds: &[u64; BOUNDS_TABLE], ns: u64) -> usize {
    let mut at = 0;
    let mut half = BOUNDS_TABLE / 2;
    while half > 0 {
        if bounds[(at + half - 1) & (BOUNDS_TABLE - 1)] < ns {
            at += half;
        }
        half /= 2;
    }
    if at < BUCKETS { at } else { BUCKETS - 1 }
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
        assert_eq!(Code::of(20), None);
    }

    #[test]
    fn bounds_are_decimal_and_close() {
        assert_eq!(BOUNDS_NS[0], 10_000);
        assert_eq!(BOUNDS_NS[BOUNDS - 1], 100_000_000_000);
        assert_eq!(BOUNDS_NS[BOUNDS], u64::MAX);
        for pair in BOUNDS_NS[..BOUNDS].windows(2) {
            assert!(
                pair[0] < pair[1] && pair[1] * 100 <= pair[0] * 114,
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
        assert_eq!(bucket(&BOUNDS_NS, u64::MAX), BOUNDS);
    }
}
