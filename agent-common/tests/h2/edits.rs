//! The enforcer's walk on random streams: what a server reads behind it.

use std::cell::{Cell, RefCell};
use std::ops::ControlFlow;

use agent_common::abi::Failure;
use agent_common::h2::edit::{self, Edit, Named, Placed, Segments};
use agent_common::h2::paths::{MAX_LEN, MAX_PATHS};
use agent_common::h2::substitute::{self, Substitute};
use agent_common::h2::track::{Begin, begin, status};
use agent_common::h2::walk::{Conn, LATCHED, Outcome, Source, UNRESOLVED, WATCHED};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::reference::build::{Builder, Habits};
use crate::reference::choices::Choices;
use crate::reference::drive::Cuts;
use crate::reference::{PATHS, Stop, parse, table};

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
    fn undo(&self, _: u64, _: Named<'_>, _: u32, _: u32) {
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
                    Outcome::Continue => {}
                    Outcome::Starved => source.load(),
                    Outcome::Request => requests.push((conn.last_stream.get(), conn.path.get())),
                    Outcome::Fault(fault) => panic!("{fault:?}"),
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

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(512) })]

    /// What the enforcer says of each request is what the server reads, and all else is what the client sent.
    #[test]
    fn a_server_reads_what_the_enforcer_says(
        stream in vec(any::<u8>(), 0..600), cuts in vec(any::<u8>(), 0..200), coins in vec(any::<bool>(), 1..20),
    ) {
        let mut builder = Builder::new(Habits { gaps: false, malformed: false, ..Habits::WILD });
        builder.run(&mut Choices::new(&stream));
        let sent = parse(&builder.bytes);
        prop_assert_eq!(sent.stop, Stop::End);
        let tossed = Cell::new(0);
        let toss = || { tossed.set(tossed.get() + 1); coins[tossed.get() % coins.len()] };
        let cuts = Cuts::random(&mut Choices::new(&cuts), builder.bytes.len());
        let (bytes, requests) = enforce(&builder.bytes, &cuts, &toss);
        prop_assert_eq!(bytes.len(), builder.bytes.len());
        let read = parse(&bytes);
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
                prop_assert_eq!(PATHS[(class - LATCHED) as usize].as_bytes(), &sent.paths[0][..]);
            } else if class != UNRESOLVED {
                prop_assert_eq!(&sent.paths, &read.paths);
                prop_assert_eq!(IS_WATCHED.contains(&class), PATHS.iter().any(|p| p.as_bytes() == sent.paths[0]));
            }
        }
    }

    /// Whole, and with every call to be rejected: not one gets through.
    #[test]
    fn nothing_watched_gets_through(stream in vec(any::<u8>(), 0..600)) {
        let mut builder = Builder::new(Habits { gaps: false, malformed: false, ..Habits::WILD });
        builder.run(&mut Choices::new(&stream));
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
        let mut builder = Builder::new(Habits { gaps: false, malformed: false, ..Habits::WILD });
        builder.run(&mut Choices::new(&stream));
        let cuts = Cuts::random(&mut Choices::new(&cuts), builder.bytes.len());
        let (bytes, _) = enforce(&builder.bytes, &cuts, &|| false);
        prop_assert_eq!(bytes, builder.bytes);
    }
}
