//! The enforcer's walk on random streams: what a server reads behind it.

use std::cell::{Cell, RefCell};
use std::ops::ControlFlow;

use agent_common::abi::{Failure, Manner};
use agent_common::h2::edit::{self, Edit, Named, Placed, Segments};
use agent_common::h2::journal::{Journal, Original, spelling_of};
use agent_common::h2::paths::{MAX_LEN, MAX_PATHS};
use agent_common::h2::quiet;
use agent_common::h2::substitute::{self, Substitute};
use agent_common::h2::track::{Begin, begin, status};
use agent_common::h2::walk::{Conn, LATCHED, Outcome, Source, UNRESOLVED, WATCHED};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::reference::build::{Builder, Habits};
use crate::reference::choices::Choices;
use crate::reference::drive::Cuts;
use crate::reference::{PATHS, Parsed, Stop, parse, table};

/// What stands in for each watched path.
struct Substitutes(Vec<Option<([u8; MAX_LEN], Substitute)>>);

impl Substitutes {
    fn new() -> Self {
        Self(
            PATHS
                .iter()
                .map(|path| substitute::choose(path, PATHS.iter().copied()))
                .collect(),
        )
    }

    fn name(&self, path: &[u8]) -> Option<Vec<u8>> {
        let number = PATHS.iter().position(|p| p.as_bytes() == path)?;
        let (octets, _) = self.0[number].as_ref()?;
        Some(octets[..path.len()].to_vec())
    }
}

/// One piece of a send, of which the octets of `all` from `start` on are reached.
struct Piece<'a> {
    all: &'a RefCell<Vec<u8>>,
    start: usize,
    len: usize,
    at: Cell<usize>,
    window: Cell<usize>,
    size: usize,
    substitutes: &'a Substitutes,
    reject: &'a dyn Fn() -> bool,
    edits: &'a Cell<usize>,
}

impl Piece<'_> {
    fn load(&self) {
        self.window.set(self.size.min(self.len - self.at.get()));
    }
}

impl Source for Piece<'_> {
    const RUN: u32 = 1;
    fn left(&self) -> u32 {
        (self.len - self.at.get()) as u32
    }
    fn ready(&self) -> u32 {
        self.window.get() as u32
    }
    fn peek(&self, at: u32) -> u8 {
        self.all.borrow()[self.start + self.at.get() + at as usize]
    }
    fn pass(&self, n: u32) {
        self.at.set(self.at.get() + n as usize);
        self.window
            .set(self.window.get().saturating_sub(n as usize));
    }
}

impl Placed for Piece<'_> {
    fn place(&self) -> u64 {
        (self.start + self.at.get()) as u64
    }
}

impl Edit for Piece<'_> {
    fn substitute(&self, number: u32) -> Option<&Substitute> {
        Some(&self.substitutes.0[number as usize].as_ref()?.1)
    }
    fn reject(&self, _: u64, _: bool) -> bool {
        (self.reject)()
    }
    fn literal(&self, place: u64, s: Named<'_>, from: u32, end: u32) -> Result<(), Failure> {
        let s = s.spelling;
        let (from, end) = (from as usize, end as usize);
        let place = place as usize;
        let mut all = self.all.borrow_mut();
        assert_eq!(all[place..place + end - from], s.watched[from..end]);
        all[place..place + end - from].copy_from_slice(&s.substitute[from..end]);
        self.edits.set(self.edits.get() + 1);
        Ok(())
    }
    fn undo(&self, _: u64, _: Named<'_>, _: u32, _: u32) -> bool {
        unreachable!("nothing fails here");
    }
    fn index(&self, place: u64, octet: u8) -> Result<(), Failure> {
        let mut all = self.all.borrow_mut();
        assert!(all[place as usize] >= 0x80 + 62);
        all[place as usize] = octet;
        self.edits.set(self.edits.get() + 1);
        Ok(())
    }
}

/// Walks a connection as the gate does. Returns what its server reads, and each request with its class.
fn enforce(bytes: &[u8], cuts: &Cuts, reject: &dyn Fn() -> bool) -> (Vec<u8>, Vec<(u32, u32)>) {
    let all = RefCell::new(bytes.to_vec());
    let (conn, paths, substitutes) = (Conn::new(), table(PATHS), Substitutes::new());
    // SAFETY: it is made of cells of integers, for which all zero is a value.
    let segments: Segments = unsafe { std::mem::zeroed() };
    let edits = Cell::new(0);
    let mut requests = Vec::new();
    cuts.apply(bytes, |pieces, window| {
        segments.forget();
        let total = pieces.iter().map(|p| p.len()).sum::<usize>() as u32;
        let mut begun = None;
        for piece in pieces.iter().filter(|p| !p.is_empty()) {
            let source = Piece {
                all: &all,
                start: piece.as_ptr() as usize - bytes.as_ptr() as usize,
                len: piece.len(),
                at: Cell::new(0),
                window: Cell::new(0),
                size: window,
                substitutes: &substitutes,
                reject,
                edits: &edits,
            };
            source.load();
            let mode = *begun.get_or_insert_with(|| begin(&conn, &source, total));
            assert!(matches!(mode, Begin::Fresh | Begin::Follow), "{mode:?}");
            while source.left() > 0 {
                let outcome = edit::step(&conn, &source, &segments, &*paths, false);
                if segments.found() {
                    edit::apply(&conn, &source, &segments);
                }
                match outcome {
                    Outcome::Continue | Outcome::Reset => {}
                    Outcome::Starved => source.load(),
                    Outcome::Request => requests.push((conn.last_stream.get(), conn.path.get())),
                    other => panic!("{other:?}"),
                }
                conn.check_invariants().unwrap();
            }
        }
        assert!(begun.is_none() || conn.status.get() == status::SYNCED);
        ControlFlow::Continue(())
    });
    (all.into_inner(), requests)
}

const IS_LATCHED: std::ops::Range<u32> = LATCHED..LATCHED + MAX_PATHS as u32;
const IS_WATCHED: std::ops::Range<u32> = WATCHED..LATCHED;

/// A client's stream, of which every request can be told.
fn built(choices: &[u8]) -> Builder {
    let mut builder = Builder::new(Habits {
        gaps: false,
        malformed: false,
        ..Habits::WILD
    });
    builder.run(&mut Choices::new(choices));
    builder
}

/// One after the other, and from the beginning again.
pub fn tosses(coins: &[bool]) -> impl Fn() -> bool + '_ {
    let tossed = Cell::new(0);
    move || {
        tossed.set(tossed.get() + 1);
        coins[tossed.get() % coins.len()]
    }
}

/// That a server reads in `bytes` what is said of each request of `sent`, and that all else is as it was.
fn same_as_said(
    sent: &Parsed,
    bytes: &[u8],
    requests: Vec<(u32, u32)>,
) -> Result<(), TestCaseError> {
    let read = parse(bytes);
    prop_assert_eq!(read.stop, Stop::End, "the server can read it");
    prop_assert_eq!(read.requests.len(), sent.requests.len());
    prop_assert_eq!(&read.frames, &sent.frames);
    prop_assert_eq!(requests.len(), sent.requests.len());
    let substitutes = Substitutes::new();
    for ((sent, read), (number, class)) in sent.requests.iter().zip(&read.requests).zip(requests) {
        prop_assert_eq!((sent.stream, read.stream), (number, number));
        if IS_LATCHED.contains(&class) {
            let substitute = substitutes.name(&sent.paths[0]);
            prop_assert!(read.paths[0] == b"/" || Some(&read.paths[0]) == substitute.as_ref());
            prop_assert_eq!(
                PATHS[(class - LATCHED) as usize].as_bytes(),
                &sent.paths[0][..]
            );
        } else if class != UNRESOLVED {
            prop_assert_eq!(&sent.paths, &read.paths);
            prop_assert_eq!(
                IS_WATCHED.contains(&class),
                PATHS.iter().any(|p| p.as_bytes() == sent.paths[0])
            );
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(512) })]

    /// What the enforcer says of each request is what the server reads, and all else is what the client sent.
    #[test]
    fn a_server_reads_what_the_enforcer_says(
        stream in vec(any::<u8>(), 0..600), cuts in vec(any::<u8>(), 0..200), coins in vec(any::<bool>(), 1..20),
    ) {
        let builder = built(&stream);
        let sent = parse(&builder.bytes);
        prop_assert_eq!(sent.stop, Stop::End);
        let toss = tosses(&coins);
        let cuts = Cuts::random(&mut Choices::new(&cuts), builder.bytes.len());
        let (bytes, requests) = enforce(&builder.bytes, &cuts, &toss);
        same_as_said(&sent, &bytes, requests)?;
    }

    /// Whole, and with every call to be rejected: not one gets through.
    #[test]
    fn nothing_watched_gets_through(stream in vec(any::<u8>(), 0..600)) {
        let builder = built(&stream);
        let cuts = Cuts::none(builder.bytes.len());
        let (bytes, requests) = enforce(&builder.bytes, &cuts, &|| true);
        let substitutes = Substitutes::new();
        for (read, (_, class)) in parse(&bytes).requests.iter().zip(requests) {
            let [path] = &read.paths[..] else { continue };
            // An index of two octets, or a path without a substitute.
            if IS_WATCHED.contains(&class) {
                continue;
            }
            prop_assert!(!PATHS.iter().any(|p| p.as_bytes() == path && substitutes.name(path).is_some()), "{path:?}");
        }
    }

    /// Nothing is to be rejected: not one octet changes.
    #[test]
    fn without_a_rejection_nothing_changes(stream in vec(any::<u8>(), 0..600), cuts in vec(any::<u8>(), 0..200)) {
        let builder = built(&stream);
        let cuts = Cuts::random(&mut Choices::new(&cuts), builder.bytes.len());
        let (bytes, _) = enforce(&builder.bytes, &cuts, &|| false);
        prop_assert_eq!(bytes, builder.bytes);
    }
}

/// What a sender hands to the kernel: one send after another, of which only a part may be sent.
struct Sender<'a> {
    bytes: &'a RefCell<Vec<u8>>,
    conn: Conn,
    segments: Segments,
    paths: Box<agent_common::h2::paths::PathTable>,
    substitutes: Substitutes,
    /// How the call is answered whose path was passed last.
    manner: Cell<u32>,
}

/// Overwrites what is to be rejected, and writes it down: what `rewrite` does at the entry.
struct Rewriting<'a> {
    bytes: &'a RefCell<Vec<u8>>,
    substitutes: &'a Substitutes,
    journal: &'a Journal,
    reject: &'a dyn Fn() -> bool,
    /// Whether a rejected call is to be answered quietly.
    quiet: &'a dyn Fn() -> bool,
    /// Whether the octet before a path can be overwritten.
    writable: &'a dyn Fn() -> bool,
}

impl Edit for Rewriting<'_> {
    fn substitute(&self, number: u32) -> Option<&Substitute> {
        Some(&self.substitutes.0[number as usize].as_ref()?.1)
    }
    fn reject(&self, _: u64, begun: bool) -> bool {
        (begun || (self.reject)()) && self.journal.begin().is_ok()
    }
    fn literal(&self, place: u64, s: Named<'_>, from: u32, end: u32) -> Result<(), Failure> {
        self.journal.piece(place, s.id, from, end)?;
        let (place, from, end) = (place as usize, from as usize, end as usize);
        let mut bytes = self.bytes.borrow_mut();
        assert_eq!(
            bytes[place..place + end - from],
            s.spelling.watched[from..end]
        );
        bytes[place..place + end - from].copy_from_slice(&s.spelling.substitute[from..end]);
        Ok(())
    }
    fn undo(&self, place: u64, s: Named<'_>, from: u32, end: u32) -> bool {
        let (place, from, end) = (place as usize, from as usize, end as usize);
        self.bytes.borrow_mut()[place..place + end - from]
            .copy_from_slice(&s.spelling.watched[from..end]);
        true
    }
    fn undone(&self) {
        self.journal.undone();
    }
    fn index(&self, place: u64, octet: u8) -> Result<(), Failure> {
        let mut bytes = self.bytes.borrow_mut();
        self.journal.index(place, bytes[place as usize])?;
        bytes[place as usize] = octet;
        Ok(())
    }
    fn asked(&self, number: u32) -> bool {
        number == 0 && (self.quiet)()
    }
    fn answerable(&self, _: u32) -> u32 {
        quiet::code(Manner::Quiet)
    }
    fn length(&self, place: u64, was: u8, octet: u8) -> Result<(), Failure> {
        self.journal.length(place, was)?;
        if !(self.writable)() {
            self.journal.unwritten();
            return Err(Failure::Unwritable);
        }
        let mut bytes = self.bytes.borrow_mut();
        assert_eq!(bytes[place as usize], was);
        bytes[place as usize] = octet;
        Ok(())
    }
    fn rejected(&self, place: u64, id: u32, manner: u32) {
        self.journal.rejected(place, id, manner);
    }
}

impl Sender<'_> {
    /// Walks `len` octets from `at` on; `found` is called behind each step that passed a watched path.
    fn walk(&self, c: &Conn, at: usize, len: usize, found: &dyn Fn(), request: &mut dyn FnMut()) {
        self.segments.forget();
        let source = Piece {
            all: self.bytes,
            start: at,
            len,
            at: Cell::new(0),
            window: Cell::new(len),
            size: len,
            substitutes: &self.substitutes,
            reject: &|| false,
            edits: &Cell::new(0),
        };
        assert!(matches!(
            begin(c, &source, len as u32),
            Begin::Fresh | Begin::Follow
        ));
        while source.left() > 0 {
            let outcome = edit::step(c, &source, &self.segments, &*self.paths, false);
            if self.segments.found() {
                found();
            }
            match outcome {
                Outcome::Continue | Outcome::Reset => {}
                Outcome::Request => request(),
                other => panic!("{other:?}"),
            }
            c.check_invariants().unwrap();
        }
    }

    /// One system call for `len` octets from `at` on, of which `sent` are sent. Returns what goes out.
    fn send(
        &self,
        (at, len, sent): (usize, usize, usize),
        judge: Judge<'_>,
        requests: &mut Vec<Said>,
    ) -> Vec<u8> {
        let before = self.bytes.borrow()[at..at + len].to_vec();
        let (draft, journal) = (Conn::new(), Journal::new());
        draft.copy_from(&self.conn);
        let rewriting = Rewriting {
            bytes: self.bytes,
            substitutes: &self.substitutes,
            journal: &journal,
            reject: judge.reject,
            quiet: judge.quiet,
            writable: judge.writable,
        };
        let apply = || edit::apply(&draft, &rewriting, &self.segments);
        self.walk(&draft, at, len, &apply, &mut || {});
        edit::finish(&draft, &rewriting, &self.segments);
        let out = self.bytes.borrow()[at..at + sent].to_vec();
        // The exit: what was there is put back, and what was sent is walked again.
        for i in 0..journal.written() {
            let (place, original) = journal.original(i);
            let place = place as usize;
            let mut bytes = self.bytes.borrow_mut();
            match original {
                Original::Octet { was, is } => {
                    assert_eq!(bytes[place], is);
                    bytes[place] = was;
                }
                Original::Spelling { id, from, end } => {
                    let (number, coding) = spelling_of(id);
                    let spelling = &self.substitutes.0[number as usize]
                        .as_ref()
                        .unwrap()
                        .1
                        .spellings[coding];
                    let (from, end) = (from as usize, end as usize);
                    assert_eq!(
                        bytes[place..place + end - from],
                        spelling.substitute[from..end]
                    );
                    bytes[place..place + end - from].copy_from_slice(&spelling.watched[from..end]);
                }
            }
        }
        assert_eq!(
            self.bytes.borrow()[at..at + len],
            before,
            "the sender's bytes are its own again"
        );
        if sent > 0 {
            let replay = || {
                self.manner.set(journal.replay(&self.conn, &self.segments));
            };
            let mut request = || {
                requests.push(Said {
                    stream: self.conn.last_stream.get(),
                    class: self.conn.path.get(),
                    manner: self.manner.take(),
                });
            };
            self.walk(&self.conn, at, sent, &replay, &mut request);
            let substitute = journal.cut_path(&self.conn, &self.segments);
            let substitute = substitute.and_then(|number| rewriting.substitute(number));
            journal.cut(&self.conn, &self.segments, substitute);
        }
        out
    }
}

/// Walks a connection as `rewrite` does; each number says how long a send is, and the next how much of it is sent.
fn rewrite(bytes: &[u8], cuts: &[u8], reject: &dyn Fn() -> bool) -> (Vec<u8>, Vec<(u32, u32)>) {
    let judge = Judge {
        reject,
        quiet: &|| false,
        writable: &|| true,
    };
    let (out, said) = rewrite_quietly(bytes, cuts, judge);
    assert!(said.iter().all(|said| said.manner == 0));
    (out, said.iter().map(|s| (s.stream, s.class)).collect())
}

/// What the enforcer says of a request.
#[derive(Clone, Copy, Debug)]
pub struct Said {
    pub stream: u32,
    pub class: u32,
    /// [`quiet::code`], or 0 where nobody asks.
    pub manner: u32,
}

/// Who says what becomes of a call.
#[derive(Clone, Copy)]
pub struct Judge<'a> {
    /// Whether it is to be rejected.
    pub reject: &'a dyn Fn() -> bool,
    /// Whether it is to be answered quietly then.
    pub quiet: &'a dyn Fn() -> bool,
    /// Whether the octet before its path can be overwritten.
    pub writable: &'a dyn Fn() -> bool,
}

impl Judge<'_> {
    /// All are rejected, quietly where that can be.
    pub const QUIET: Self = Self {
        reject: &|| true,
        quiet: &|| true,
        writable: &|| true,
    };
}

/// The same, and which of the rejected calls are to be answered quietly.
pub fn rewrite_quietly(bytes: &[u8], cuts: &[u8], judge: Judge<'_>) -> (Vec<u8>, Vec<Said>) {
    let mut cuts = cuts.iter().map(|&n| usize::from(n)).cycle();
    // The preface is written whole, as every client does.
    let mut least = 24;
    let (mut at, mut sends) = (0, Vec::new());
    while at < bytes.len() {
        let len = (cuts.next().unwrap_or(200) * 2)
            .clamp(least, 400)
            .min(bytes.len() - at);
        let sent = (cuts.next().unwrap_or(255) * len / 255).max(1);
        let sent = if least > 1 { len } else { sent };
        sends.push((len, sent));
        at += sent;
        least = 1;
    }
    rewrite_sends(bytes, &sends, judge)
}

/// The same, of sends of that many octets, of which so many are sent.
pub fn rewrite_sends(
    bytes: &[u8],
    sends: &[(usize, usize)],
    judge: Judge<'_>,
) -> (Vec<u8>, Vec<Said>) {
    let all = RefCell::new(bytes.to_vec());
    let sender = Sender {
        bytes: &all,
        conn: Conn::new(),
        // SAFETY: it is made of cells of integers, for which all zero is a value.
        segments: unsafe { std::mem::zeroed() },
        paths: table(PATHS),
        substitutes: Substitutes::new(),
        manner: Cell::new(0),
    };
    let (mut at, mut out, mut requests) = (0, Vec::new(), Vec::new());
    for &(len, sent) in sends {
        out.extend(sender.send((at, len, sent), judge, &mut requests));
        at += sent;
    }
    assert_eq!(at, bytes.len());
    (out, requests)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(512) })]

    /// Sends that are sent in part, tried again, and judged anew each time: the server reads what is said of each request, and
    /// the sender's memory is its own again behind each.
    #[test]
    fn what_is_rewritten_in_parts(
        stream in vec(any::<u8>(), 0..600), cuts in vec(any::<u8>(), 1..200), coins in vec(any::<bool>(), 1..20),
    ) {
        let builder = built(&stream);
        let sent = parse(&builder.bytes);
        prop_assert_eq!(sent.stop, Stop::End);
        let toss = tosses(&coins);
        let (bytes, requests) = rewrite(&builder.bytes, &cuts, &toss);
        same_as_said(&sent, &bytes, requests)?;
    }

    /// The same, cut within every path.
    #[test]
    fn what_is_rewritten_octet_by_octet(stream in vec(any::<u8>(), 0..300), length in 1u8..12) {
        let builder = built(&stream);
        let sent = parse(&builder.bytes);
        // Sends of 24 octets and more, of which a few are sent.
        let (bytes, requests) = rewrite(&builder.bytes, &[60, length * 2], &|| true);
        same_as_said(&sent, &bytes, requests)?;
    }
}
