//! Frames passed together: the state is what the walk leaves, wherever receives end, and nothing is passed that the walk would tell of.

use std::slice;

use agent_common::h2::bulk::{Ahead, FRAMES, Header, pass};
use agent_common::h2::frame::{HEAD, flag, kind};
use agent_common::h2::status::StatusTable;
use agent_common::h2::track::status;
use agent_common::h2::walk::{Conn, Fault, Outcome, Source as _, phase, step};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use crate::reference::drive::Windowed;

/// What a server's stream had, as far as anybody wants to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    /// A DATA frame that has a flag, or that is awaited: its stream, its payload, and whether it ends the stream.
    Data(u32, u32, bool),
    /// A header block: its stream, what it says, and whether it ends the stream.
    Block(u32, u32, bool),
    Reset(u32),
    Fault(Fault),
}

/// A connection that is followed.
struct Followed<'a> {
    conn: Conn,
    told: Vec<Told>,
    /// Streams whose payload is awaited.
    awaited: &'a [u32],
    statuses: Box<StatusTable>,
}

/// A receive, of which it may not be possible to read every header.
struct Receive<'a> {
    bytes: &'a [u8],
    awaited: &'a [u32],
    unreadable: bool,
}

impl Ahead for Receive<'_> {
    fn read(&self, at: u64, header: &mut Header) -> bool {
        if self.unreadable && at % 2 == 1 {
            return false;
        }
        let from = &self.bytes[at as usize..][..HEAD as usize];
        // SAFETY: there is room for HEAD octets.
        unsafe { slice::from_raw_parts_mut(header.octets(), from.len()) }.copy_from_slice(from);
        true
    }

    fn is_awaited(&self, stream: u32) -> bool {
        self.awaited.contains(&stream)
    }
}

impl<'a> Followed<'a> {
    fn new(awaited: &'a [u32]) -> Self {
        let mut statuses = Box::new(StatusTable::EMPTY);
        statuses.fill();
        let conn = Conn::new();
        conn.restart();
        conn.status.set(status::SYNCED);
        Self {
            conn,
            told: Vec::new(),
            awaited,
            statuses,
        }
    }

    /// Passes what it can at once. Returns how much that was.
    fn pass(&self, bytes: &[u8], unreadable: bool) -> usize {
        let awaited = self.awaited;
        let receive = Receive {
            bytes,
            awaited,
            unreadable,
        };
        let passed = pass(&self.conn, &receive, bytes.len() as u32) as usize;
        assert_eq!(self.conn.check_invariants(), Ok(()));
        passed
    }

    /// Walks. `false`: it can't be followed any further.
    fn walk(&mut self, bytes: &[u8], window: usize) -> bool {
        let source = Windowed::new(bytes, window);
        let c = &self.conn;
        while source.left() > 0 {
            let told = match step(c, &source, &*self.statuses, false) {
                Outcome::Continue | Outcome::Request => continue,
                Outcome::Starved => {
                    source.load();
                    continue;
                }
                Outcome::Data => {
                    let stream = c.stream.get();
                    let plain = !c.ends_stream() && !c.is_padded();
                    if plain && !self.awaited.contains(&stream) {
                        continue;
                    }
                    Told::Data(stream, c.count.get(), c.ends_stream())
                }
                Outcome::Block => Told::Block(c.stream.get(), c.path.get(), c.ends_stream()),
                Outcome::Reset => Told::Reset(c.stream.get()),
                Outcome::Fault(fault) => Told::Fault(fault),
            };
            self.told.push(told);
            if let Told::Fault(_) = told {
                return false;
            }
        }
        true
    }
}

fn frame(kind: u32, flags: u32, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind as u8, flags as u8]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// Payload that would be frames of a server itself, if anybody took it for that.
fn payload(len: usize) -> Vec<u8> {
    let frames = [
        frame(kind::RST_STREAM, 0, 5, &[0; 4]),
        frame(kind::DATA, flag::END_STREAM, 7, &[]),
    ]
    .concat();
    frames.into_iter().cycle().take(len).collect()
}

fn data(flags: u32, stream: u32, len: usize) -> Vec<u8> {
    frame(kind::DATA, flags, stream, &payload(len))
}

/// Any frame that a server may send, as octets, and seldom one that it may not.
fn any_frame() -> impl Strategy<Value = Vec<u8>> {
    // The last one has the reserved bit.
    let stream = || select(vec![1, 3, 5, 7, 0x8000_0003]);
    let len = || {
        prop_oneof![
            3 => select(vec![0, 1, 8, 9, 10, 16_384]),
            2 => 0..40usize,
            1 => 0..2000usize,
        ]
    };
    let block = |flags: u32, stream: u32, pad: u8, cut: usize| {
        // `grpc-status: 0`, behind an index of the static table.
        let block = b"\x88\x40\x0bgrpc-status\x010";
        let (first, rest) = block.split_at(cut.min(block.len()));
        let mut payload = Vec::new();
        if flags & flag::PADDED != 0 {
            payload.push(pad);
        }
        if flags & flag::PRIORITY != 0 {
            payload.extend([0, 0, 0, 0, 16]);
        }
        payload.extend(first);
        if flags & flag::PADDED != 0 {
            payload.extend(vec![0; pad.into()]);
        }
        if rest.is_empty() {
            return frame(kind::HEADERS, flags | flag::END_HEADERS, stream, &payload);
        }
        let continuation = frame(kind::CONTINUATION, flag::END_HEADERS, stream, rest);
        [frame(kind::HEADERS, flags, stream, &payload), continuation].concat()
    };
    let ends = select(vec![0, flag::END_STREAM]);
    let how = select(vec![
        0,
        flag::PADDED,
        flag::PRIORITY,
        flag::PADDED | flag::PRIORITY,
    ]);
    prop_oneof![
        60 => (stream(), len()).prop_map(|(stream, len)| data(0, stream, len)),
        // Many in a row.
        5 => (1..150usize).prop_map(|n| data(0, 1, 1).repeat(n)),
        5 => (select(vec![0x1, 0x2, 0x8, 0x9, 0x40]), stream(), len())
            .prop_map(|(flags, stream, len)| data(flags, stream, len)),
        10 => (ends, how, stream(), any::<u8>(), 0..20usize)
            .prop_map(move |(ends, how, stream, pad, cut)| block(ends | how, stream, pad, cut)),
        3 => stream().prop_map(|stream| frame(kind::RST_STREAM, 0, stream, &[0; 4])),
        3 => select(vec![0, 3]).prop_map(|stream| frame(kind::WINDOW_UPDATE, 0, stream, &[1; 4])),
        3 => select(vec![0, flag::ACK]).prop_map(|flags| frame(kind::PING, flags, 0, &[1; 8])),
        3 => (0..3usize).prop_map(|n| frame(kind::SETTINGS, 0, 0, &vec![0; 6 * n])),
        2 => len().prop_map(|len| frame(kind::GOAWAY, 0, 0, &payload(8 + len))),
        2 => (0..100usize).prop_map(|len| frame(200, 0xff, 1, &payload(len))),
        1 => select(vec![
            data(0, 0, 4),
            data(0, 0x8000_0000, 4),
            frame(kind::CONTINUATION, 0, 1, &[0x88]),
            frame(kind::HEADERS, flag::END_HEADERS, 2, &[0x88]),
            frame(kind::PING, 0, 0, &[]),
        ]),
    ]
}

/// Compares both ways with each other, over receives of these lengths, one after the other and from the first one again.
fn compare(
    mut bytes: &[u8],
    receives: &[usize],
    window: usize,
    awaited: &[u32],
    unreadable: bool,
) -> Result<(), TestCaseError> {
    let (mut walked, mut passed) = (Followed::new(awaited), Followed::new(awaited));
    for &len in receives.iter().cycle() {
        let (receive, rest) = bytes.split_at(len.min(bytes.len()));
        bytes = rest;
        let goes_on = walked.walk(receive, window);
        let at = passed.pass(receive, unreadable);
        prop_assert_eq!(passed.walk(&receive[at..], window), goes_on);
        prop_assert_eq!(&walked.told, &passed.told);
        if !goes_on || bytes.is_empty() {
            break;
        }
        prop_assert!(walked.conn.is_like(&passed.conn));
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) })]

    #[test]
    fn frames_are_passed_as_the_walk_passes_them(
        frames in vec(any_frame(), 1..40),
        receives in vec(prop_oneof![1..30usize, 1..600usize, 1000..70_000usize], 1..30),
        window in select(vec![1, 8, 256, usize::MAX]),
        awaited in select(vec![&[][..], &[3], &[1, 5]]),
        unreadable: bool,
    ) {
        compare(&frames.concat(), &receives, window, awaited, unreadable)?;
    }
}

/// Two receives, the first of which ends anywhere.
#[test]
fn a_receive_may_end_anywhere() {
    let bytes = [
        data(0, 1, 20),
        data(0, 1, 0),
        data(0, 3, 1),
        data(flag::PADDED, 1, 9),
        frame(kind::WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]),
        data(0, 1, 12),
        frame(kind::HEADERS, 5, 3, b"\x88\x40\x0bgrpc-status\x010"),
        data(flag::END_STREAM, 1, 3),
        data(0, 5, 30),
    ]
    .concat();
    for first in 1..=bytes.len() {
        for awaited in [&[][..], &[1], &[3, 5]] {
            compare(&bytes, &[first, bytes.len()], 256, awaited, false).unwrap();
        }
    }
}

/// Where nothing else is there, nothing is left to the walk.
#[test]
fn messages_are_passed_whole() {
    let followed = Followed::new(&[3]);
    let message = data(0, 1, 1050);
    let messages = message.repeat(7);
    assert_eq!(followed.pass(&messages, false), messages.len());
    assert!(followed.conn.at_border());
    // Nor where a receive ends within one, and the next begins there.
    let (first, second) = messages.split_at(5 * message.len() + 700);
    assert_eq!(followed.pass(first, false), first.len());
    assert_eq!(followed.conn.phase.get(), phase::SKIP);
    assert_eq!(followed.conn.stream.get(), 1);
    assert_eq!(followed.pass(second, false), second.len());
    assert!(followed.conn.at_border());
    // Up to what somebody waits for, or what is no DATA, or is cut.
    for last in [
        data(0, 3, 8),
        frame(kind::PING, 0, 0, &[0; 8]),
        message[..8].to_vec(),
    ] {
        let bytes = [&*messages, &last].concat();
        assert_eq!(followed.pass(&bytes, false), messages.len());
        assert!(followed.conn.at_border());
    }
    // Of a long row, the last header is passed and its payload is left.
    let row = message.repeat(FRAMES as usize + 3);
    let passed = (FRAMES as usize - 1) * message.len() + HEAD as usize;
    assert_eq!(followed.pass(&row, false), passed);
    assert_eq!(
        followed.conn.count.get() as usize,
        message.len() - HEAD as usize
    );
}
