//! What is learned of a connection's dynamic table from the answers of its server, where its beginning was not seen.
//!
//! A client that indexes its paths names them by numbers, and those of entries older than the join mean nothing by themselves. But a
//! source's answers tell its methods apart: a PendingResponse is `0a xx 08 …`, a ReadyResponse `08 01`, a PartitionsResponse
//! `0a xx 0a …`. So it can be *deduced* which entry is the path of PendingFn, without guessing:
//!
//! 1. The path stands among the first four fields of a request ([`PSEUDO`]): there are four pseudo-header fields, they stand
//!    before all others, and none comes twice (RFC 9113 §8.3, §8.3.1). So one of the unknown entries there, the *candidates*, is the path.
//! 2. An entry never changes, and a path has one method. So an entry that was a candidate of a request that was answered by another
//!    method is not the path of PendingFn (it may be `:authority`, or that other path).
//! 3. A request that a PendingResponse answered was PendingFn's. Where all of its candidates but one are excluded, that one is its path.
//!
//! Entries are numbered backwards from the moment since when insertions are counted, which doesn't change when more are inserted.
//! Another such moment (a join, a gap) is another [`Conn::generation`], and what was learned before means nothing.

use super::pending::KEPT;
use super::walk::Conn;
use crate::vol::Vol;

/// Fields of a request among which its path is.
pub const PSEUDO: u32 = 4;
/// Entries of which something is learned at once on one connection: `:authority` and the methods of a source.
pub const LEARNED: usize = 8;
/// Candidates of one request: its path and its `:authority`. One with more teaches nothing.
pub const CANDIDATES: u32 = 2;
/// Old entries beyond which none is learned of. The default table holds 128 at most.
const MAX_OLD: u32 = 0xffe;

/// What an entry was seen as: a candidate of a request that a PendingResponse answered.
const PENDING: u32 = 1;
/// Of one that something else answered: it is not PendingFn's path.
const ELSE: u32 = 2;
/// And it is no other watched path, because no other is watched.
const NOT_WATCHED: u32 = 4;
/// It is PendingFn's path.
const IS: u32 = 8;

/// What a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Answer {
    /// It may be anything.
    Any = 0,
    /// A PendingResponse.
    Pending = 1,
    /// A ReadyResponse or a PartitionsResponse, and so no PendingResponse.
    Else = 2,
}

/// Which message of a source the gRPC message of `len` octets is. One that could be of two types is neither: an empty Result, say.
#[inline(always)]
pub fn answer(len: u32, octet: impl Fn(u32) -> u32) -> Answer {
    // Not compressed, and whole.
    if len < 7
        || len > KEPT as u32
        || octet(0) | octet(1) | octet(2) | octet(3) != 0
        || octet(4) != len - 5
    {
        return Answer::Any;
    }
    // `bool ready = 1`
    if octet(5) == 0x08 {
        return if len == 7 && octet(6) == 1 {
            Answer::Else
        } else {
            Answer::Any
        };
    }
    // `Result result = 1`
    if len < 9 || octet(5) != 0x0a || octet(6) != len - 7 {
        return Answer::Any;
    }
    // `repeated int32 partitions = 1`, packed
    if octet(7) == 0x0a {
        return if len > 9 && octet(8) == len - 9 {
            Answer::Else
        } else {
            Answer::Any
        };
    }
    // `int64 count = 1`
    let octets = len - 8;
    if octet(7) != 0x08 || octets > 10 {
        return Answer::Any;
    }
    let mut i = 0;
    while i < 10 {
        if i >= octets {
            break;
        }
        if octet(8 + i) & 0x80 != 0 && i + 1 == octets
            || octet(8 + i) & 0x80 == 0 && i + 1 != octets
        {
            return Answer::Any;
        }
        i += 1;
    }
    Answer::Pending
}

/// A word of [`Conn::learned`]: the generation, the entry's number plus 1, what it was seen as, and the class that it has.
const fn word(generation: u32, entry: u32, seen: u32, class: u32) -> u64 {
    generation as u64 | (entry as u64) << 32 | (seen as u64) << 48 | (class as u64) << 56
}

/// What it says beside whose it is.
const SAYS: u32 = 48;

/// Whether two words are about the same entry of the same generation.
#[inline(always)]
const fn is_about(word: u64, whose: u64) -> bool {
    (word ^ whose) << (64 - SAYS) == 0
}

/// What is known of an old entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    /// Nothing: it may be a watched path.
    Nothing,
    /// It is no watched path.
    NotWatched,
    /// It is the path of this class.
    Is(u32),
}

/// The candidates of a request: two entries' numbers, each plus 1, of 12 bits. 0: none, or too many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidates(pub u32);

impl Candidates {
    const fn first(self) -> u32 {
        self.0 & 0xfff
    }

    const fn second(self) -> u32 {
        self.0 >> 12 & 0xfff
    }
}

impl Conn {
    /// What has been learned of the entry that was the `old`th, from 0, when insertions began to be counted.
    #[inline(always)]
    pub(super) fn known(&self, old: u32) -> Known {
        if old >= MAX_OLD {
            return Known::Nothing;
        }
        let whose = word(self.generation(), old + 1, 0, 0);
        let mut says = 0;
        let mut i = 0;
        while i < LEARNED {
            let word = self.learned[i].get();
            if is_about(word, whose) {
                says = (word >> SAYS) as u32;
            }
            i += 1;
        }
        if says & IS != 0 {
            Known::Is(says >> 8)
        } else if says & NOT_WATCHED != 0 {
            Known::NotWatched
        } else {
            Known::Nothing
        }
    }

    /// Notes that an old entry is a candidate of the request in progress.
    #[inline(always)]
    pub(super) fn note_candidate(&self, old: u32) {
        let n = self.candidate_count.get();
        if old >= MAX_OLD || n >= CANDIDATES {
            self.note_no_candidates();
            return;
        }
        let before = if n == 0 { 0 } else { self.candidates.get() };
        self.candidates.set(before | (old + 1) << (12 * n));
        self.candidate_count.set(n + 1);
    }

    /// The request in progress teaches nothing: something in it may be the path that has no number.
    #[inline(always)]
    pub(super) fn note_no_candidates(&self) {
        self.candidate_count.set(CANDIDATES + 1);
    }

    /// The candidates of a request whose class is [`super::walk::UNRESOLVED`].
    #[inline(always)]
    pub fn candidates(&self) -> Candidates {
        let n = self.candidate_count.get();
        Candidates(if n == 0 || n > CANDIDATES {
            0
        } else {
            self.candidates.get()
        })
    }

    /// A request with these candidates, sent in that generation, was answered. `class` is PendingFn's; `only`: it is the only watched one.
    #[inline(always)]
    pub fn learn(
        &self,
        generation: u32,
        candidates: Candidates,
        answer: Answer,
        class: u32,
        only: bool,
    ) {
        if answer == Answer::Any || candidates.0 == 0 || generation != self.generation() {
            return;
        }
        let pending = answer == Answer::Pending;
        let seen = if pending {
            PENDING
        } else if only {
            ELSE | NOT_WATCHED
        } else {
            ELSE
        };
        let first = self.see(generation, candidates.first(), seen);
        let second = if candidates.second() == 0 {
            ELSE
        } else {
            self.see(generation, candidates.second(), seen)
        };
        if !pending || first == 0 || second == 0 {
            return;
        }
        if first & ELSE == 0 && second & ELSE != 0 {
            self.is(generation, candidates.first(), class);
        } else if first & ELSE != 0 && second & ELSE == 0 {
            self.is(generation, candidates.second(), class);
        }
    }

    /// The place of an entry, which it gets if it has none; or [`LEARNED`].
    #[inline(always)]
    fn place(&self, generation: u32, entry: u32) -> usize {
        let whose = word(generation, entry, 0, 0);
        let mut at = LEARNED;
        let mut free = LEARNED;
        let mut i = 0;
        while i < LEARNED {
            let word = self.learned[i].get();
            if is_about(word, whose) {
                at = i;
            } else if word as u32 != generation || word >> 32 == 0 {
                free = i;
            }
            i += 1;
        }
        if at < LEARNED { at } else { free }
    }

    /// Notes what an entry was seen as. Returns all that it was, 0 where there is no room.
    #[inline(always)]
    fn see(&self, generation: u32, entry: u32, seen: u32) -> u32 {
        let at = self.place(generation, entry);
        if at >= LEARNED {
            return 0;
        }
        let place = &self.learned[at & (LEARNED - 1)];
        let whose = word(generation, entry, 0, 0);
        let before = place.get();
        let mut says = if is_about(before, whose) {
            (before >> SAYS) as u32
        } else {
            0
        };
        says |= seen;
        if says & ELSE != 0 {
            // Also of what was taken for PendingFn's path: then one of the two answers came from no source.
            says &= 0xff & !IS;
        }
        place.set(word(generation, entry, says & 0xff, says >> 8));
        says
    }

    /// Notes that an entry is PendingFn's path.
    #[inline(always)]
    fn is(&self, generation: u32, entry: u32, class: u32) {
        let at = self.place(generation, entry);
        if at < LEARNED {
            let place: &Vol<u64> = &self.learned[at & (LEARNED - 1)];
            place.set(word(generation, entry, PENDING | IS, class));
        }
    }
}

const _: () = assert!(LEARNED.is_power_of_two());

#[cfg(test)]
mod tests {
    use super::*;

    fn of(octets: &[u8]) -> Answer {
        answer(octets.len() as u32, |at| {
            octets.get(at as usize).copied().unwrap_or_default().into()
        })
    }

    #[test]
    fn messages_of_a_source() {
        for (octets, expected) in [
            (&b"\0\0\0\0\x04\x0a\x02\x08\x05"[..], Answer::Pending),
            (b"\0\0\0\0\x05\x0a\x03\x08\x80\x01", Answer::Pending),
            (
                b"\0\0\0\0\x0d\x0a\x0b\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
                Answer::Pending,
            ),
            (b"\0\0\0\0\x02\x08\x01", Answer::Else),
            (b"\0\0\0\0\x05\x0a\x03\x0a\x01\0", Answer::Else),
            (b"\0\0\0\0\x07\x0a\x05\x0a\x03\0\x01\x02", Answer::Else),
            // A count of 0, or no partitions; an AckResponse; no result; not ready.
            (b"\0\0\0\0\x02\x0a\0", Answer::Any),
            (b"\0\0\0\0\x04\x0a\x02\x0a\0", Answer::Any),
            (b"\0\0\0\0\0", Answer::Any),
            // Compressed, cut, too long, more behind it, a number without an end, one that ends twice.
            (b"\x01\0\0\0\x04\x0a\x02\x08\x05", Answer::Any),
            (b"\0\0\0\0\x05\x0a\x02\x08\x05", Answer::Any),
            (b"\0\0\0\0\x03\x0a\x02\x08\x05", Answer::Any),
            (b"\0\0\0\0\x06\x0a\x02\x08\x05\x10\x01", Answer::Any),
            (b"\0\0\0\0\x04\x0a\x02\x08\x85", Answer::Any),
            (b"\0\0\0\0\x05\x0a\x03\x08\x05\x01", Answer::Any),
            (b"", Answer::Any),
        ] {
            assert_eq!(of(octets), expected, "{octets:x?}");
        }
    }

    const CLASS: u32 = 2;

    fn asked(first: u32, second: Option<u32>) -> Candidates {
        Candidates((first + 1) | (second.map_or(0, |entry| entry + 1) << 12))
    }

    /// The path of PendingFn is 3, that of IsReady 5, `:authority` is 4.
    #[test]
    fn the_one_that_is_left_is_the_path() {
        let conn = Conn::new();
        let learn = |candidates, answer| conn.learn(0, candidates, answer, CLASS, true);
        learn(asked(3, Some(4)), Answer::Pending);
        learn(asked(3, Some(4)), Answer::Pending);
        assert_eq!(conn.known(3), Known::Nothing, "it may be :authority");
        learn(asked(5, Some(4)), Answer::Any);
        learn(asked(3, Some(4)), Answer::Pending);
        assert_eq!(conn.known(3), Known::Nothing, "nothing was said");
        learn(asked(5, Some(4)), Answer::Else);
        assert_eq!(conn.known(4), Known::NotWatched);
        assert_eq!(conn.known(5), Known::NotWatched);
        learn(asked(3, Some(4)), Answer::Pending);
        assert_eq!(conn.known(3), Known::Is(CLASS));
        assert_eq!(conn.known(2), Known::Nothing);
        // And whatever was learned of another table means nothing.
        conn.forget_table();
        assert_eq!(conn.known(3), Known::Nothing);
        conn.learn(0, asked(3, None), Answer::Pending, CLASS, true);
        assert_eq!(conn.known(3), Known::Nothing);
    }

    #[test]
    fn where_more_is_watched_another_path_is_not_excluded() {
        let conn = Conn::new();
        conn.learn(0, asked(5, Some(4)), Answer::Else, CLASS, false);
        conn.learn(0, asked(4, Some(3)), Answer::Pending, CLASS, false);
        assert_eq!(conn.known(3), Known::Is(CLASS));
        assert_eq!(conn.known(5), Known::Nothing);
        // It was none: what has been said of both can't be.
        conn.learn(0, asked(3, Some(4)), Answer::Else, CLASS, false);
        conn.learn(0, asked(3, Some(4)), Answer::Pending, CLASS, false);
        assert_eq!(conn.known(3), Known::Nothing);
    }

    #[test]
    fn where_there_is_no_room_nothing_is_learned() {
        let conn = Conn::new();
        for entry in 0..LEARNED as u32 {
            conn.learn(0, asked(entry, None), Answer::Else, CLASS, true);
        }
        conn.learn(0, asked(100, None), Answer::Pending, CLASS, true);
        assert_eq!(conn.known(100), Known::Nothing);
        assert_eq!(conn.known(0), Known::NotWatched);
    }
}
