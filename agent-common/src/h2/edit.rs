//! The walk of an enforcer: [`walk::step`], and where it has just passed the path of a call that is to be rejected, the
//! octets are overwritten in place ([`super::substitute`]).
//!
//! A literal becomes the substitute's literal; if the client inserts it in the dynamic table, the server's entry is the
//! substitute from then on, and the connection is *latched*: later calls by that index are rejected by the server
//! itself. An index of one octet that names an entry from before becomes `:path: /`.

use super::journal::{id_of, spelling_of};
use super::paths::Paths;
use super::quiet;
use super::substitute::{INDEX, SPELLINGS, Spelling, Substitute};
use super::walk::{self, Conn, LATCHED, Outcome, Source, UNRESOLVED, WATCHED};
use crate::abi::{Failure, Manner, Why};
use crate::vol::{Vol, masked};

/// No place: the one before it is none either, as the lowest page is nobody's.
const NOWHERE: u64 = u64::MAX;

/// Places in which a path may lie within one send: a sender may hand it over in pieces.
pub const SEGMENTS: usize = 4;

/// Where the octets of the path in progress lie.
#[repr(C)]
pub struct Segments {
    /// Where each piece begins.
    place: [Vol<u64>; SEGMENTS],
    /// Its first octet's position in the path.
    from: [Vol<u32>; SEGMENTS],
    /// Pieces; [`SEGMENTS`] + 1: more than there is room for.
    count: Vol<u32>,
    /// Why the last watched path was not substituted.
    failed: Why,
    /// One of [`found`].
    found: Vol<u32>,
    /// Fills up.
    reserved: Vol<u32>,
    /// Where the index lies that was found.
    index: Vol<u64>,
    /// Where the first octet of the last string's length lies; 0: in no send that can be reached.
    length: Vol<u64>,
}

/// What a step has passed.
mod found {
    pub const NOTHING: u32 = 0;
    pub const LITERAL: u32 = 1;
    pub const INDEX: u32 = 2;
    pub const LONG_INDEX: u32 = 3;
    pub const LATCHED: u32 = 4;
}

impl Segments {
    /// Whether the last step passed a watched path.
    #[inline(always)]
    pub fn found(&self) -> bool {
        self.found.get() != found::NOTHING
    }

    /// Forgets the pieces: another send begins, in which what was sent before can't be reached.
    #[inline(always)]
    pub fn forget(&self) {
        self.count.set(0);
        self.length.set(NOWHERE);
        self.found.set(found::NOTHING);
    }

    /// Where the length of the path that was found lies, if that is one octet right before it and all of it lies in this send.
    #[inline(always)]
    pub(super) fn length(&self) -> Option<u64> {
        let length = self.length.get();
        let whole = self.from[0].get() == 0 && self.behind_length() == self.first();
        (length != NOWHERE && whole).then_some(length)
    }

    /// Where a string begins whose length is one octet, the one that was passed last.
    #[inline(always)]
    pub(super) fn behind_length(&self) -> u64 {
        self.length.get().wrapping_add(1)
    }

    /// Where the path in progress begins within this send, if any of it lies there.
    #[inline(always)]
    pub fn first(&self) -> u64 {
        self.place[0].get()
    }

    /// Whether any of the path in progress lies in this send.
    #[inline(always)]
    pub(super) fn begun(&self) -> bool {
        self.count.get() != 0
    }

    /// Where the watched path begins that the last step passed, and whether it is a literal; [`Segments::found`] is over.
    #[inline(always)]
    pub(super) fn take(&self) -> Option<(u64, bool)> {
        let found = self.found.get();
        self.found.set(found::NOTHING);
        match found {
            found::LITERAL => Some((self.first(), true)),
            found::INDEX => Some((self.index.get(), false)),
            _ => None,
        }
    }

    /// Why the watched path of the request that just ended was not substituted, where it should have been.
    #[inline(always)]
    pub fn failure(&self) -> Option<Failure> {
        self.failed.get()
    }

    #[inline(always)]
    fn fail(&self, why: Failure) {
        self.failed.set(why);
    }

    /// The next octet of the path, `at` octets from its beginning, lies at `place`.
    #[inline(always)]
    fn note(&self, at: u32, place: u64) {
        let n = self.count.get();
        if at == 0 || n == 0 {
            self.place[0].set(place);
            self.from[0].set(at);
            self.count.set(1);
            return;
        }
        if n > SEGMENTS as u32 {
            return;
        }
        let last = masked(n - 1, SEGMENTS as u32 - 1) as usize;
        if self.place[last].get() + (at - self.from[last].get()) as u64 == place {
            return;
        }
        if n < SEGMENTS as u32 {
            let next = masked(n, SEGMENTS as u32 - 1) as usize;
            self.place[next].set(place);
            self.from[next].set(at);
        }
        self.count.set(n + 1);
    }
}

const _: () = assert!(SEGMENTS.is_power_of_two());

/// A source that knows where its bytes lie.
///
/// Its [`Source::RUN`] must be 1, so that an index is a step of its own.
pub trait Placed: Source {
    /// Where the next byte lies, in the enforcer's own terms (an address, an offset).
    fn place(&self) -> u64;
}

/// Bytes that can be overwritten where [`Placed`] says that they lie. Spellings have the ids of [`id_of`].
pub trait Edit {
    /// What watched path `number` is overwritten with.
    fn substitute(&self, number: u32) -> Option<&Substitute>;
    /// Whether the call whose path begins at `place` is to be rejected; `begun`: an earlier part of it was.
    fn reject(&self, place: u64, begun: bool) -> bool;
    /// Overwrites the octets from `place` on with octets `from` to `end` of the substitute's spelling.
    fn literal(&self, place: u64, spelling: Named<'_>, from: u32, end: u32) -> Result<(), Failure>;
    /// Puts octets `from` to `end` of the watched path's spelling back. `false`: it could not.
    fn undo(&self, place: u64, spelling: Named<'_>, from: u32, end: u32) -> bool;
    /// All that was overwritten of this path has been put back.
    #[inline(always)]
    fn undone(&self) {}
    /// Overwrites the octet at `place`, an index.
    fn index(&self, place: u64, octet: u8) -> Result<(), Failure>;
    /// Whether rejected calls of watched path `number` are to be answered quietly.
    #[inline(always)]
    fn asked(&self, number: u32) -> bool {
        let _ = number;
        false
    }
    /// Whether the answer on this stream can be edited: [`quiet::code`].
    #[inline(always)]
    fn answerable(&self, stream: u32) -> u32 {
        let _ = stream;
        quiet::code(Manner::Enforcer)
    }
    /// Overwrites the octet at `place`, a path's length, which is `was`.
    #[inline(always)]
    fn length(&self, place: u64, was: u8, octet: u8) -> Result<(), Failure> {
        let _ = (place, was, octet);
        Err(Failure::Unwritable)
    }
    /// The call whose path begins at `place` was rejected; of an index the id means nothing. `manner` is [`quiet::code`], or 0 where
    /// nobody has [`asked`](Self::asked).
    #[inline(always)]
    fn rejected(&self, place: u64, id: u32, manner: u32) {
        let _ = (place, id, manner);
    }
}

/// A spelling and its id.
#[derive(Clone, Copy)]
pub struct Named<'a> {
    /// See [`id_of`].
    pub id: u32,
    /// It.
    pub spelling: &'a Spelling,
}

/// [`walk::step`]. Where it has passed a watched path, [`Segments::found`] says so, and [`apply`] must follow before the next
/// step. (In one function, a verifier would walk all of it at each step.)
#[inline(always)]
pub fn step<S: Placed, P: Paths>(
    c: &Conn,
    s: &S,
    segments: &Segments,
    p: &P,
    strict: bool,
) -> Outcome {
    let before = c.path.get();
    let place = s.place();
    let literal = c.in_candidate();
    if let Some(at) = literal
        && s.ready() != 0
    {
        segments.note(at, place);
    }
    let one = c.at_field();
    let length = c.at_length();
    let outcome = walk::step(c, s, p, strict);
    if length {
        segments.length.set(place);
    } else if one && c.before_string() {
        segments.length.set(place.wrapping_add(1));
    }
    let after = c.path.get();
    if after != before && (WATCHED..UNRESOLVED).contains(&after) {
        segments.found.set(if after >= LATCHED {
            found::LATCHED
        } else if literal.is_some() {
            found::LITERAL
        } else if one {
            segments.index.set(place);
            found::INDEX
        } else {
            found::LONG_INDEX
        });
    }
    outcome
}

/// Rejects the call whose path was found, if it is to be: its class becomes [`LATCHED`] + n. It is that already where the
/// path is an entry of the table that was substituted: that call can't be admitted any more.
#[inline(always)]
pub fn apply<S: Edit>(c: &Conn, s: &S, segments: &Segments) {
    let kind = segments.found.get();
    segments.found.set(found::NOTHING);
    segments.failed.clear();
    let path = c.path.get();
    if !(WATCHED..LATCHED).contains(&path) {
        return;
    }
    match kind {
        found::LITERAL => {
            let begun = c.is_substituted();
            if s.reject(segments.first(), begun) {
                let number = path - WATCHED;
                let manner = manner(c, s, segments, number);
                match substitute(c, s, segments, number, manner) {
                    Ok((id, manner)) => {
                        c.set_latched(true);
                        s.rejected(segments.first(), id, manner);
                    }
                    Err(why) => segments.fail(why),
                }
            }
        }
        found::INDEX => {
            let place = segments.index.get();
            if s.reject(place, false) {
                match s.index(place, INDEX) {
                    Ok(()) => {
                        c.set_latched(false);
                        let manner = if s.asked(path - WATCHED) {
                            quiet::code(Manner::Indexed)
                        } else {
                            0
                        };
                        s.rejected(place, 0, manner);
                    }
                    Err(why) => segments.fail(why),
                }
            }
        }
        _ => {
            if s.reject(0, false) {
                segments.fail(Failure::LongIndex);
            }
        }
    }
}

/// Behind the last step of a send that is walked before it is sent: where it ends within a path of which a part was sent substituted
/// ([`Journal::cut`](super::journal::Journal::cut)), so are the octets of this send.
#[inline(always)]
pub fn finish<S: Edit>(c: &Conn, s: &S, segments: &Segments) {
    segments.failed.clear();
    if let Some(at) = c.unfinished()
        && c.is_substituted()
        && segments.begun()
    {
        let id = c.substituted_by();
        let (number, coding) = spelling_of(id);
        let result = match s.substitute(number) {
            Some(substitute) => {
                let spelling = &substitute.spellings[coding];
                overwrite(s, segments, Named { id, spelling }, at)
            }
            None => Err(Failure::NoSubstitute),
        };
        if let Err(why) = result {
            segments.fail(why);
        }
    }
}

/// How the call whose literal was just passed is to be answered: [`quiet::code`], or 0 where nobody asks.
#[inline(always)]
fn manner<S: Edit>(c: &Conn, s: &S, segments: &Segments, number: u32) -> u32 {
    let begun = c.is_substituted();
    if begun && spelling_of(c.substituted_by()).1 >= quiet::CODING {
        return quiet::code(Manner::Quiet);
    }
    if !s.asked(number) {
        return 0;
    }
    if begun {
        return quiet::code(Manner::Split);
    }
    match quiet::obstacle(c, segments.length().is_some()) {
        Some(why) => quiet::code(why),
        None => s.answerable(c.stream.get()),
    }
}

/// Overwrites the literal that was just passed. Returns the spelling's id, and the manner in which it is rejected after all.
#[inline(always)]
fn substitute<S: Edit>(
    c: &Conn,
    s: &S,
    segments: &Segments,
    number: u32,
    manner: u32,
) -> Result<(u32, u32), Failure> {
    let Some(substitute) = s.substitute(number) else {
        return Err(Failure::NoSubstitute);
    };
    let begun = c.is_substituted();
    let quietly = !begun && manner == quiet::code(Manner::Quiet);
    let coding = if begun {
        spelling_of(c.substituted_by()).1
    } else if quietly {
        quiet::CODING + c.was_huffman() as usize
    } else {
        c.was_huffman() as usize
    };
    let spelling = &substitute.spellings[masked(coding as u32, SPELLINGS as u32 - 1) as usize];
    let id = id_of(number, coding);
    if spelling.len == 0 {
        return Err(Failure::NoSubstitute);
    }
    if segments.from[0].get() > spelling.first && !begun {
        return Err(Failure::Split);
    }
    let named = Named { id, spelling };
    overwrite(s, segments, named, spelling.len)?;
    if quietly {
        // Last, so that there is nothing to undo of it.
        let length = quiet::length(spelling.len, c.was_huffman());
        if let Err(why) = s.length(segments.length.get(), length, quiet::shorter(length)) {
            if c.was_huffman() {
                // With the length that it had it is a path that no source serves, too ([`quiet`]).
                return Ok((id, quiet::code(Manner::Unwritable)));
            }
            undo(s, segments, named, spelling.len, SEGMENTS);
            return Err(why);
        }
    }
    Ok((id, manner))
}

/// Overwrites the octets that lie in this send, of which the last one is the path's `end`th.
#[inline(always)]
fn overwrite<S: Edit>(
    s: &S,
    segments: &Segments,
    named: Named<'_>,
    end: u32,
) -> Result<(), Failure> {
    let n = segments.count.get();
    if n > SEGMENTS as u32 {
        return Err(Failure::Split);
    }
    let piece = |i: usize| piece(segments, named.spelling, i, n, end);
    let mut i = 0;
    let mut result = Ok(());
    while i < SEGMENTS {
        // Masked, so that the two limits stay two: the smaller one alone says nothing to 6.1's verifier.
        if masked(i as u32, 7) >= n {
            break;
        }
        if let Some((place, from, end)) = piece(i)
            && let Err(why) = s.literal(place, named, from, end)
        {
            result = Err(why);
            break;
        }
        i += 1;
    }
    if result.is_err() {
        undo(s, segments, named, end, i);
    }
    result
}

/// Puts the pieces back, up to number `last`. All or nothing: half a substitute is no Huffman code.
#[inline(always)]
fn undo<S: Edit>(s: &S, segments: &Segments, named: Named<'_>, end: u32, last: usize) {
    let n = segments.count.get();
    let (mut k, mut left) = (0, 0);
    while k < SEGMENTS {
        if k > last || masked(k as u32, 7) >= n {
            break;
        }
        if let Some((place, from, end)) = piece(segments, named.spelling, k, n, end) {
            left |= !s.undo(place, named, from, end) as u32;
        }
        k += 1;
    }
    if left == 0 {
        s.undone();
    }
}

/// What piece `i` of `n` holds of the octets that differ, before the `last`: where, from which on, and up to which.
#[inline(always)]
fn piece(
    segments: &Segments,
    spelling: &Spelling,
    i: usize,
    n: u32,
    last: u32,
) -> Option<(u64, u32, u32)> {
    let at = masked(i as u32, SEGMENTS as u32 - 1) as usize;
    let begin = segments.from[at].get();
    let behind = if i as u32 + 1 < n {
        segments.from[masked(i as u32 + 1, SEGMENTS as u32 - 1) as usize].get()
    } else {
        last
    };
    let from = if begin > spelling.first {
        begin
    } else {
        spelling.first
    };
    let end = if behind < spelling.end {
        behind
    } else {
        spelling.end
    };
    if from >= end {
        return None;
    }
    Some((segments.place[at].get() + (from - begin) as u64, from, end))
}
