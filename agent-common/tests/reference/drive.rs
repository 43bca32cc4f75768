//! Runs the tracker over a byte stream that is cut at three levels: into sends (system calls), into the pieces of a
//! send (iovecs), and into windows (what a program has copied from user memory so far).

use std::cell::Cell;

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

/// How a stream is cut: the lengths of the pieces of each send, and the window.
#[derive(Clone, Debug)]
pub struct Cuts {
    pub sends: Vec<Vec<usize>>,
    pub window: usize,
}

impl Cuts {
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
        let mut sends = Vec::new();
        while left > 0 {
            let mut pieces = Vec::new();
            loop {
                let n = left.min(
                    choices
                        .below(longest + 1)
                        .max(usize::from(choices.is_empty())),
                );
                pieces.push(n);
                left -= n;
                if left == 0 || choices.chance(96) || choices.is_empty() {
                    break;
                }
            }
            sends.push(pieces);
        }
        Self { sends, window }
    }

    /// Each send of `bytes` as its pieces.
    pub fn apply<'a>(&self, bytes: &'a [u8]) -> Vec<Vec<&'a [u8]>> {
        let mut rest = bytes;
        let mut cut = |n: &usize| {
            let (piece, after) = rest.split_at(*n);
            rest = after;
            piece
        };
        self.sends
            .iter()
            .map(|send| send.iter().map(&mut cut).collect())
            .collect()
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
                Outcome::Continue => {}
                Outcome::Starved => {
                    assert_eq!(source.ready(), 0, "starved beside a full plate");
                    source.load();
                }
                Outcome::Request => request(conn.last_stream.get(), conn.path.get()),
                Outcome::Fault(fault) => return end(conn, mode, Some(fault)),
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
    for pieces in cuts.apply(bytes) {
        let requests = &mut walked.requests;
        match send(&conn, &pieces, cuts.window, paths, |stream, class| {
            requests.push((stream, class));
        }) {
            End::Keep => assert_eq!(conn.status.get(), status::SYNCED),
            End::Drop => assert!(pieces.iter().all(|p| p.is_empty()), "dropped a connection"),
            End::Lost(fault) => {
                assert_eq!(conn.status.get(), status::UNSYNCED);
                walked.fault = Some(fault);
                break;
            }
        }
    }
    walked
}
