//! Byte streams captured from real clients, cut everywhere.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use agent_common::h2::track::{End, send, status};
use agent_common::h2::walk::{Conn, OTHER, UNRESOLVED, WATCHED, agent};
use serde::Deserialize;

use crate::reference::drive::{self, Cuts, Walked};
use crate::reference::{Parsed, Stop, agree, parse, table};

/// The methods of the source service; none other is in the captures.
const SOURCE: [&str; 6] = [
    "/source.v1.Source/PendingFn",
    "/source.v1.Source/ReadFn",
    "/source.v1.Source/AckFn",
    "/source.v1.Source/IsReady",
    "/source.v1.Source/PartitionsFn",
    "/source.v1.Source/NackFn",
];

#[derive(Deserialize)]
struct Fixture {
    encoder: String,
    direction: String,
    /// Hex; one is one send.
    chunks: Vec<String>,
    requests: Vec<(u32, String)>,
}

struct Capture {
    encoder: String,
    sends: Vec<Vec<u8>>,
    bytes: Vec<u8>,
    /// Stream and class of each request.
    requests: Vec<(u32, u32)>,
    parsed: Parsed,
}

fn captures() -> &'static [Capture] {
    static CAPTURES: OnceLock<Vec<Capture>> = OnceLock::new();
    CAPTURES.get_or_init(|| {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/captures");
        let mut files: Vec<PathBuf> = dir
            .read_dir()
            .expect("the captures")
            .map(|entry| entry.expect("an entry").path())
            .filter(|path| path.extension().is_some_and(|e| e == "json"))
            .collect();
        files.sort();
        files.iter().filter_map(|file| load(file)).collect()
    })
}

fn load(file: &Path) -> Option<Capture> {
    let text = std::fs::read_to_string(file).expect("a fixture");
    let fixture: Fixture = serde_json::from_str(&text).expect("a fixture's fields");
    if fixture.direction != "client" {
        return None;
    }
    let sends: Vec<Vec<u8>> = fixture.chunks.iter().map(|hex| octets(hex)).collect();
    let bytes = sends.concat();
    let requests = fixture
        .requests
        .iter()
        .map(|(stream, path)| {
            let at = SOURCE.iter().position(|p| p == path);
            (*stream, at.map_or(OTHER, |i| WATCHED + i as u32))
        })
        .collect();
    let parsed = parse(&bytes);
    assert_eq!(parsed.stop, Stop::End, "{}", fixture.encoder);
    let decoded: Vec<_> = parsed
        .requests
        .iter()
        .map(|r| {
            (
                r.stream,
                String::from_utf8(r.paths.concat()).expect("a path"),
            )
        })
        .collect();
    assert_eq!(
        decoded, fixture.requests,
        "{}: the full decoder agrees with the note",
        fixture.encoder
    );
    Some(Capture {
        encoder: fixture.encoder,
        sends,
        bytes,
        requests,
        parsed,
    })
}

fn octets(hex: &str) -> Vec<u8> {
    (0..hex.len())
        .step_by(2)
        .map(|i| u8::from_str_radix(&hex[i..i + 2], 16).expect("hex"))
        .collect()
}

/// Walks `sends`, each as its pieces, as a connection from its beginning.
fn walk(sends: &[&[&[u8]]]) -> Vec<(u32, u32)> {
    let table = source_table();
    let conn = Conn::new();
    let mut requests = Vec::new();
    for pieces in sends {
        let end = send(&conn, pieces, table, |stream, class| {
            requests.push((stream, class))
        });
        if pieces.iter().any(|p| !p.is_empty()) {
            assert_eq!(end, End::Keep);
        }
    }
    assert!(conn.at_border());
    assert_eq!(conn.gap.get(), 0);
    requests
}

fn source_table() -> &'static agent_common::h2::paths::PathTable {
    static TABLE: OnceLock<Box<agent_common::h2::paths::PathTable>> = OnceLock::new();
    TABLE.get_or_init(|| table(SOURCE))
}

#[test]
fn there_are_captures() {
    for encoder in [
        "tonic 0.12",
        "tonic 0.14",
        "grpc-go",
        "grpc-c-core",
        "grpc-js",
    ] {
        let of = |c: &Capture| c.encoder.starts_with(encoder);
        assert_eq!(captures().iter().filter(|c| of(c)).count(), 1, "{encoder}");
    }
    for c in captures() {
        let pending = c.requests.iter().filter(|r| r.1 == WATCHED).count();
        println!(
            "{}: {} octets, {} requests, {pending} PendingFn",
            c.encoder,
            c.bytes.len(),
            c.requests.len()
        );
        assert!(pending > 0, "{}", c.encoder);
    }
}

/// Who says that it is tonic: Numaflow's data plane in Rust, and the crate itself.
#[test]
fn who_the_client_is() {
    for c in captures() {
        let conn = Conn::new();
        assert_eq!(
            send(&conn, &[&c.bytes], source_table(), |_, _| {}),
            End::Keep
        );
        let tonic = c.encoder.starts_with("tonic");
        assert_eq!(conn.agent() == agent::TONIC, tonic, "{}", c.encoder);
    }
}

#[test]
fn as_sent_and_in_one() {
    for c in captures() {
        let sends: Vec<[&[u8]; 1]> = c.sends.iter().map(|s| [s.as_slice()]).collect();
        let sends: Vec<&[&[u8]]> = sends.iter().map(|s| s.as_slice()).collect();
        assert_eq!(walk(&sends), c.requests, "{}", c.encoder);
        assert_eq!(walk(&[&[&c.bytes]]), c.requests, "{}", c.encoder);
    }
}

#[test]
fn octet_by_octet() {
    for c in captures() {
        let octets: Vec<&[u8]> = c.bytes.chunks(1).collect();
        assert_eq!(walk(&[&octets]), c.requests, "{}: pieces", c.encoder);
        let sends: Vec<&[&[u8]]> = octets.chunks(1).collect();
        assert_eq!(walk(&sends), c.requests, "{}: sends", c.encoder);
    }
}

#[test]
fn cut_in_two_anywhere() {
    for c in captures() {
        for at in 0..=c.bytes.len() {
            let (one, two) = c.bytes.split_at(at);
            assert_eq!(
                walk(&[&[one], &[two]]),
                c.requests,
                "{}: sends at {at}",
                c.encoder
            );
            assert_eq!(
                walk(&[&[one, two]]),
                c.requests,
                "{}: pieces at {at}",
                c.encoder
            );
        }
    }
}

/// What a program sees that copies the sender's bytes a window at a time.
#[test]
fn through_windows_of_any_size() {
    for c in captures() {
        for window in (1..70).chain([127, 128, 129, 255, 256, 1000]) {
            let cuts = Cuts::sends(c.sends.iter().map(Vec::len), window);
            let walked: Walked = drive::connection(&c.bytes, &cuts, source_table());
            assert_eq!(
                walked.requests, c.requests,
                "{}: window {window}",
                c.encoder
            );
            assert_eq!(walked.fault, None);
        }
    }
}

/// Cut short anywhere, the requests are those whose blocks are whole.
#[test]
fn broken_off_anywhere() {
    for c in captures() {
        // Not at every octet, since the reference is slow; all places within a frame occur nevertheless.
        for at in (24..c.bytes.len()).step_by(13) {
            let table = table(crate::reference::PATHS);
            let bytes = &c.bytes[..at];
            let walked = drive::connection(bytes, &Cuts::none(at), &*table);
            assert_eq!(
                agree(&parse(bytes), &walked),
                Ok(()),
                "{}: at {at}",
                c.encoder
            );
        }
    }
}

/// Joined at every send that begins with a frame: exact from there for clients that write their paths out; for the
/// others, calls by what was indexed before are unresolved, and none is wrong or missing.
#[test]
fn joined_late_at_every_send() {
    for c in captures() {
        let starts: Vec<usize> = c
            .sends
            .iter()
            .scan(0, |at, send| {
                let start = *at;
                *at += send.len();
                Some(start)
            })
            .collect();
        let border = |at: &usize| c.parsed.frames.contains(at) || *at == c.bytes.len();
        let mut unresolved = 0;
        let mut exact = 0;
        for from in (1..c.sends.len()).filter(|&i| border(&starts[i])) {
            // Where it must be joined: at the first send that is whole frames. One that begins or ends within a
            // frame must be left alone.
            let Some(joined) = (from..c.sends.len()).find(|&i| {
                border(&starts[i])
                    && border(&(starts[i] + c.sends[i].len()))
                    && !c.sends[i].is_empty()
            }) else {
                continue;
            };
            let conn = Conn::new();
            let mut got = Vec::new();
            for (i, bytes) in c.sends.iter().enumerate().skip(from) {
                let before = got.len();
                let end = send(&conn, &[bytes], source_table(), |s, class| {
                    got.push((s, class))
                });
                if i < joined {
                    assert_eq!(end, End::Drop, "{}: from {from}, send {i}", c.encoder);
                    got.truncate(before);
                } else {
                    assert_eq!(end, End::Keep, "{}: from {from}, send {i}", c.encoder);
                    assert_eq!(conn.status.get(), status::SYNCED);
                }
            }
            let due = c.requests.iter().zip(&c.parsed.requests);
            let due: Vec<_> = due
                .filter(|(_, r)| r.start >= starts[joined])
                .map(|(r, _)| *r)
                .collect();
            assert_eq!(got.len(), due.len(), "{}: from {from}", c.encoder);
            for (got, due) in got.iter().zip(due) {
                let open = got.1 == UNRESOLVED && indexes(&c.encoder);
                assert!(
                    *got == due || open && got.0 == due.0,
                    "{}: {got:?} is {due:?}",
                    c.encoder
                );
                if open { unresolved += 1 } else { exact += 1 }
            }
        }
        println!(
            "{}: {exact} requests exact, {unresolved} unresolved",
            c.encoder
        );
        assert_eq!(unresolved > 0, indexes(&c.encoder), "{}", c.encoder);
    }
}

/// Whether this encoder refers to its paths by index.
fn indexes(encoder: &str) -> bool {
    !encoder.starts_with("tonic") && !encoder.starts_with("grpc-js")
}
