//! Runs the tracker over a byte stream that is cut at three levels: into sends (system calls), into the pieces of a
//! send (iovecs), and into windows (what a program has copied from user memory so far).

use std::cell::Cell;
use std::ops::ControlFlow;

use agent_common::h2::paths::Paths;
use agent_common::h2::track::{Begin, End, begin, end, status};
use agent_common::h2::walk::{Conn, Fault, Outcome, Source, step};

use super::choices::Choices;

/// What the tracker made of a stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Walked {
    /// Stream and class of each request.
    pub requests: Vec<(u32, u32)>,
    pub fault: Option<Fault>,
}

/// How a stream is cut.
#[derive(Clone, Debug)]
pub struct Cuts {
    /// The length of each piece, and whether it is the last one of its send.
    pieces: Vec<(usize, bool)>,
    window: usize,
}

impl Cuts {
    /// One send, of which all is ready.
    pub fn none(total: usize) -> Self {
        Self::sends([total], usize::MAX)
    }

    /// These sends, each in one piece.
    pub fn sends(lengths: impl IntoIterator<Item = usize>, window: usize) -> Self {
        let pieces = lengths.into_iter().map(|n| (n, true)).collect();
        Self { pieces, window }
    }

    /// Cuts `total` octets anywhere.
    pub fn random(choices: &mut Choices, total: usize) -> Self {
        let window = match choices.below(4) {
            0 => usize::MAX,
            1 => 1 + choices.below(8),
            2 => 9 + choices.below(16),
            _ => 256,
        };
        // Short ones find most; without long ones a long stream would need too many choices.
        let longest = *choices.one(&[1, 4, 16, 64, 300, 5000]);
        let mut left = total;
        let mut pieces = Vec::new();
        while left > 0 {
            let (n, last) = if choices.is_empty() {
                (longest, true)
            } else {
                (choices.below(longest + 1), choices.chance(96))
            };
            let n = n.min(left);
            left -= n;
            pieces.push((n, last || left == 0));
        }
        Self { pieces, window }
    }

    /// Calls `send` with the pieces of each send of `bytes`, and the window, until it says stop.
    pub fn apply<'a>(
        &self,
        mut bytes: &'a [u8],
        mut send: impl FnMut(&[&'a [u8]], usize) -> ControlFlow<()>,
    ) {
        let mut pieces = Vec::new();
        for &(n, last) in &self.pieces {
            let (piece, rest) = bytes.split_at(n);
            bytes = rest;
            pieces.push(piece);
            if last {
                if send(&pieces, self.window).is_break() {
                    return;
                }
                pieces.clear();
            }
        }
    }
}

/// A piece of which no more than a window is ready.
pub struct Windowed<'a> {
    bytes: &'a [u8],
    window: usize,
    at: Cell<usize>,
    loaded: Cell<usize>,
}

impl<'a> Windowed<'a> {
    pub fn new(bytes: &'a [u8], window: usize) -> Self {
        let source = Self {
            bytes,
            window,
            at: Cell::new(0),
            loaded: Cell::new(0),
        };
        source.load();
        source
    }

    /// Makes the next window ready.
    pub fn load(&self) {
        let end = self.at.get().saturating_add(self.window);
        self.loaded.set(end.min(self.bytes.len()));
    }
}

impl Source for Windowed<'_> {
    fn left(&self) -> u32 {
        (self.bytes.len() - self.at.get()) as u32
    }
    fn ready(&self) -> u32 {
        self.loaded.get().saturating_sub(self.at.get()) as u32
    }
    fn peek(&self, at: u32) -> u8 {
        assert!(at < self.ready(), "looked at what isn't ready");
        self.bytes[self.at.get() + at as usize]
    }
    fn pass(&self, n: u32) {
        assert!(n <= self.left(), "passed more than there is");
        self.at.set(self.at.get() + n as usize);
    }
}

/// Walks one send, as a BPF program does, and checks the state after each step.
pub fn send<P: Paths>(
    conn: &Conn,
    pieces: &[&[u8]],
    window: usize,
    paths: &P,
    mut request: impl FnMut(u32, u32),
) -> End {
    let total: usize = pieces.iter().map(|p| p.len()).sum();
    let mut begun = None;
    for piece in pieces.iter().filter(|p| !p.is_empty()) {
        let source = Windowed::new(piece, window);
        let mode = *begun.get_or_insert_with(|| begin(conn, &source, total as u32));
        if matches!(mode, Begin::Tls | Begin::Ignore) {
            break;
        }
        let mut idle = 0;
        while source.left() > 0 {
            let before = source.left();
            match step(conn, &source, paths, mode == Begin::Join) {
                Outcome::Continue | Outcome::Reset => {}
                Outcome::Starved => {
                    assert_eq!(source.ready(), 0, "starved beside a full plate");
                    source.load();
                }
                Outcome::Request => request(conn.last_stream.get(), conn.path.get()),
                Outcome::Fault(fault) => return end(conn, mode, Some(fault)),
                Outcome::Data | Outcome::Block => unreachable!("a client's stream"),
            }
            if let Err(what) = conn.check_invariants() {
                panic!("{what}");
            }
            idle = if source.left() == before { idle + 1 } else { 0 };
            assert!(idle < 3, "a step that goes nowhere");
        }
    }
    match begun {
        Some(mode) => end(conn, mode, None),
        None => End::Drop,
    }
}

/// Walks a connection from its first byte until the place is lost.
pub fn connection<P: Paths>(bytes: &[u8], cuts: &Cuts, paths: &P) -> Walked {
    let conn = Conn::new();
    let mut walked = Walked::default();
    cuts.apply(bytes, |pieces, window| {
        let requests = &mut walked.requests;
        match send(&conn, pieces, window, paths, |stream, class| {
            requests.push((stream, class));
        }) {
            End::Keep => assert_eq!(conn.status.get(), status::SYNCED),
            End::Drop => assert!(pieces.iter().all(|p| p.is_empty()), "dropped a connection"),
            End::Lost(fault) => {
                assert_eq!(conn.status.get(), status::UNSYNCED);
                walked.fault = Some(fault);
                return ControlFlow::Break(());
            }
        }
        ControlFlow::Continue(())
    });
    walked
}
