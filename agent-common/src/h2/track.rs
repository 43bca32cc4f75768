//! One send of a connection: how it begins, and what is kept when it is over.
//!
//! A send is what one system call handed to the kernel. Connections begin with the preface; one that is older than
//! Pendguard is *joined* at the first send whose frame headers chain exactly to its end.

use core::cell::Cell;

use super::frame::{HEAD, Head, PREFACE};
use super::paths::Paths;
use super::walk::{Conn, Fault, Outcome, Source, phase, step};

/// What is known of a connection; the values of [`Conn::status`].
pub mod status {
    /// Nothing.
    pub const NEW: u32 = 0;
    /// It is HTTP/2, and the state says where in it the next byte stands.
    pub const SYNCED: u32 = 1;
    /// It was HTTP/2, but the place was lost.
    pub const UNSYNCED: u32 = 2;
    /// It is TLS: nothing in it can be read.
    pub const TLS: u32 = 3;
}

/// How a send is to be walked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begin {
    /// From the connection's state.
    Follow,
    /// As a new connection: it starts with the preface.
    Fresh,
    /// Strictly, from a border between frames: if it chains to the end, the connection is joined.
    Join,
    /// Not at all: a TLS connection begins here.
    Tls,
    /// Not at all.
    Ignore,
}

/// What is kept of a send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The state and the requests found.
    Keep,
    /// The requests found; the place is lost.
    Lost(Fault),
    /// Nothing: it was no HTTP/2, or can't be joined here.
    Drop,
}

/// Sets `c` up for a send of `total` bytes (above 0) that begins at `s`, of which some are ready.
#[inline(always)]
pub fn begin<S: Source>(c: &Conn, s: &S, total: u32) -> Begin {
    let known = c.status.get();
    if known == status::TLS {
        return Begin::Ignore;
    }
    // Payload may contain anything, a preface too.
    if known == status::SYNCED && !c.at_border() {
        return Begin::Follow;
    }
    if starts_preface(s, total, known == status::SYNCED) {
        c.restart();
        c.phase.set(phase::PREFACE);
        c.status.set(status::SYNCED);
        return Begin::Fresh;
    }
    if known == status::SYNCED {
        return Begin::Follow;
    }
    if known == status::NEW && starts_tls(s) {
        c.status.set(status::TLS);
        return Begin::Tls;
    }
    if !may_join(s, total) {
        return Begin::Ignore;
    }
    c.restart();
    Begin::Join
}

/// Whether a send may chain to its end: the first frame header would be one, as far as it is ready. Most of what a
/// process sends elsewhere ends here (log lines, wake-ups), before anything is set up for it.
#[inline(always)]
fn may_join<S: Source>(s: &S, total: u32) -> bool {
    if total < HEAD {
        return false;
    }
    if s.ready() < HEAD {
        return true;
    }
    let head = Head::read(s);
    head.len <= total - HEAD && head.check(0, true).is_ok()
}

/// Whether the bytes that are ready begin a preface, or, unless it must be `whole`, are its first part.
///
/// Between two frames of a connection that is followed, a few octets of it may as well begin a frame of 5 MiB.
#[inline(always)]
fn starts_preface<S: Source>(s: &S, total: u32, whole: bool) -> bool {
    let ready = if s.ready() < total { s.ready() } else { total };
    let want = PREFACE.len() as u32;
    // A loop over 24 octets costs every send; the first one settles nearly all.
    if ready == 0 || whole && ready < want || s.peek(0) != PREFACE[0] {
        return false;
    }
    let mut same = true;
    let mut at = 0;
    while at < want {
        if at < ready && s.peek(at) != PREFACE[at as usize] {
            same = false;
        }
        at += 1;
    }
    same
}

/// Whether a TLS client begins here: a handshake record with a ClientHello (RFC 8446 §4, §5.1).
#[inline(always)]
fn starts_tls<S: Source>(s: &S) -> bool {
    s.ready() >= 6 && s.peek(0) == 22 && s.peek(1) == 3 && s.peek(2) <= 4 && s.peek(5) == 1
}

/// Says what to keep of a send, and sets `c` to that.
#[inline(always)]
pub fn end(c: &Conn, begin: Begin, fault: Option<Fault>) -> End {
    match (begin, fault) {
        (Begin::Tls, _) => End::Keep,
        (Begin::Ignore, _) => End::Drop,
        (Begin::Join, None) if c.at_border() => {
            c.status.set(status::SYNCED);
            End::Keep
        }
        (Begin::Join, _) => End::Drop,
        (_, None) => End::Keep,
        // Something else that began with a `P`.
        (_, Some(Fault::Preface)) => {
            c.status.set(status::NEW);
            End::Drop
        }
        (_, Some(fault)) => {
            c.status.set(status::UNSYNCED);
            End::Lost(fault)
        }
    }
}

/// A slice as a source: all of it is ready.
pub struct Slice<'a> {
    bytes: &'a [u8],
    at: Cell<usize>,
}

impl<'a> Slice<'a> {
    /// A source that stands before the first byte.
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self {
            bytes,
            at: Cell::new(0),
        }
    }
}

impl Source for Slice<'_> {
    fn left(&self) -> u32 {
        (self.bytes.len() - self.at.get()) as u32
    }
    fn ready(&self) -> u32 {
        self.left()
    }
    fn peek(&self, at: u32) -> u8 {
        self.bytes
            .get(self.at.get() + at as usize)
            .copied()
            .unwrap_or_default()
    }
    fn pass(&self, n: u32) {
        self.at
            .set(self.bytes.len().min(self.at.get() + n as usize));
    }
}

/// Walks one send that lies in memory as `pieces`, and calls `request` with the stream and class of each request
/// that it completes. The host's twin of the BPF programs' loop: the same `begin`, `step` and `end`.
///
/// The requests of a send that ends in [`End::Drop`] were none.
pub fn send<P: Paths>(
    c: &Conn,
    pieces: &[&[u8]],
    paths: &P,
    mut request: impl FnMut(u32, u32),
) -> End {
    let total: usize = pieces.iter().map(|p| p.len()).sum();
    let mut begun = None;
    for piece in pieces.iter().filter(|p| !p.is_empty()) {
        let s = Slice::new(piece);
        let mode = *begun.get_or_insert_with(|| begin(c, &s, total as u32));
        if matches!(mode, Begin::Tls | Begin::Ignore) {
            break;
        }
        while s.left() > 0 {
            match step(c, &s, paths, mode == Begin::Join) {
                Outcome::Continue | Outcome::Reset | Outcome::Data | Outcome::Block => {}
                Outcome::Starved => unreachable!("a slice is always ready"),
                Outcome::Request => request(c.last_stream.get(), c.path.get()),
                Outcome::Fault(fault) => return end(c, mode, Some(fault)),
            }
        }
    }
    match begun {
        Some(mode) => end(c, mode, None),
        None => End::Drop,
    }
}
