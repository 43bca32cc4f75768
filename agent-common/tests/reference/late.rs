//! Connections that are joined late, of clients that index their paths, and a source that answers: what is learned is never wrong.

use std::collections::VecDeque;

use agent_common::h2::learn::{Answer, Candidates, answer};
use agent_common::h2::track::{End, status};
use agent_common::h2::walk::{Conn, OTHER, UNRESOLVED, WATCHED};
use loona_hpack::Encoder;

use super::build::frame;
use super::choices::Choices;
use super::{drive, table};

/// The methods of a source, of which the first one is watched.
const METHODS: [&str; 5] = [
    "/source.v1.Source/PendingFn",
    "/source.v1.Source/IsReady",
    "/source.v1.Source/PartitionsFn",
    "/source.v1.Source/ReadFn",
    "/source.v1.Source/AckFn",
];
const PENDING: usize = 0;
const READY: usize = 1;
const PARTITIONS: usize = 2;

/// A client with grpc-go's habits: all fields in one order, all of them indexed.
struct Client {
    encoder: Encoder<'static>,
    stream: u32,
}

impl Client {
    fn request(&mut self, method: usize, choices: &mut Choices<'_>) -> Vec<u8> {
        let timeout = format!("{}m", choices.below(200));
        let mut fields = vec![
            (&b":method"[..], &b"POST"[..]),
            (b":scheme", b"http"),
            (b":path", METHODS[method].as_bytes()),
            (b":authority", b"localhost"),
            (b"content-type", b"application/grpc"),
            (b"user-agent", b"grpc-go/1.60.0"),
            (b"te", b"trailers"),
        ];
        if choices.chance(128) {
            // gRPC C-core's order.
            fields.swap(1, 2);
            fields.swap(2, 3);
        }
        if choices.chance(64) {
            fields.push((b"grpc-timeout", timeout.as_bytes()));
        }
        let block = self.encoder.encode(fields);
        let mut bytes = Vec::new();
        frame(&mut bytes, 1, 5, self.stream, &block);
        self.stream += 2;
        bytes
    }
}

/// What a source answers, and whether it tells which method it was.
fn answers(method: usize, choices: &mut Choices<'_>) -> (Vec<u8>, bool) {
    let definite = !choices.chance(40);
    let message: Vec<u8> = match (method, definite) {
        (PENDING, true) => {
            let mut octets = Vec::new();
            let mut count = if choices.chance(40) {
                u64::MAX
            } else {
                1 + choices.below(100_000) as u64
            };
            while count >= 0x80 {
                octets.push(count as u8 | 0x80);
                count >>= 7;
            }
            octets.push(count as u8);
            let mut message = vec![0x0a, octets.len() as u8 + 1, 0x08];
            message.extend(octets);
            message
        }
        (PENDING, false) => vec![0x0a, 0],
        (READY, true) => vec![0x08, 1],
        (PARTITIONS, true) => vec![0x0a, 3, 0x0a, 1, choices.below(9) as u8],
        (PARTITIONS, false) => vec![0x0a, 0],
        (_, false) => Vec::new(),
        _ => vec![0x0a, 2, 0x0a, 0],
    };
    let mut octets = vec![0, 0, 0, 0, message.len() as u8];
    octets.extend(message);
    (octets, definite)
}

/// A call that has not been answered.
struct Asked {
    method: usize,
    generation: u32,
    candidates: Candidates,
}

/// What became of the calls of PendingFn.
#[derive(Default)]
pub struct Seen {
    /// They were known for what they are.
    pub resolved: u32,
    /// They weren't.
    pub unresolved: u32,
}

/// One connection: some calls, the join, some calls more. Panics where a call is taken for one of another method, or is not known that could be.
pub fn connection(before: &[u8], after: &[u8], gaps: bool) -> Seen {
    let table = table([METHODS[PENDING]]);
    let mut client = Client {
        encoder: Encoder::new(),
        stream: 1,
    };
    let mut choices = Choices::new(before);
    for method in 0..METHODS.len() {
        client.request(method, &mut choices);
    }
    while !choices.is_empty() {
        let method = choices.below(METHODS.len());
        client.request(method, &mut choices);
    }
    let conn = Conn::new();
    let send = |bytes: &[u8]| {
        let mut found = None;
        let end = drive::send(&conn, &[bytes], 256, &*table, |_, class| {
            found = Some(class);
        });
        assert_eq!(end, End::Keep);
        assert_eq!(conn.status.get(), status::SYNCED);
        found
    };
    let mut ping = Vec::new();
    frame(&mut ping, 6, 0, 0, &[0; 8]);
    assert_eq!(send(&ping), None);

    let mut choices = Choices::new(after);
    let mut waiting: VecDeque<Asked> = VecDeque::new();
    // Calls that were answered in a way that tells something, since the table was unknown last.
    let mut told = [0; METHODS.len()];
    let mut seen = Seen::default();
    while !choices.is_empty() {
        if choices.chance(128) && !waiting.is_empty() {
            let call = waiting
                .remove(choices.below(waiting.len()))
                .expect("it is one of them");
            let (octets, definite) = answers(call.method, &mut choices);
            let answer = answer(octets.len() as u32, |at| {
                octets.get(at as usize).copied().unwrap_or_default().into()
            });
            assert_eq!(
                answer == Answer::Pending,
                call.method == PENDING && definite
            );
            if definite && call.generation == conn.generation() {
                told[call.method] += 1;
            }
            conn.learn(call.generation, call.candidates, answer, WATCHED, true);
            continue;
        }
        if gaps && choices.chance(10) {
            client.stream += 2;
            told = [0; METHODS.len()];
        }
        let method = choices.below(METHODS.len());
        let class = send(&client.request(method, &mut choices)).expect("a request");
        match (class, method) {
            (WATCHED, PENDING) => seen.resolved += 1,
            (OTHER, 1..) => {}
            (UNRESOLVED, _) => {
                if method == PENDING {
                    assert!(
                        told[PENDING] < 3 || told[READY] + told[PARTITIONS] < 3,
                        "it could have been learned by now: {told:?}"
                    );
                    seen.unresolved += 1;
                }
                waiting.push_back(Asked {
                    method,
                    generation: conn.generation(),
                    candidates: conn.candidates(),
                });
            }
            wrong => panic!("class and method: {wrong:?}"),
        }
    }
    seen
}
