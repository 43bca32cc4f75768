//! What the `rewrite` enforcer has overwritten in a send, before it is known how much of it is sent.
//!
//! At the entry of the system call the send is walked on a copy of the connection's state, and what is overwritten is written down
//! here ([`Journal::piece`], [`Journal::rejected`]). At its exit the sender's bytes are put back, and what was really sent is walked
//! again, on the state itself: a path that the journal names was sent substituted ([`Journal::replay`]). A send may end within
//! such a path; its rest is then substituted as well, whatever the policy says by then ([`Journal::cut`]).

use super::edit::Segments;
use super::quiet;
use super::substitute::{INDEX as ROOT, SPELLINGS, Substitute};
use super::walk::Conn;
use crate::abi::{Failure, Why};
use crate::vol::{Vol, masked};

/// Calls that one send may have rejected.
pub const CALLS: usize = 16;
/// Places that one send may have overwritten.
pub const PIECES: usize = 32;

/// In an id: an index; its low octet is what was there.
const INDEX: u32 = 0x100;
/// In an id: a path's length; its low octet is what was there.
const LENGTH: u32 = 0x200;

/// A call that was rejected.
#[repr(C)]
struct Call {
    /// Where its path begins.
    first: Vol<u64>,
    /// Its spelling.
    id: Vol<u32>,
    /// How it is answered: [`quiet::code`], or 0 where nobody asks.
    manner: Vol<u32>,
}

/// Octets that were overwritten.
#[repr(C)]
struct Piece {
    place: Vol<u64>,
    id: Vol<u32>,
    from: Vol<u16>,
    end: Vol<u16>,
}

/// What was overwritten in a send. All zero is nothing.
#[repr(C)]
pub struct Journal {
    calls: [Call; CALLS],
    pieces: [Piece; PIECES],
    called: Vol<u32>,
    written: Vol<u32>,
    /// Pieces before the call in progress.
    mark: Vol<u32>,
    /// Calls that the replay has passed.
    replayed: Vol<u32>,
    /// Why the last call was not rejected that should have been.
    failed: Why,
    /// Fills up.
    reserved: Vol<u32>,
}

const _: () = assert!(CALLS.is_power_of_two() && PIECES.is_power_of_two());

/// What a piece is to be put back to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Original {
    /// An index, or a path's length.
    Octet {
        /// What was there.
        was: u8,
        /// What was written.
        is: u8,
    },
    /// Octets `from` to `end` of the watched path's spelling `id`.
    Spelling {
        /// See [`spelling_of`].
        id: u32,
        /// The first.
        from: u32,
        /// One behind the last.
        end: u32,
    },
}

/// The number of a watched path, and which of its [`Substitute::spellings`] it is, in one.
#[inline(always)]
pub fn id_of(number: u32, coding: usize) -> u32 {
    number * SPELLINGS as u32 + coding as u32
}

/// A spelling's watched path, and its place in [`Substitute::spellings`].
#[inline(always)]
pub fn spelling_of(id: u32) -> (u32, usize) {
    (
        masked(id / SPELLINGS as u32, 0x3f),
        masked(id, SPELLINGS as u32 - 1) as usize,
    )
}

impl Journal {
    /// A journal of nothing.
    pub const fn new() -> Self {
        // SAFETY: every field is a `Vol` of an integer, for which all zero is a value.
        unsafe { core::mem::zeroed() }
    }

    /// A call is about to be rejected. `Err`: there is no room for another one.
    #[inline(always)]
    pub fn begin(&self) -> Result<(), Failure> {
        if self.called.get() >= CALLS as u32 {
            return Err(Failure::TooMany);
        }
        self.mark.set(self.written.get());
        Ok(())
    }

    #[inline(always)]
    fn write(&self, place: u64, id: u32, from: u32, end: u32) -> Result<(), Failure> {
        let n = self.written.get();
        if n >= PIECES as u32 {
            return Err(Failure::TooMany);
        }
        let piece = &self.pieces[masked(n, PIECES as u32 - 1) as usize];
        piece.place.set(place);
        piece.id.set(id);
        piece.from.set(from as u16);
        piece.end.set(end as u16);
        self.written.set(n + 1);
        Ok(())
    }

    /// Notes, before it is done, that octets `from` to `end` of a spelling's substitute are written to `place`.
    #[inline(always)]
    pub fn piece(&self, place: u64, id: u32, from: u32, end: u32) -> Result<(), Failure> {
        self.write(place, id, from, end)
    }

    /// The same for an index.
    #[inline(always)]
    pub fn index(&self, place: u64, original: u8) -> Result<(), Failure> {
        self.write(place, INDEX | original as u32, 0, 1)
    }

    /// The same for the length of a path whose call becomes a quiet one.
    #[inline(always)]
    pub fn length(&self, place: u64, original: u8) -> Result<(), Failure> {
        self.write(place, LENGTH | original as u32, 0, 1)
    }

    /// The octet that was noted last could not be written.
    #[inline(always)]
    pub fn unwritten(&self) {
        let n = self.written.get();
        if n > 0 {
            self.written.set(n - 1);
        }
    }

    /// The pieces of the call in progress have been put back.
    #[inline(always)]
    pub fn undone(&self) {
        self.written.set(self.mark.get());
    }

    /// The call whose path begins at `first` is rejected; `manner` is [`quiet::code`], or 0.
    #[inline(always)]
    pub fn rejected(&self, first: u64, id: u32, manner: u32) {
        let n = self.called.get();
        if n < CALLS as u32 {
            let call = &self.calls[masked(n, CALLS as u32 - 1) as usize];
            call.first.set(first);
            call.id.set(id);
            call.manner.set(manner);
            self.called.set(n + 1);
        }
    }

    /// Notes why a call was not rejected.
    #[inline(always)]
    pub fn fail(&self, why: Failure) {
        self.failed.set(why);
    }

    /// Why a call was not rejected, if one was not.
    #[inline(always)]
    pub fn failure(&self) -> Option<Failure> {
        self.failed.get()
    }

    /// Pieces that were overwritten; at most [`PIECES`].
    #[inline(always)]
    pub fn written(&self) -> u32 {
        self.written.get()
    }

    /// Where piece `i` lies, and what was there.
    #[inline(always)]
    pub fn original(&self, i: u32) -> (u64, Original) {
        let piece = &self.pieces[masked(i, PIECES as u32 - 1) as usize];
        let id = piece.id.get();
        let original = if id & (INDEX | LENGTH) != 0 {
            let was = id as u8;
            let is = if id & INDEX != 0 {
                ROOT
            } else {
                quiet::shorter(was)
            };
            Original::Octet { was, is }
        } else {
            Original::Spelling {
                id,
                from: piece.from.get() as u32,
                end: piece.end.get() as u32,
            }
        };
        (piece.place.get(), original)
    }

    /// In the replay: the last step passed a watched path ([`Segments::found`]). If it was sent substituted, `c` is told. Returns
    /// how that call is answered ([`quiet::code`]); 0 where it was not substituted, or nobody asks.
    #[inline(always)]
    pub fn replay(&self, c: &Conn, segments: &Segments) -> u32 {
        let n = self.replayed.get();
        if let Some((place, literal)) = segments.take()
            && n < self.called.get()
        {
            let call = &self.calls[masked(n, CALLS as u32 - 1) as usize];
            if call.first.get() == place {
                c.set_latched(literal);
                self.replayed.set(n + 1);
                return call.manner.get();
            }
        }
        0
    }

    /// In the replay: whether there is a call that it has not passed.
    #[inline(always)]
    pub fn expects(&self) -> bool {
        self.replayed.get() < self.called.get()
    }

    /// In the replay: what was sent ends here. Where that is within a path of which substituted octets were sent, the rest
    /// must be substituted too.
    #[inline(always)]
    pub fn cut(&self, c: &Conn, segments: &Segments, substitute: Option<&Substitute>) {
        let Some((call, at)) = self.current(c, segments) else {
            return;
        };
        let (_, coding) = spelling_of(call.id.get());
        // A quiet one's length stands before it, and was sent.
        if let Some(substitute) = substitute
            && (coding >= quiet::CODING || at > substitute.spellings[coding].first)
        {
            c.set_substituted(call.id.get());
        }
    }

    /// Which watched path [`Journal::cut`] wants the substitute of.
    #[inline(always)]
    pub fn cut_path(&self, c: &Conn, segments: &Segments) -> Option<u32> {
        let (call, _) = self.current(c, segments)?;
        Some(spelling_of(call.id.get()).0)
    }

    /// The call that the walk stands in, if it was rejected, and the octets of its path that were passed.
    #[inline(always)]
    fn current(&self, c: &Conn, segments: &Segments) -> Option<(&Call, u32)> {
        let n = self.replayed.get();
        let at = c.unfinished()?;
        let call = &self.calls[masked(n, CALLS as u32 - 1) as usize];
        // Of one none of whose octets was sent, only the length says where it begins.
        let place = if at == 0 {
            segments.behind_length()
        } else if segments.begun() {
            segments.first()
        } else {
            0
        };
        let is =
            n < self.called.get() && place != 0 && !c.is_substituted() && call.first.get() == place;
        is.then_some((call, at))
    }
}

impl Default for Journal {
    fn default() -> Self {
        Self::new()
    }
}
