//! The streaming state machine: one step passes one token of a client's byte stream.
//!
//! A token is a frame header, a header field's first octet, an octet of an integer, a piece of a string, or a run
//! of bytes that need not be looked at. A step may stop after any octet, so a stream may be cut anywhere.
//! All state that outlives a step is in [`Conn`], in memory (see [`crate::vol`]).

use core::mem::offset_of;

use super::frame::{HEAD, Head, PREFACE, flag, kind};
use super::learn::{CANDIDATES, Known, LEARNED, PSEUDO};
use super::paths::{MAX_PATHS, Paths};
use crate::vol::Vol;

/// Insertions into the dynamic table whose meaning is remembered. A table of 4,096 octets, the default
/// (RFC 9113 §6.5.2), holds at most 128 entries, since each counts 32 octets and more (RFC 7541 §4.1).
pub const RING: usize = 128;
/// Octets in a header block beyond which it is given up: no gRPC client sends as much, and a chain of CONTINUATION
/// frames could go on for ever. Their frame headers count as well, so a chain of empty ones ends too.
pub const MAX_BLOCK: u32 = 64 * 1024;
/// Octets of a string that one step compares: a whole watched path, mostly.
const COMPARE: u32 = 32;
/// What a path turned out to be: nothing known (yet).
pub const NONE: u32 = 0;
/// A path that isn't watched.
pub const OTHER: u32 = 1;
/// The first watched path; the others follow.
pub const WATCHED: u32 = 2;
/// The first watched path that was substituted (see [`super::edit`]); the others follow. In the dynamic table it is an
/// entry that the server knows as the substitute: the connection is *latched*.
pub const LATCHED: u32 = WATCHED + MAX_PATHS as u32;
/// A request whose path, or an entry of the table whose name, was an index that can't be known.
pub const UNRESOLVED: u32 = 255;

/// Where a step left the stream.
pub mod phase {
    #![allow(missing_docs)]
    pub const PREFACE: u32 = 0;
    pub const HEAD: u32 = 1;
    pub const SKIP: u32 = 2;
    pub const PAD_LENGTH: u32 = 3;
    pub const BLOCK: u32 = 4;
}

/// Where a step left the header block.
mod field {
    pub const START: u32 = 0;
    pub const INTEGER: u32 = 1;
    pub const STRING: u32 = 2;
    pub const BODY: u32 = 3;
}

/// What a client says that it is, in the field `user-agent`.
pub mod agent {
    /// It has said nothing yet, or that was not seen.
    pub const UNKNOWN: u32 = 0;
    /// The gRPC client of Rust: `tonic/…`.
    pub const TONIC: u32 = 1;
    /// Something else, at least once.
    pub const OTHER: u32 = 2;
}

/// What an integer (RFC 7541 §5.1) stands for.
mod integer {
    pub const INDEXED: u32 = 0;
    pub const NAME: u32 = 1;
    pub const TABLE_SIZE: u32 = 2;
    pub const LENGTH: u32 = 3;
}

/// Why a stream can't be followed any further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Fault {
    /// The connection preface was broken off.
    Preface = 1,
    /// A frame header that no client may send (RFC 9113 §6).
    Frame = 2,
    /// A header block that another frame interrupts, or a CONTINUATION of none (RFC 9113 §6.10).
    Continuation = 3,
    /// More padding than payload (RFC 9113 §6.1, §6.2).
    Padding = 4,
    /// An integer of more than 28 bits, or index 0 (RFC 7541 §5.1, §6.1).
    Integer = 5,
    /// A header block that ends within a field (RFC 7541 §4).
    Truncated = 6,
    /// A header block of more than [`MAX_BLOCK`] octets.
    BlockSize = 7,
}

impl Fault {
    /// The fault of this number; a number that is none means [`Fault::Frame`]. A BPF program hands a fault on as a
    /// number, since an enum of an enum would go over the stack.
    #[inline(always)]
    pub const fn of(number: u32) -> Self {
        match number {
            1 => Self::Preface,
            3 => Self::Continuation,
            4 => Self::Padding,
            5 => Self::Integer,
            6 => Self::Truncated,
            7 => Self::BlockSize,
            _ => Self::Frame,
        }
    }
}

/// What one step found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing to report.
    Continue,
    /// The next octet is needed, and [`Source::ready`] is 0.
    Starved,
    /// A request's header block ended. Its class is in [`Conn::path`].
    Request,
    /// The header of a RST_STREAM frame was passed: [`Conn::stream`] is over.
    Reset,
    /// Of a server only: the header of a DATA frame was passed. [`Conn::stream`] has [`Conn::count`] octets of payload here.
    Data,
    /// Of a server only: a header block ended on [`Conn::stream`]. What it says of the status is in [`Conn::path`].
    Block,
    /// The stream can't be followed from here.
    Fault(Fault),
}

/// Where the bytes of a stream come from.
///
/// A source has two lengths: what is *left* of the current piece, and how much of that can be *read* now. Bulk data
/// is passed without being read, which is why they differ: in the kernel, reading is a copy from user memory.
pub trait Source {
    /// Fields of one octet that one step passes at most.
    const RUN: u32 = 8;

    /// Bytes from here to the end of the piece.
    fn left(&self) -> u32;
    /// Bytes of these that [`Source::peek`] reaches.
    fn ready(&self) -> u32;
    /// The byte `at` bytes ahead; `at < ready()`. Anything beyond reads as an arbitrary byte, never as a crash.
    fn peek(&self, at: u32) -> u8;
    /// Goes on by `n` bytes; `n <= left()`.
    fn pass(&self, n: u32);
}

/// The state of one direction of one connection between two steps.
///
/// All zero is a connection of which nothing was seen.
#[repr(C, align(8))]
pub struct Conn {
    /// One of [`phase`].
    pub phase: Vol<u32>,
    /// One of `track`'s states.
    pub status: Vol<u32>,
    /// Bytes to pass in [`phase::SKIP`], and octets had of a preface or frame header otherwise.
    pub count: Vol<u32>,
    /// The phase after [`phase::SKIP`].
    then: Vol<u32>,
    /// Octets of a frame header that a piece's end cut off.
    head: [Vol<u8>; 16],
    /// Payload octets of the header block fragment that are still to come, padding excluded.
    fragment: Vol<u32>,
    /// Padding behind the fragment.
    padding: Vol<u32>,
    /// Flags of the frame in progress.
    flags: Vol<u32>,
    /// Stream of the frame in progress, or of the one that an outcome tells of.
    pub stream: Vol<u32>,
    /// Stream whose header block waits for CONTINUATION, or 0.
    open_block: Vol<u32>,
    /// Highest stream on which a request began; 0: none yet.
    pub last_stream: Vol<u32>,
    /// Octets of the header block so far, and of the frame headers within it.
    block: Vol<u32>,
    /// One of [`field`].
    field: Vol<u32>,
    /// One of [`integer`].
    integer: Vol<u32>,
    value: Vol<u32>,
    shift: Vol<u32>,
    /// Of the field in progress: [`INSERT`], [`NAME_IS_PATH`], [`IN_NAME`], [`NAME_UNKNOWN`].
    role: Vol<u32>,
    huffman: Vol<u32>,
    string_left: Vol<u32>,
    string_at: Vol<u32>,
    /// Candidates of [`Paths`] that the string in progress may still be.
    mask: Vol<u32>,
    /// What the block's path is: [`NONE`], [`OTHER`], [`WATCHED`] + n, [`UNRESOLVED`].
    pub path: Vol<u32>,
    /// Of the block: [`UNKNOWN`], [`OPEN`], [`EXCLUDED`].
    unknown: Vol<u32>,
    /// Set where a request's stream was not the one after the last: something was sent unseen.
    /// Holds how many insertions were forgotten for it.
    pub gap: Vol<u32>,
    /// 1 once an insertion was a substitute.
    latched: Vol<u32>,
    /// Insertions into the dynamic table since it is known.
    inserted: Vol<u32>,
    /// What the string in progress is substituted with ([`super::journal::id_of`]), where [`SUBSTITUTED`] is set.
    substitute: Vol<u32>,
    /// Fields of the block that have been passed.
    fields: Vol<u32>,
    /// Since when insertions are counted: another number for each such moment.
    generation: Vol<u32>,
    /// Old entries that may be the block's path, and how many.
    pub(super) candidates: Vol<u32>,
    pub(super) candidate_count: Vol<u32>,
    /// What the client says that it is: one of [`agent`].
    agent: Vol<u32>,
    /// Fills up.
    reserved: Vol<u32>,
    ring: [Vol<u8>; RING],
    /// What has been learned of entries that are older than that moment.
    pub(super) learned: [Vol<u64>; LEARNED],
}

const _: () = assert!(size_of::<Conn>() == 272 + 8 * LEARNED);
const _: () = assert!(RING.is_power_of_two());

/// The field is inserted in the dynamic table.
const INSERT: u32 = 1;
/// Its name is `:path`.
const NAME_IS_PATH: u32 = 2;
/// The string in progress is its name.
const IN_NAME: u32 = 4;
/// Its name is an index that can't be known: it may be `:path`.
const NAME_UNKNOWN: u32 = 8;
/// Octets of the string in progress were sent substituted: the rest must be as well, or the string is none.
const SUBSTITUTED: u32 = 16;
/// Its name is `user-agent`.
const NAME_IS_AGENT: u32 = 32;

/// `user-agent` in the static table (RFC 7541 appendix A).
const USER_AGENT: u32 = 58;

/// The block refers to an entry that isn't known.
const UNKNOWN: u32 = 1;
/// One where its path may be, of which nothing was learned either.
const OPEN: u32 = 2;
/// One where its path may be, which is no watched one.
const EXCLUDED: u32 = 4;

impl Conn {
    /// A connection of which nothing was seen.
    pub const fn new() -> Self {
        // SAFETY: every field is a `Vol` of an integer, for which all zero is a value.
        unsafe { core::mem::zeroed() }
    }

    /// Becomes what `from` is.
    #[inline(always)]
    pub fn copy_from(&self, from: &Self) {
        const WORDS: usize = size_of::<Conn>() / 8;
        let from = core::ptr::from_ref(from).cast::<u64>();
        let to = core::ptr::from_ref(self).cast_mut().cast::<u64>();
        for i in 0..WORDS {
            // SAFETY: both are made of cells of integers alone, and are aligned to 8 bytes, of a size that is a multiple of that.
            unsafe { to.add(i).write_volatile(from.add(i).read_volatile()) };
        }
    }

    /// Forgets what was in the dynamic table: indices beyond what is inserted from now on are unknown.
    #[inline(always)]
    pub fn forget_table(&self) {
        self.inserted.set(0);
        self.generation.set(self.generation.get().wrapping_add(1));
    }

    /// Since when insertions are counted.
    #[inline(always)]
    pub fn generation(&self) -> u32 {
        self.generation.get()
    }

    /// Sets it to something that no other connection in this place had.
    #[inline(always)]
    pub fn set_generation(&self, generation: u32) {
        self.generation.set(generation);
    }

    /// Takes over what another walk of the same stream has been told of its table.
    #[inline(always)]
    pub fn learn_from(&self, other: &Self) {
        let mut i = 0;
        while i < LEARNED {
            self.learned[i].set(other.learned[i].get());
            i += 1;
        }
    }

    /// Whether the stream stands between two frames, outside a header block.
    #[inline(always)]
    pub fn at_border(&self) -> bool {
        self.phase.get() == phase::HEAD && self.count.get() == 0 && self.open_block.get() == 0
    }

    /// Whether what is looked at next is a frame's header, outside a header block, [`Conn::count`] octets ahead.
    #[inline(always)]
    pub(super) fn before_border(&self) -> bool {
        let phase = self.phase.get();
        let skips = phase == phase::SKIP && self.then.get() == phase::HEAD;
        self.open_block.get() == 0 && (skips || phase == phase::HEAD && self.count.get() == 0)
    }

    /// The next frame begins `n` octets ahead.
    #[inline(always)]
    pub(super) fn skip_to_border(&self, n: u32) {
        skip(self, n, phase::HEAD);
    }

    /// Where in the value of a `:path` that may still be a watched one the next octet stands.
    #[inline(always)]
    pub(super) fn in_candidate(&self) -> Option<u32> {
        if self.phase.get() == phase::BLOCK {
            self.unfinished()
        } else {
            None
        }
    }

    /// The same, also where the next octet is one of a frame's header: the value may go on in a CONTINUATION.
    #[inline(always)]
    pub(super) fn unfinished(&self) -> Option<u32> {
        if self.field.get() == field::BODY
            && self.role.get() & (NAME_IS_PATH | IN_NAME) == NAME_IS_PATH
            && self.mask.get() != 0
        {
            Some(self.string_at.get())
        } else {
            None
        }
    }

    /// Whether the next octet begins a field.
    #[inline(always)]
    pub(super) fn at_field(&self) -> bool {
        self.phase.get() == phase::BLOCK && self.field.get() == field::START
    }

    /// Whether the next octet is the first one of a string's length.
    #[inline(always)]
    pub(super) fn at_length(&self) -> bool {
        self.phase.get() == phase::BLOCK && self.field.get() == field::STRING
    }

    /// Whether a string has just begun, none of whose octets has been passed.
    #[inline(always)]
    pub(super) fn before_string(&self) -> bool {
        self.field.get() == field::BODY && self.string_at.get() == 0
    }

    /// Fields of the block that have been passed.
    #[inline(always)]
    pub(super) fn fields(&self) -> u32 {
        self.fields.get()
    }

    /// Whether the last field is inserted in the dynamic table.
    #[inline(always)]
    pub(super) fn is_inserted(&self) -> bool {
        self.role.get() & INSERT != 0
    }

    /// What the client has said that it is: one of [`agent`].
    #[inline(always)]
    pub fn agent(&self) -> u32 {
        self.agent.get()
    }

    /// Whether the frame that an outcome tells of is padded.
    #[inline(always)]
    pub fn is_padded(&self) -> bool {
        self.flags.get() & flag::PADDED != 0
    }

    /// Whether the frame that an outcome tells of ends its stream.
    #[inline(always)]
    pub fn ends_stream(&self) -> bool {
        self.flags.get() & flag::END_STREAM != 0
    }

    /// Whether the last string was a Huffman coded one.
    #[inline(always)]
    pub(super) fn was_huffman(&self) -> bool {
        self.huffman.get() & 1 != 0
    }

    /// Whether a part of the last string was sent substituted.
    #[inline(always)]
    pub fn is_substituted(&self) -> bool {
        self.role.get() & SUBSTITUTED != 0
    }

    /// Notes that the part of the string that was sent so far was substituted, by that spelling.
    #[inline(always)]
    pub(super) fn set_substituted(&self, id: u32) {
        self.role.set(self.role.get() | SUBSTITUTED);
        self.substitute.set(id);
    }

    /// The spelling that the string in progress is substituted by.
    #[inline(always)]
    pub(super) fn substituted_by(&self) -> u32 {
        self.substitute.get()
    }

    /// Whether the server's dynamic table has had a substitute in it.
    #[inline(always)]
    pub fn latches(&self) -> bool {
        self.latched.get() != 0
    }

    /// Notes that the watched path that was just passed was substituted, and so was the entry that it made in the
    /// server's dynamic table, if it made one.
    #[inline(always)]
    pub(super) fn set_latched(&self, literal: bool) {
        let latched = self.path.get() - WATCHED + LATCHED;
        self.path.set(latched);
        if literal && self.role.get() & INSERT != 0 {
            let newest = self.inserted.get().wrapping_sub(1) as usize & (RING - 1);
            self.ring[newest].set(latched as u8);
            self.latched.set(1);
        }
    }

    /// Checks what must hold between two steps, unless the last one ended in a fault: for tests and fuzzing.
    #[doc(hidden)]
    pub fn check_invariants(&self) -> Result<(), &'static str> {
        let odd_or_none = |stream: u32| stream == 0 || stream & 1 == 1;
        let count = self.count.get();
        let fragment = self.fragment.get();
        let then = self.then.get();
        let field = self.field.get();
        let place = match self.phase.get() {
            phase::PREFACE => count < PREFACE.len() as u32,
            phase::HEAD => count < HEAD && (self.open_block.get() != 0 || field == field::START),
            phase::SKIP => {
                count > 0
                    && count < 1 << 24
                    && (then == phase::HEAD || then == phase::BLOCK && count <= 5 && fragment > 0)
            }
            phase::PAD_LENGTH => count == 0 && fragment < 1 << 24,
            phase::BLOCK => count == 0 && fragment > 0 && fragment <= MAX_BLOCK,
            _ => false,
        };
        if !place {
            return Err("phase, count and fragment disagree");
        }
        if self.padding.get() > 255 || self.block.get() > MAX_BLOCK {
            return Err("a length exceeds its limit");
        }
        if !odd_or_none(self.open_block.get()) || !odd_or_none(self.last_stream.get()) {
            return Err("a stream that no client opens");
        }
        if field > field::BODY
            || self.integer.get() > integer::LENGTH
            || self.role.get() > 63
            || self.agent.get() > agent::OTHER
            || self.huffman.get() > 1
            || self.unknown.get() > (UNKNOWN | OPEN | EXCLUDED)
            || self.candidate_count.get() > CANDIDATES + 1
            || self.shift.get() > 28
        {
            return Err("a field's state is none");
        }
        let left = self.string_left.get();
        if field == field::BODY && left == 0 {
            return Err("an ended string goes on");
        }
        if field == field::BODY && self.mask.get() != 0 && self.string_at.get() + left >= 128 {
            return Err("a string longer than any candidate is one");
        }
        // A watched path, substituted or not, or one of gRPC's 17 statuses.
        let class = |class: u32| class < LATCHED + MAX_PATHS as u32 + 1 || class == UNRESOLVED;
        let newest = self.inserted.get().wrapping_sub(1) as usize & (RING - 1);
        if !class(self.path.get()) || !class(self.ring[newest].get() as u32) {
            return Err("a class that is none");
        }
        Ok(())
    }

    /// Whether both go on alike, whatever comes: for tests and fuzzing.
    #[doc(hidden)]
    pub fn is_like(&self, other: &Self) -> bool {
        let octets = |c: &Self| {
            // SAFETY: it is made of cells of integers alone.
            let mut octets: [u8; size_of::<Self>()] = unsafe { core::mem::transmute_copy(c) };
            let phase = c.phase.get();
            // What is out of use: where the last skip led, and the header of a frame that is over.
            if phase != phase::SKIP {
                octets[offset_of!(Self, then)..][..4].fill(0);
            }
            let had = if phase == phase::HEAD {
                c.count.get()
            } else {
                0
            };
            octets[offset_of!(Self, head)..][..16][had as usize..].fill(0);
            octets
        };
        octets(self) == octets(other)
    }

    /// Back to the border between two frames, with an unknown dynamic table.
    #[inline(always)]
    pub fn restart(&self) {
        self.phase.set(phase::HEAD);
        self.count.set(0);
        self.open_block.set(0);
        self.last_stream.set(0);
        self.field.set(field::START);
        self.gap.set(0);
        self.latched.set(0);
        self.agent.set(agent::UNKNOWN);
        self.forget_table();
    }
}

impl Default for Conn {
    fn default() -> Self {
        Self::new()
    }
}

#[inline(always)]
fn min(a: u32, b: u32) -> u32 {
    if a < b { a } else { b }
}

/// Passes one token. Call it only while [`Source::left`] is above 0.
///
/// `strict` is [`Head::check`]'s.
#[inline(always)]
pub fn step<S: Source, P: Paths>(c: &Conn, s: &S, p: &P, strict: bool) -> Outcome {
    let ph = c.phase.get();
    if ph == phase::SKIP {
        let want = c.count.get();
        let n = min(want, s.left());
        s.pass(n);
        c.count.set(want - n);
        if want == n {
            c.phase.set(c.then.get());
            c.count.set(0);
        }
        return Outcome::Continue;
    }
    if ph == phase::BLOCK {
        return block(c, s, p);
    }
    if s.ready() == 0 {
        return Outcome::Starved;
    }
    match ph {
        phase::HEAD => head::<S, P>(c, s, strict),
        phase::PAD_LENGTH => {
            let pad = s.peek(0) as u32;
            s.pass(1);
            padded::<P>(c, pad)
        }
        _ => preface(c, s),
    }
}

/// RFC 9113 §3.4.
#[inline(always)]
fn preface<S: Source>(c: &Conn, s: &S) -> Outcome {
    let at = c.count.get();
    let want = PREFACE.len() as u32;
    if at >= want || s.peek(0) != expected_preface(at) {
        return Outcome::Fault(Fault::Preface);
    }
    s.pass(1);
    c.count.set(at + 1);
    if at + 1 == want {
        c.phase.set(phase::HEAD);
        c.count.set(0);
    }
    Outcome::Continue
}

#[inline(always)]
fn expected_preface(at: u32) -> u8 {
    // Words, not an array: a BPF program can't index a constant without a map of its own.
    const WORDS: [u64; 3] = [
        u64::from_le_bytes(*b"PRI * HT"),
        u64::from_le_bytes(*b"TP/2.0\r\n"),
        u64::from_le_bytes(*b"\r\nSM\r\n\r\n"),
    ];
    let word = if at < 8 {
        WORDS[0]
    } else if at < 16 {
        WORDS[1]
    } else {
        WORDS[2]
    };
    (word >> ((at & 7) * 8)) as u8
}

#[inline(always)]
fn head<S: Source, P: Paths>(c: &Conn, s: &S, strict: bool) -> Outcome {
    let had = c.count.get();
    let h = if had == 0 && s.ready() >= HEAD {
        let h = Head::read(s);
        s.pass(HEAD);
        h
    } else {
        c.head[(had & 15) as usize].set(s.peek(0));
        s.pass(1);
        if had + 1 < HEAD {
            c.count.set(had + 1);
            return Outcome::Continue;
        }
        c.count.set(0);
        Head::of(|at| c.head[(at & 15) as usize].get())
    };
    if let Err(fault) = h.check(c.open_block.get(), strict) {
        return Outcome::Fault(fault);
    }
    if h.kind != kind::HEADERS && h.kind != kind::CONTINUATION {
        if P::SERVER && h.kind == kind::DATA {
            data(c, h.flags, h.stream(), h.len);
            return Outcome::Data;
        }
        // Most frames end in the piece in which they begin.
        let n = min(h.len, s.left());
        s.pass(n);
        skip(c, h.len - n, phase::HEAD);
        if h.kind == kind::RST_STREAM {
            c.stream.set(h.stream());
            return Outcome::Reset;
        }
        return Outcome::Continue;
    }
    frame::<P>(c, &h)
}

/// Goes on behind the header of a server's DATA frame, of whose payload `left` octets are still to be passed.
#[inline(always)]
pub(super) fn data(c: &Conn, flags: u32, stream: u32, left: u32) {
    c.flags.set(flags);
    c.stream.set(stream);
    skip(c, left, phase::HEAD);
}

/// Goes on behind the header of a HEADERS or CONTINUATION frame.
#[inline(always)]
fn frame<P: Paths>(c: &Conn, h: &Head) -> Outcome {
    c.stream.set(h.stream());
    c.fragment.set(h.len);
    c.padding.set(0);
    if h.kind == kind::HEADERS {
        c.flags.set(h.flags);
        c.block.set(0);
        c.field.set(field::START);
        c.path.set(NONE);
        c.unknown.set(0);
        c.fields.set(0);
        c.candidate_count.set(0);
        // Clients number their streams 1, 3, 5, … A gap means that a request was cancelled before it was sent, or
        // sent unseen; then it may have inserted something, and every older index would mean the wrong entry.
        let last = c.last_stream.get();
        if !P::SERVER && last != 0 && h.stream() > last + 2 {
            c.gap.set(c.inserted.get());
            c.forget_table();
        }
        if h.flags & flag::PADDED != 0 {
            if h.len == 0 {
                return Outcome::Fault(Fault::Padding);
            }
            c.fragment.set(h.len - 1);
            c.phase.set(phase::PAD_LENGTH);
            return Outcome::Continue;
        }
        return padded::<P>(c, 0);
    }
    // CONTINUATION has neither padding nor priority (RFC 9113 §6.10).
    // The HEADERS frame has said whether the stream ends.
    c.flags
        .set(c.flags.get() & flag::END_STREAM | h.flags & flag::END_HEADERS);
    c.block.set(c.block.get() + HEAD);
    fragment::<P>(c, 0)
}

/// Goes on behind the place of the pad length (RFC 9113 §6.2).
#[inline(always)]
fn padded<P: Paths>(c: &Conn, pad: u32) -> Outcome {
    let priority = if c.flags.get() & flag::PRIORITY != 0 {
        5
    } else {
        0
    };
    let len = c.fragment.get();
    if pad + priority > len {
        return Outcome::Fault(Fault::Padding);
    }
    c.padding.set(pad);
    c.fragment.set(len - pad - priority);
    fragment::<P>(c, priority)
}

/// Enters the fragment of a header block, behind `priority` octets that say nothing here.
#[inline(always)]
fn fragment<P: Paths>(c: &Conn, priority: u32) -> Outcome {
    let len = c.fragment.get();
    // `len` has 24 bits and the sum is cut at each fragment, so it can't overflow.
    let block = c.block.get() + len;
    if block > MAX_BLOCK {
        return Outcome::Fault(Fault::BlockSize);
    }
    c.block.set(block);
    if len == 0 {
        return end_of_fragment::<P>(c, priority);
    }
    skip(c, priority, phase::BLOCK);
    Outcome::Continue
}

#[inline(always)]
fn skip(c: &Conn, n: u32, then: u32) {
    c.count.set(n);
    c.then.set(then);
    c.phase.set(if n == 0 { then } else { phase::SKIP });
}

/// The fragment is over; `extra` octets and the padding lie before the next frame.
#[inline(always)]
fn end_of_fragment<P: Paths>(c: &Conn, extra: u32) -> Outcome {
    skip(c, c.padding.get() + extra, phase::HEAD);
    let stream = c.stream.get();
    if c.flags.get() & flag::END_HEADERS == 0 {
        c.open_block.set(stream);
        return Outcome::Continue;
    }
    c.open_block.set(0);
    if c.field.get() != field::START {
        return Outcome::Fault(Fault::Truncated);
    }
    if P::SERVER {
        if c.path.get() == NONE && c.unknown.get() != 0 {
            c.path.set(UNRESOLVED);
        }
        return Outcome::Block;
    }
    if stream <= c.last_stream.get() {
        // Trailers of a stream that is open already (RFC 9113 §8.1).
        return Outcome::Continue;
    }
    c.last_stream.set(stream);
    if c.path.get() == NONE {
        let unknown = c.unknown.get();
        if unknown == 0 {
            // No path and nothing that could be one: trailers of a stream older than the join, or CONNECT.
            return Outcome::Continue;
        }
        c.path.set(if unknown & (OPEN | EXCLUDED) == EXCLUDED {
            OTHER
        } else {
            UNRESOLVED
        });
    }
    Outcome::Request
}

/// Some tokens of a header block fragment (RFC 7541 §6).
///
/// What mostly comes together is passed together, if it lies in front whole: a run of fields of one octet; the first
/// octets of a literal's name and value. Everything also goes octet by octet.
#[inline(always)]
fn block<S: Source, P: Paths>(c: &Conn, s: &S, p: &P) -> Outcome {
    let fragment = c.fragment.get();
    let state = c.field.get();
    let mask = c.mask.get();
    let mut n;
    let mut done = NOTHING_DONE;
    if state == field::BODY && mask == 0 {
        // A string that is no candidate any more isn't read.
        n = min(min(c.string_left.get(), fragment), s.left());
        done = string_part(c, n);
    } else {
        let ready = min(s.ready(), fragment);
        if ready == 0 {
            return Outcome::Starved;
        }
        if state == field::BODY {
            n = min(min(c.string_left.get(), ready), COMPARE);
            let at = c.string_at.get();
            let huffman = c.huffman.get();
            let mut mask = mask;
            let mut i = 0;
            while i < COMPARE {
                if i >= n {
                    break;
                }
                mask &= p.at(huffman, at + i, s.peek(i));
                i += 1;
            }
            c.mask.set(mask);
            done = string_part(c, n);
        } else if state == field::START && is_short_index(s.peek(0) as u32) {
            n = 0;
            while n < S::RUN {
                if n >= ready {
                    break;
                }
                let octet = s.peek(n) as u32;
                if !is_short_index(octet) {
                    break;
                }
                indexed::<P>(c, octet & 0x7f);
                n += 1;
            }
        } else {
            n = 1;
            let octet = s.peek(0) as u32;
            if state == field::INTEGER {
                // RFC 7541 §5.1, cut at 28 bits: nothing in a header block is larger.
                let shift = c.shift.get();
                if shift > 21 {
                    return Outcome::Fault(Fault::Integer);
                }
                let value = c.value.get() + ((octet & 0x7f) << shift);
                c.value.set(value);
                c.shift.set(shift + 7);
                if octet & 0x80 == 0 {
                    done = integer(c, p, c.integer.get(), value);
                }
            } else if state == field::STRING {
                done = length(c, p, octet);
            } else {
                done = first_octet(c, p, octet);
                if c.field.get() == field::STRING && ready > 1 {
                    n = 2;
                    done = length(c, p, s.peek(1) as u32);
                }
            }
            if done == BAD_INTEGER {
                return Outcome::Fault(Fault::Integer);
            }
        }
    }
    s.pass(n);
    c.fragment.set(fragment - n);
    if done == STRING_DONE {
        string::<P>(c);
    }
    if fragment == n {
        return end_of_fragment::<P>(c, 0);
    }
    Outcome::Continue
}

/// Whether a field is an index of one octet (RFC 7541 §6.1), and not the index 0, which is none.
#[inline(always)]
fn is_short_index(octet: u32) -> bool {
    octet > 0x80 && octet < 0xff
}

/// The value of an integer's prefix, or that it goes on (RFC 7541 §5.1).
#[inline(always)]
fn prefix<P: Paths>(c: &Conn, p: &P, kind: u32, octet: u32, mask: u32) -> u32 {
    let value = octet & mask;
    if value < mask {
        return integer(c, p, kind, value);
    }
    c.integer.set(kind);
    c.value.set(value);
    c.shift.set(0);
    c.field.set(field::INTEGER);
    NOTHING_DONE
}

/// The first octet of a string's length (RFC 7541 §5.2).
#[inline(always)]
fn length<P: Paths>(c: &Conn, p: &P, octet: u32) -> u32 {
    c.huffman.set(octet >> 7);
    prefix(c, p, integer::LENGTH, octet, 0x7f)
}

const NOTHING_DONE: u32 = 0;
const STRING_DONE: u32 = 1;
const BAD_INTEGER: u32 = 2;

/// Sorts a field's first octet (RFC 7541 §6).
#[inline(always)]
fn first_octet<P: Paths>(c: &Conn, p: &P, octet: u32) -> u32 {
    let (kind, role, mask) = if octet & 0x80 != 0 {
        (integer::INDEXED, 0, 0x7f)
    } else if octet & 0x40 != 0 {
        (integer::NAME, INSERT, 0x3f)
    } else if octet & 0x20 != 0 {
        // A size update evicts at most; insertion numbers stay what they are (RFC 7541 §6.3).
        (integer::TABLE_SIZE, 0, 0x1f)
    } else {
        (integer::NAME, 0, 0x0f)
    };
    c.role.set(role);
    prefix(c, p, kind, octet, mask)
}

#[inline(always)]
fn string_part(c: &Conn, n: u32) -> u32 {
    let left = c.string_left.get() - n;
    c.string_left.set(left);
    c.string_at.set(c.string_at.get() + n);
    if left == 0 { STRING_DONE } else { NOTHING_DONE }
}

/// Goes on behind a complete integer.
#[inline(always)]
fn integer<P: Paths>(c: &Conn, p: &P, kind: u32, value: u32) -> u32 {
    match kind {
        integer::INDEXED => {
            if value == 0 {
                return BAD_INTEGER;
            }
            indexed::<P>(c, value);
            c.field.set(field::START);
        }
        integer::NAME => {
            let role = c.role.get();
            let is = if value == 0 {
                IN_NAME
            } else if P::AGENT != 0 && value == USER_AGENT {
                NAME_IS_AGENT
            } else {
                match class_of_index::<P>(c, value, false) {
                    NONE => 0,
                    UNRESOLVED => NAME_UNKNOWN,
                    _ => NAME_IS_PATH,
                }
            };
            c.role.set(role | is);
            c.field.set(field::STRING);
        }
        integer::LENGTH => {
            let role = c.role.get();
            let candidates = p.lengths(c.huffman.get(), value);
            c.mask.set(if role & IN_NAME != 0 {
                candidates & P::NAME
            } else if role & NAME_IS_PATH != 0 {
                candidates & !(P::NAME | P::AGENT)
            } else if role & NAME_IS_AGENT != 0 {
                candidates & P::AGENT
            } else {
                0
            });
            c.string_left.set(value);
            c.string_at.set(0);
            c.field.set(field::BODY);
            if value == 0 {
                return STRING_DONE;
            }
        }
        _ => c.field.set(field::START),
    }
    NOTHING_DONE
}

/// An indexed field (RFC 7541 §6.1).
#[inline(always)]
fn indexed<P: Paths>(c: &Conn, index: u32) {
    let class = class_of_index::<P>(c, index, true);
    // What isn't known is noted already; the block's path may still come in full.
    if class != NONE && class != UNRESOLVED {
        path(c, class);
    }
    c.fields.set(c.fields.get() + 1);
}

/// Goes on behind a complete string.
#[inline(always)]
fn string<P: Paths>(c: &Conn) {
    let role = c.role.get();
    let mask = c.mask.get();
    if role & IN_NAME != 0 {
        let is_path = if mask != 0 { NAME_IS_PATH } else { 0 };
        c.role.set(role & INSERT | is_path);
        c.field.set(field::STRING);
        return;
    }
    let mut class = NONE;
    if role & NAME_UNKNOWN != 0 {
        class = UNRESOLVED;
    } else if role & NAME_IS_PATH != 0 {
        class = if mask == 0 {
            OTHER
        } else {
            WATCHED + P::number(mask)
        };
        path(c, class);
    } else if P::AGENT != 0 && role & NAME_IS_AGENT != 0 {
        c.agent.set(if mask != 0 && c.agent.get() != agent::OTHER {
            agent::TONIC
        } else {
            agent::OTHER
        });
    }
    if role & INSERT != 0 {
        let number = c.inserted.get();
        c.ring[(number as usize) & (RING - 1)].set(class as u8);
        // After 2^32 insertions the table counts as unknown again.
        let next = number.wrapping_add(1);
        c.inserted.set(next);
        if next == 0 {
            c.forget_table();
        }
    }
    c.fields.set(c.fields.get() + 1);
    c.field.set(field::START);
}

/// What an index names: the class of a `:path`, [`NONE`] for any other field, or [`UNRESOLVED`] for what isn't known,
/// which it notes. `whole`: the index stands for the whole field, not for its name alone.
#[inline(always)]
fn class_of_index<P: Paths>(c: &Conn, index: u32, whole: bool) -> u32 {
    if index < 62 {
        return P::of_static(index);
    }
    let back = index - 62;
    let inserted = c.inserted.get();
    if back < inserted && back < RING as u32 {
        let number = inserted - 1 - back;
        let class = c.ring[(number as usize) & (RING - 1)].get() as u32;
        if class != UNRESOLVED {
            return class;
        }
    }
    let mut unknown = c.unknown.get() | UNKNOWN;
    if !P::SERVER && c.fields.get() < PSEUDO {
        // Of those that were inserted since, and of which it isn't known what they are, nothing is learned.
        let known = if back >= inserted {
            c.known(back - inserted)
        } else {
            Known::Nothing
        };
        match known {
            Known::Is(class) => return class,
            Known::NotWatched if whole => unknown |= EXCLUDED,
            _ => unknown |= OPEN,
        }
        if whole && back >= inserted {
            c.note_candidate(back - inserted);
        } else {
            c.note_no_candidates();
        }
    }
    c.unknown.set(unknown);
    UNRESOLVED
}

/// Notes the block's path. A second one makes the request malformed (RFC 9113 §8.3): which one the server
/// would take isn't known.
#[inline(always)]
fn path(c: &Conn, class: u32) {
    let class = if c.path.get() == NONE {
        class
    } else {
        UNRESOLVED
    };
    c.path.set(class);
}

#[cfg(test)]
mod tests {
    use std::boxed::Box;
    use std::vec::Vec;

    use super::super::paths::PathTable;
    use super::super::track::{End, send, status};
    use super::*;

    const INDEXING: &[u8] = b"\x44\x04/a/b";

    /// 2^32 insertions later the table counts as unknown: nothing overflows, and nothing is taken for another.
    #[test]
    fn the_count_of_insertions_starts_over() {
        let mut table = Box::new(PathTable::EMPTY);
        table.fill(["/a/b"]).unwrap();
        let conn = Conn::new();
        conn.status.set(status::SYNCED);
        conn.phase.set(phase::HEAD);
        conn.inserted.set(u32::MAX - 1);
        let mut stream = 1;
        let mut request = |block: &[u8]| {
            let mut frame = Vec::from([0, 0, block.len() as u8, 1, 4, 0, 0, 0, stream]);
            frame.extend(block);
            let mut found = NONE;
            assert_eq!(
                send(&conn, &[&frame], &*table, |_, class| found = class),
                End::Keep
            );
            stream += 2;
            found
        };
        assert_eq!(request(INDEXING), WATCHED);
        assert_eq!(request(b"\xbe"), WATCHED);
        assert_eq!(request(INDEXING), WATCHED);
        assert_eq!(request(b"\xbe"), UNRESOLVED);
        assert_eq!(request(INDEXING), WATCHED);
        assert_eq!(request(b"\xbe"), WATCHED);
        assert_eq!(request(b"\xbf"), UNRESOLVED);
    }
}
