//! What no correct client sends: every fault, what is kept after one, and what isn't HTTP/2 at all.

use std::ops::ControlFlow;

use agent_common::h2::frame::PREFACE;
use agent_common::h2::paths::PathTable;
use agent_common::h2::track::{End, status};
use agent_common::h2::walk::{Conn, Fault, MAX_BLOCK, OTHER, RING, UNRESOLVED, WATCHED};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::reference::build::{Builder, Habits, frame};
use crate::reference::choices::Choices;
use crate::reference::drive::{self, Cuts};
use crate::reference::{PATHS, table};

const PENDING: u32 = WATCHED;
/// `:path: /source.v1.Source/PendingFn`, literal without indexing.
const LITERAL: &[u8] = b"\x04\x1b/source.v1.Source/PendingFn";
/// The same with incremental indexing.
const INDEXING: &[u8] = b"\x44\x1b/source.v1.Source/PendingFn";
const HEADERS: u32 = 1;
const CONTINUATION: u32 = 9;
const END_HEADERS: u32 = 4;

struct Connection {
    conn: Conn,
    table: Box<PathTable>,
    found: Vec<(u32, u32)>,
}

impl Connection {
    /// One of which nothing was seen.
    fn unknown() -> Self {
        Self {
            conn: Conn::new(),
            table: table(PATHS),
            found: Vec::new(),
        }
    }

    /// One that was seen from its beginning.
    fn new() -> Self {
        let mut c = Self::unknown();
        assert_eq!(c.send(&PREFACE), End::Keep);
        c
    }

    fn send(&mut self, bytes: &[u8]) -> End {
        let before = self.found.len();
        let found = &mut self.found;
        let end = drive::send(
            &self.conn,
            &[bytes],
            usize::MAX,
            &*self.table,
            |s, class| {
                found.push((s, class));
            },
        );
        if end == End::Drop {
            self.found.truncate(before);
        }
        end
    }

    /// Sends one frame.
    fn frame(&mut self, kind: u32, flags: u32, stream: u32, payload: &[u8]) -> End {
        let mut bytes = Vec::new();
        frame(&mut bytes, kind, flags, stream, payload);
        self.send(&bytes)
    }

    /// Sends a request and returns the class it was given.
    fn request(&mut self, stream: u32, block: &[u8]) -> u32 {
        let before = self.found.len();
        assert_eq!(self.frame(HEADERS, END_HEADERS, stream, block), End::Keep);
        assert_eq!(self.found.len(), before + 1, "one request");
        let (on, class) = self.found[before];
        assert_eq!(on, stream);
        class
    }
}

/// Sends `bytes` on a connection that was in order, in one piece and octet by octet: it ends in `fault`, finds nothing, and
/// the connection can be joined again.
#[track_caller]
fn loses(bytes: &[u8], fault: Fault) {
    for octets in [bytes.len(), 1] {
        let mut c = Connection::new();
        assert_eq!(c.request(1, INDEXING), PENDING);
        assert_eq!(c.request(3, b"\xbe"), PENDING);
        let last = bytes
            .chunks(octets)
            .map(|b| c.send(b))
            .find(|end| *end != End::Keep);
        assert_eq!(last, Some(End::Lost(fault)));
        assert_eq!(c.found.len(), 2);
        assert_eq!(c.conn.status.get(), status::UNSYNCED);

        // Within a frame: not here.
        assert_eq!(c.send(b"\0\0\x08\x06"), End::Drop);
        assert_eq!(c.conn.status.get(), status::UNSYNCED);
        // Here. The path that was inserted before is forgotten; one that is written out is exact.
        assert_eq!(c.request(7, b"\xbe"), UNRESOLVED);
        assert_eq!(c.conn.status.get(), status::SYNCED);
        assert_eq!(c.request(9, LITERAL), PENDING);
        assert_eq!(c.request(11, INDEXING), PENDING);
        assert_eq!(c.request(13, b"\xbe"), PENDING);
    }
}

fn frames(of: &[(u32, u32, u32, &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (kind, flags, stream, payload) in of {
        frame(&mut bytes, *kind, *flags, *stream, payload);
    }
    bytes
}

/// A block on a new stream, in one HEADERS frame.
fn block(block: &[u8]) -> Vec<u8> {
    frames(&[(HEADERS, END_HEADERS, 5, block)])
}

#[test]
fn frames_that_no_client_sends() {
    for (kind, stream, len) in [
        (0, 0, 4),       // DATA on the connection
        (HEADERS, 0, 4), // HEADERS on the connection
        (HEADERS, 6, 4), // HEADERS on a server's stream
        (2, 0, 5),       // PRIORITY on the connection
        (2, 1, 4),       // and of another length
        (3, 0, 4),       // RST_STREAM on the connection
        (3, 1, 5),
        (4, 1, 0), // SETTINGS on a stream
        (4, 0, 3),
        (4, 0, 7),
        (5, 1, 8), // PUSH_PROMISE
        (5, 0, 8),
        (6, 1, 8), // PING on a stream
        (6, 0, 7),
        (7, 1, 8), // GOAWAY on a stream
        (7, 0, 7),
        (8, 0, 5),         // WINDOW_UPDATE
        (0x20, 0, 16_385), // an unknown type, larger than any frame unless the server asks for it
    ] {
        loses(&frames(&[(kind, 0, stream, &vec![0; len])]), Fault::Frame);
    }
}

/// RFC 9113 §5.5: types that nobody defined are ignored.
#[test]
fn frames_of_unknown_types_are_passed() {
    let mut c = Connection::new();
    for kind in 10..=0xff {
        assert_eq!(c.frame(kind, 0xff, kind % 2, &[1; 40]), End::Keep);
    }
    assert_eq!(c.frame(0x20, 0, 0, &[1; 16_384]), End::Keep);
    assert_eq!(c.request(1, LITERAL), PENDING);
}

#[test]
fn blocks_that_are_interrupted() {
    let open = (HEADERS, 0, 5, &b"\x83"[..]);
    for next in [
        (0, 0, 5, &b""[..]),
        (HEADERS, END_HEADERS, 5, b"\x83"),
        (HEADERS, END_HEADERS, 7, b"\x83"),
        (4, 0, 0, b""),
        (0xff, 0, 0, b""),
        (CONTINUATION, END_HEADERS, 7, b"\x84"),
        (CONTINUATION, END_HEADERS, 0, b"\x84"),
    ] {
        loses(&frames(&[open, next]), Fault::Continuation);
    }
    loses(
        &frames(&[(CONTINUATION, END_HEADERS, 5, b"\x84")]),
        Fault::Continuation,
    );
    loses(
        &frames(&[
            (HEADERS, END_HEADERS, 5, b"\x83"),
            (CONTINUATION, END_HEADERS, 5, b"\x84"),
        ]),
        Fault::Continuation,
    );
}

#[test]
fn more_padding_than_payload() {
    const PADDED: u32 = 8;
    const PRIORITY: u32 = 0x20;
    for (flags, payload) in [
        (PADDED, &b""[..]),
        (PADDED, b"\x01"),
        (PADDED, b"\x02\x84"),
        (PADDED, b"\xff\x84\0\0\0"),
        (PRIORITY, b""),
        (PRIORITY, b"\0\0\0\0"),
        (PADDED | PRIORITY, b"\0"),
        (PADDED | PRIORITY, b"\x01\0\0\0\0\0"),
    ] {
        loses(
            &frames(&[(HEADERS, flags | END_HEADERS, 5, payload)]),
            Fault::Padding,
        );
    }
    // All of it padding is legal.
    let mut c = Connection::new();
    assert_eq!(c.frame(HEADERS, PADDED, 1, b"\x03\0\0\0"), End::Keep);
    assert_eq!(c.frame(CONTINUATION, END_HEADERS, 1, LITERAL), End::Keep);
    assert_eq!(c.found, [(1, PENDING)]);
    let mut payload = vec![9, 0x80, 0, 0, 1, 255];
    payload.extend(LITERAL);
    payload.extend([0xff; 9]);
    assert_eq!(
        c.frame(HEADERS, PADDED | PRIORITY | END_HEADERS, 3, &payload),
        End::Keep
    );
    assert_eq!(c.found, [(1, PENDING), (3, PENDING)]);
}

#[test]
fn integers_that_are_none() {
    // Index 0.
    loses(&block(b"\x80"), Fault::Integer);
    // Five continuation octets: as an index, a name's index, a table's size, a string's length.
    for first in [
        &b"\xff"[..],
        b"\x7f",
        b"\x0f",
        b"\x1f",
        b"\x3f",
        b"\x04\x7f",
        b"\x04\xff",
        b"\x40\x7f",
    ] {
        for octets in [
            b"\x80\x80\x80\x80\x00",
            b"\xff\xff\xff\xff\x0f",
            b"\xff\xff\xff\xff\xff",
        ] {
            loses(&block(&[first, octets].concat()), Fault::Integer);
        }
    }
    // Four are as many as anybody accepts, also where fewer would do (RFC 7541 §5.1).
    let mut c = Connection::new();
    assert_eq!(c.request(1, INDEXING), PENDING);
    assert_eq!(
        c.request(3, b"\x0f\xaf\x80\x80\x00\x1b/source.v1.Source/PendingFn"),
        PENDING
    );
    // The largest index is unknown, not a crash.
    assert_eq!(c.request(5, b"\xff\xff\xff\xff\x7f"), UNRESOLVED);
    assert_eq!(c.request(7, b"\xbe"), PENDING);
}

/// A block that ends anywhere within a field.
#[test]
fn blocks_that_end_too_soon() {
    let fields: [&[u8]; 8] = [
        LITERAL,
        INDEXING,
        b"\x94\x94\x61\x07",
        b"\x04\x94\x61\x07\xb6\xc2\x15\x7e\xe1\x5f\x71\xed\xb0\x85\x63\x59\x6a\x90\xd5\x4d\x86\xaf",
        b"\x40\x05:path\x02/a",
        b"\x0f\x81\x01\x03abc",
        b"\xff\x81\x01",
        b"\x3f\xe1\x1f",
    ];
    for field in fields {
        for at in 1..field.len() {
            // What is a whole block by chance is one.
            if loona_hpack::Decoder::new()
                .decode(&[b"\x83", &field[..at]].concat())
                .is_err()
                && !field.starts_with(b"\x94")
            {
                loses(&block(&field[..at]), Fault::Truncated);
                // And cut into frames, the last of them empty.
                let (one, two) = field[..at].split_at(at / 2);
                let parts = [
                    (HEADERS, 0, 5, one),
                    (CONTINUATION, 0, 5, two),
                    (CONTINUATION, END_HEADERS, 5, b""),
                ];
                loses(&frames(&parts), Fault::Truncated);
            }
        }
    }
    // A string of 256 MiB that the block has no room for.
    loses(&block(b"\x04\x7f\xff\xff\xff\x7f/"), Fault::Truncated);
}

#[test]
fn blocks_without_end() {
    // A CONTINUATION chain that goes on for ever: of octets, of nothing, of as much as a frame holds.
    for fragment in [0, 1, 16_384] {
        let mut c = Connection::new();
        let field = b"\x00\x7f\xff\xff\xff\x7f";
        assert_eq!(c.frame(HEADERS, 0, 1, field), End::Keep);
        let fragment = vec![b'x'; fragment];
        let ends = (1..=MAX_BLOCK).find_map(|n| {
            let end = c.frame(CONTINUATION, 0, 1, &fragment);
            (end != End::Keep).then_some((n, end))
        });
        let (n, end) = ends.expect("given up some time");
        assert_eq!(end, End::Lost(Fault::BlockSize));
        assert_eq!(
            n,
            (MAX_BLOCK - field.len() as u32) / (9 + fragment.len() as u32) + 1
        );
    }
    // One frame announces too much.
    for len in [MAX_BLOCK + 1, 10 << 20, 0xff_ffff] {
        let mut head = Vec::new();
        frame(&mut head, HEADERS, END_HEADERS, 5, b"");
        head[..3].copy_from_slice(&len.to_be_bytes()[1..]);
        loses(&head, Fault::BlockSize);
    }
    // As much as is allowed.
    let mut c = Connection::new();
    let value = MAX_BLOCK as usize - LITERAL.len() - 5;
    let rest = value as u32 - 127;
    let mut block = LITERAL.to_vec();
    block.extend([
        0x00,
        0x00,
        0x7f,
        rest as u8 | 0x80,
        (rest >> 7) as u8 | 0x80,
        (rest >> 14) as u8,
    ]);
    block.resize(MAX_BLOCK as usize, b'x');
    // (the field's own head is one octet longer than was subtracted)
    block[LITERAL.len() + 3] -= 1;
    assert_eq!(c.request(1, &block), PENDING);
}

/// 10 MB of header blocks in all, each as large as is allowed: nothing is lost.
#[test]
fn ten_megabytes_of_headers() {
    let mut c = Connection::new();
    let mut block = Vec::new();
    while block.len() + 700 < MAX_BLOCK as usize {
        block.extend(b"\x40\x04fill\x7f\xf3\x03");
        block.extend([b'y'; 626]);
    }
    assert!(loona_hpack::Decoder::new().decode(&block).is_ok());
    block.extend(LITERAL);
    for i in 0..160 {
        assert_eq!(c.request(2 * i + 1, &block), PENDING);
    }
}

/// And as one block, with whatever follows: given up at once, and no part of it is taken for frames.
#[test]
fn ten_megabytes_of_one_block() {
    let mut bytes = Vec::new();
    let mut payload = Vec::new();
    while payload.len() < 10 << 20 {
        payload.extend(b"\x00\x04fill\x14aaaaaaaaaaaaaaaaaaaa");
    }
    frame(&mut bytes, HEADERS, END_HEADERS, 1, &payload);
    let mut c = Connection::new();
    let ends: Vec<End> = bytes.chunks(1460).map(|b| c.send(b)).collect();
    assert_eq!(ends[0], End::Lost(Fault::BlockSize));
    assert!(ends[1..].iter().all(|end| *end == End::Drop));
    assert_eq!(c.request(3, LITERAL), PENDING);
}

/// A frame of 16 MiB that isn't HEADERS is passed, not read.
#[test]
fn the_largest_frame_is_passed() {
    let mut c = Connection::new();
    let mut bytes = Vec::new();
    frame(&mut bytes, 0, 0, 1, &vec![b'P'; 0xff_ffff]);
    for part in bytes.chunks(1 << 20) {
        assert_eq!(c.send(part), End::Keep);
    }
    assert!(c.conn.at_border());
    assert_eq!(c.request(1, LITERAL), PENDING);
}

#[test]
fn two_paths_are_unresolved_and_none_is_no_request() {
    let mut c = Connection::new();
    assert_eq!(c.request(1, INDEXING), PENDING);
    for (i, two) in [
        [LITERAL, LITERAL].concat(),
        [LITERAL, b"\x84"].concat(),
        [b"\x85", LITERAL].concat(),
        b"\xbe\xbe".to_vec(),
        [LITERAL, LITERAL, LITERAL].concat(),
    ]
    .iter()
    .enumerate()
    {
        assert_eq!(c.request(3 + 2 * i as u32, two), UNRESOLVED);
    }
    let before = c.found.len();
    assert_eq!(c.frame(HEADERS, END_HEADERS, 13, b"\x83\x86"), End::Keep);
    assert_eq!(c.found.len(), before);
    assert_eq!(c.request(15, b"\xbe"), PENDING);
    assert_eq!(c.conn.gap.get(), 0);
}

/// What looks like a path and isn't one, or the other way round.
#[test]
fn paths_in_odd_places() {
    let path = b"/source.v1.Source/PendingFn";
    let mut c = Connection::new();
    let value = [&b"\x00\x06x-path\x1b"[..], path].concat();
    assert_eq!(c.request(1, &[&value[..], b"\x84"].concat()), OTHER);
    // As a name.
    let name = [&b"\x40\x1b"[..], path, b"\x05:path"].concat();
    assert_eq!(c.request(3, &[&name[..], b"\x84"].concat()), OTHER);
    // The empty path, and an empty name.
    assert_eq!(c.request(5, b"\x04\x00"), OTHER);
    assert_eq!(c.request(7, b"\x40\x00\x00\x04\x80"), OTHER);
    // The name as a value, in both spellings.
    assert_eq!(c.request(9, b"\x04\x05:path"), OTHER);
    assert_eq!(c.request(11, b"\x04\x84\xb9\x58\xd3\x3f"), OTHER);
    // Trailers say nothing, whatever is in them.
    let before = c.found.len();
    assert_eq!(c.frame(HEADERS, END_HEADERS, 11, LITERAL), End::Keep);
    assert_eq!(c.frame(HEADERS, END_HEADERS, 1, LITERAL), End::Keep);
    assert_eq!(c.found.len(), before);
    // But they insert.
    assert_eq!(c.frame(HEADERS, END_HEADERS, 11, INDEXING), End::Keep);
    assert_eq!(c.request(13, b"\xbe"), PENDING);
}

/// The reserved bit of the stream number is ignored; joining is stricter.
#[test]
fn the_reserved_bit() {
    let mut c = Connection::new();
    assert_eq!(c.frame(HEADERS, 0, 0x8000_0001, b"\x83"), End::Keep);
    assert_eq!(c.frame(CONTINUATION, END_HEADERS, 1, LITERAL), End::Keep);
    assert_eq!(c.found, [(1, PENDING)]);
    let mut c = Connection::unknown();
    assert_eq!(
        c.frame(HEADERS, END_HEADERS, 0x8000_0001, LITERAL),
        End::Drop
    );
    assert_eq!(c.frame(0x20, 0, 0, b""), End::Drop);
    assert_eq!(c.frame(6, 2, 0, &[0; 8]), End::Drop);
    assert_eq!(c.request(1, LITERAL), PENDING);
}

/// A server may allow a larger table than any gRPC server does. What is further back than the tracker remembers is
/// unresolved.
#[test]
fn more_entries_than_are_remembered() {
    let mut c = Connection::new();
    // RFC 7541 §6.3: a table of 65,536 octets.
    let first = [b"\x3f\xe1\xff\x03", INDEXING].concat();
    assert_eq!(c.request(1, &first), PENDING);
    let mut stream = 3;
    for back in 1..200 {
        let entry = [b"\x40\x01a\x01b", &b"\x83"[..]].concat();
        assert_eq!(c.frame(HEADERS, END_HEADERS, stream, &entry), End::Keep);
        let index = if 62 + back < 127 {
            vec![0x80 | (62 + back) as u8]
        } else {
            let rest = 62 + back - 127;
            let low = rest as u8 & 0x7f;
            if rest < 128 {
                vec![0xff, low]
            } else {
                vec![0xff, low | 0x80, (rest >> 7) as u8]
            }
        };
        let class = if back < RING { PENDING } else { UNRESOLVED };
        assert_eq!(
            c.request(stream + 2, &index),
            class,
            "{back} insertions ago"
        );
        stream += 4;
    }
}

#[test]
fn a_gap_forgets_what_was_indexed() {
    let mut c = Connection::new();
    assert_eq!(c.request(1, INDEXING), PENDING);
    assert_eq!(c.request(3, b"\xbe"), PENDING);
    assert_eq!(c.conn.gap.get(), 0);
    // Stream 5 was left out; it might have inserted something.
    assert_eq!(c.request(7, b"\xbe"), UNRESOLVED);
    assert_eq!(c.conn.gap.get(), 1);
    c.conn.gap.set(0);
    // It doesn't come back.
    assert_eq!(c.request(9, b"\xbe"), UNRESOLVED);
    assert_eq!(c.request(11, LITERAL), PENDING);
    assert_eq!(c.request(13, b"\x40\x01a\x01b\xbf"), UNRESOLVED);
    assert_eq!(c.request(15, INDEXING), PENDING);
    assert_eq!(c.request(17, b"\xbe"), PENDING);
    assert_eq!(c.request(19, b"\xc0"), UNRESOLVED);
    assert_eq!(c.conn.gap.get(), 0);
    // A gap with nothing to forget is none.
    let mut c = Connection::new();
    assert_eq!(c.request(3, LITERAL), PENDING);
    assert_eq!(c.request(9, LITERAL), PENDING);
    assert_eq!(c.conn.gap.get(), 0);
}

/// An entry whose name was an unknown index may be a path: so a request by that entry is unresolved, not none.
#[test]
fn an_entry_with_an_unknown_name_stays_unknown() {
    let mut c = Connection::unknown();
    assert_eq!(
        c.request(9, b"\x7e\x1b/source.v1.Source/PendingFn"),
        UNRESOLVED
    );
    assert_eq!(c.request(11, b"\xbe"), UNRESOLVED);
    assert_eq!(
        c.request(13, b"\x0f\x2f\x1b/source.v1.Source/PendingFn"),
        UNRESOLVED
    );
    assert_eq!(c.request(15, b"\x7e\x01/"), UNRESOLVED);
    assert_eq!(c.request(17, b"\xbe\xbf"), UNRESOLVED);
    assert_eq!(c.request(19, &[b"\xbe", LITERAL].concat()), PENDING);
}

#[test]
fn a_preface_that_is_broken_off_is_nothing() {
    for at in 1..PREFACE.len() {
        let mut c = Connection::unknown();
        assert_eq!(c.send(&PREFACE[..at]), End::Keep);
        assert_eq!(c.send(b"?PRI"), End::Drop);
        assert_eq!(c.conn.status.get(), status::NEW);
        assert_eq!(c.send(&PREFACE), End::Keep);
        assert_eq!(c.request(1, LITERAL), PENDING);
    }
}

#[test]
fn a_preface_between_frames_is_a_new_connection() {
    let mut c = Connection::new();
    assert_eq!(c.request(1, INDEXING), PENDING);
    assert_eq!(c.send(&PREFACE), End::Keep);
    assert_eq!(c.request(1, b"\xbe"), UNRESOLVED);
    assert_eq!(c.request(3, LITERAL), PENDING);
}

#[test]
fn a_preface_in_a_payload_is_payload() {
    let mut c = Connection::new();
    assert_eq!(c.request(1, INDEXING), PENDING);
    let mut bytes = Vec::new();
    frame(&mut bytes, 0, 0, 1, &PREFACE.repeat(2));
    assert_eq!(c.send(&bytes[..9]), End::Keep);
    assert_eq!(c.send(&bytes[9..33]), End::Keep);
    assert_eq!(c.send(&bytes[33..]), End::Keep);
    assert_eq!(c.request(3, b"\xbe"), PENDING);
}

/// `P` is also the first octet of a frame of 5 MiB, where the server allows that (RFC 9113 §6.5.2).
#[test]
fn the_beginning_of_a_preface_between_frames_is_a_frame() {
    let mut c = Connection::new();
    assert_eq!(c.request(1, INDEXING), PENDING);
    let mut bytes = Vec::new();
    frame(&mut bytes, 0, 0, 1, &vec![0; 0x50_5249]);
    assert!(bytes.starts_with(b"PRI"));
    for part in [&bytes[..1], &bytes[1..3], &bytes[3..]] {
        assert_eq!(c.send(part), End::Keep);
    }
    assert_eq!(c.request(3, b"\xbe"), PENDING);
}

/// What watched processes also write: none of it is taken for HTTP/2, nothing is kept.
#[test]
fn other_protocols_leave_nothing() {
    let others: [&[u8]; 22] = [
        b"{\"level\":\"info\",\"ts\":\"2025-11-22T14:00:00Z\",\"msg\":\"Pending\"}\n",
        b"2025-11-22T14:00:00.000Z INFO numaflow::source: started\n",
        b"I1122 14:00:00.000000       1 main.go:42] hello\n",
        b"P",
        b"PUB foo 5\r\nhello\r\n",
        b"PUB $JS.API.STREAM.INFO.default-simple-pipeline _INBOX.a 0\r\n\r\n",
        b"HPUB foo 22 33\r\nNATS/1.0\r\nBar: Baz\r\n\r\nHello NATS!\r\n",
        b"CONNECT {\"verbose\":false,\"pedantic\":false}\r\nPING\r\n",
        b"PING\r\n",
        b"+OK\r\n",
        b"SUB foo 1\r\n",
        b"POST /source.v1.Source/PendingFn HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"PUT / HTTP/1.1\r\n\r\n",
        b"PRI / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$1\r\nb\r\n",
        b"\n",
        b"\0",
        b"\0\0\0\0\0\0\0\0",
        // TLS, after its beginning: application data, an alert, a change of cipher.
        b"\x17\x03\x03\x00\x13\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c\x0d\x0e\x0f\x10\x11\x12\x13",
        b"\x15\x03\x03\x00\x02\x01\x00",
    ];
    for text in others {
        let mut c = Connection::unknown();
        // A lone `P` could be the first octet of the preface; what comes next settles it.
        let first = if text == b"P" { End::Keep } else { End::Drop };
        assert_eq!(c.send(text), first, "{}", text.escape_ascii());
        assert_eq!(c.send(b"UB foo 5\r\n"), End::Drop);
        assert_eq!(c.conn.status.get(), status::NEW);
        assert!(c.found.is_empty());
        // Line by line for ever.
        for _ in 0..10 {
            c.send(text);
        }
        assert!(c.found.is_empty());
    }
}

#[test]
fn a_client_hello_is_tls() {
    let hello = b"\x16\x03\x01\x00\xf8\x01\x00\x00\xf4\x03\x03";
    let mut c = Connection::unknown();
    assert_eq!(c.send(hello), End::Keep);
    assert_eq!(c.conn.status.get(), status::TLS);
    // Nothing that follows is looked at.
    assert_eq!(c.send(&PREFACE), End::Drop);
    assert_eq!(c.frame(HEADERS, END_HEADERS, 1, LITERAL), End::Drop);
    assert!(c.found.is_empty());
    assert_eq!(c.conn.status.get(), status::TLS);
    // SSL 3.0 to TLS 1.3 write versions 3.0 to 3.4; a ServerHello is a server's.
    for (octets, tls) in [
        (&b"\x16\x03\x00\x00\x04\x01"[..], true),
        (b"\x16\x03\x04\x00\x04\x01", true),
        (b"\x16\x03\x05\x00\x04\x01", false),
        (b"\x16\x03\x01\x00\x04\x02", false),
        (b"\x16\x03\x01\x00\x04", false),
    ] {
        let mut c = Connection::unknown();
        let end = c.send(octets);
        assert_eq!(end, if tls { End::Keep } else { End::Drop });
        assert_eq!(c.conn.status.get() == status::TLS, tls);
    }
    // Within a connection that is HTTP/2 it is payload.
    let mut c = Connection::new();
    let mut bytes = Vec::new();
    frame(&mut bytes, 0, 0, 1, hello);
    assert_eq!(c.send(&bytes[..9]), End::Keep);
    assert_eq!(c.send(&bytes[9..]), End::Keep);
    assert_eq!(c.conn.status.get(), status::SYNCED);
}

#[test]
fn an_empty_send_changes_nothing() {
    let mut c = Connection::unknown();
    assert_eq!(c.send(b""), End::Drop);
    assert_eq!(c.conn.status.get(), status::NEW);
    let mut c = Connection::new();
    assert_eq!(c.request(1, INDEXING), PENDING);
    assert_eq!(c.send(b""), End::Drop);
    assert_eq!(c.conn.status.get(), status::SYNCED);
    assert_eq!(c.request(3, b"\xbe"), PENDING);
}

/// The requests of one send that came before its fault count.
#[test]
fn requests_before_a_fault_count() {
    let bytes = frames(&[
        (HEADERS, END_HEADERS, 1, LITERAL),
        (HEADERS, END_HEADERS, 3, LITERAL),
        (5, 0, 3, b"12345678"),
        (HEADERS, END_HEADERS, 5, LITERAL),
    ]);
    let mut c = Connection::new();
    assert_eq!(c.send(&bytes), End::Lost(Fault::Frame));
    assert_eq!(c.found, [(1, PENDING), (3, PENDING)]);
    // But not where it was to be joined.
    let mut c = Connection::unknown();
    assert_eq!(c.send(&bytes), End::Drop);
    assert!(c.found.is_empty());
}

/// A send that ends within a frame or a block joins nothing.
#[test]
fn joined_only_at_a_whole_frame() {
    let whole = frames(&[
        (6, 0, 0, &[0; 8]),
        (HEADERS, 0, 9, b"\x83"),
        (CONTINUATION, END_HEADERS, 9, LITERAL),
        (0, 1, 9, b"x"),
    ]);
    let borders = [17, 17 + 10 + 9 + LITERAL.len(), whole.len()];
    for at in 1..=whole.len() {
        let mut c = Connection::unknown();
        let joined = borders.contains(&at);
        assert_eq!(
            c.send(&whole[..at]),
            if joined { End::Keep } else { End::Drop },
            "at {at}"
        );
        assert_eq!(c.conn.status.get() == status::SYNCED, joined);
        if joined {
            assert_eq!(
                c.send(&whole[at..]),
                if at == whole.len() {
                    End::Drop
                } else {
                    End::Keep
                }
            );
            assert_eq!(c.found, [(9, PENDING)]);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) })]

    /// Nothing crashes it, and after any garbage it can be joined again.
    #[test]
    fn garbage_is_survived(
        valid in vec(any::<u8>(), 0..100), garbage in vec(any::<u8>(), 0..300), cuts in vec(any::<u8>(), 0..100), new: bool,
    ) {
        let mut builder = Builder::new(Habits::WILD);
        builder.run(&mut Choices::new(&valid));
        let mut bytes = if new { Vec::new() } else { builder.bytes };
        bytes.extend(&garbage);
        let mut c = Connection::unknown();
        let cuts = Cuts::random(&mut Choices::new(&cuts), bytes.len());
        cuts.apply(&bytes, |pieces, window| {
            drive::send(&c.conn, pieces, window, &*c.table, |_, _| {});
            ControlFlow::Continue(())
        });
        prop_assume!(c.conn.status.get() != status::TLS);
        if c.conn.status.get() != status::SYNCED {
            prop_assert_eq!(c.request(99, LITERAL), PENDING);
        } else if c.conn.at_border() {
            prop_assert_eq!(c.send(&PREFACE), End::Keep);
            prop_assert_eq!(c.request(99, LITERAL), PENDING);
        }
    }
}
