//! Quiet calls: what a server reads of them, whole and sent in parts, and which calls must not become any.

use agent_common::abi::Manner;
use agent_common::h2::frame::{PREFACE, kind};
use agent_common::h2::huffman;
use agent_common::h2::paths::MAX_LEN;
use agent_common::h2::quiet::{PENDING, code};
use agent_common::h2::walk::{LATCHED, WATCHED};
use loona_hpack::Decoder;
use proptest::collection::vec;
use proptest::prelude::*;

use super::edits::{Judge, Said, rewrite_quietly, tosses};
use crate::reference::choices::Choices;

const READY: &str = "/source.v1.Source/IsReady";
/// What the octets of a quiet call's path are where its length could not be overwritten.
const UNKNOWN: &str = "/source.v1.Source/IsReadybV";
const TONIC: &str = "tonic/0.14.2";

type Fields = Vec<(Vec<u8>, Vec<u8>)>;

fn string(text: &str, huffman: bool) -> Vec<u8> {
    if !huffman {
        return [&[text.len() as u8], text.as_bytes()].concat();
    }
    let mut code = [0; MAX_LEN];
    let n = huffman::encode(text.as_bytes(), &mut code).expect("a short text");
    [&[n as u8 | 0x80], &code[..n]].concat()
}

/// One request of a client.
#[derive(Clone, Copy)]
struct Request<'a> {
    path: &'a str,
    /// In the Huffman code.
    huffman: bool,
    /// The first octet of the path's field.
    field: u8,
    /// `:authority` stands before the path; else behind it.
    authority_first: bool,
    /// The literal, in the first request; an index of the newest entry later.
    agent: Option<&'a str>,
}

const LIKE_TONIC: Request<'static> = Request {
    path: PENDING,
    huffman: true,
    field: 0x04,
    authority_first: true,
    agent: None,
};

impl Request<'_> {
    fn frames(&self, stream: u32, padding: Option<u8>) -> Vec<u8> {
        // POST, http.
        let mut block = vec![0x83, 0x86];
        let authority = [&[0x01][..], &string("localhost", true)].concat();
        let path = [&[self.field][..], &string(self.path, self.huffman)].concat();
        let both = [authority, path];
        let order = if self.authority_first { [0, 1] } else { [1, 0] };
        order.iter().for_each(|&i| block.extend(&both[i]));
        match self.agent {
            Some(agent) => {
                block.push(0x7a);
                block.extend(string(agent, self.huffman));
            }
            // What the first request inserted, before which this path may be.
            None => block.push(if self.field & 0x40 == 0 { 0xbe } else { 0xbf }),
        }
        let mut payload = Vec::new();
        payload.extend(padding);
        payload.extend(&block);
        payload.extend(vec![0; padding.unwrap_or(0).into()]);
        let flags = if padding.is_some() { 0xc } else { 0x4 };
        let mut out = frame(1, flags, stream, &payload);
        out.extend(frame(0, 1, stream, &[0; 5]));
        out
    }
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    out.extend([kind, flags]);
    out.extend(stream.to_be_bytes());
    out.extend(payload);
    out
}

/// A connection's beginning: IsReady, with the client's name.
fn connection(agent: &str) -> Vec<u8> {
    let mut out = PREFACE.to_vec();
    out.extend(frame(4, 0, 0, &[]));
    let first = Request {
        path: READY,
        agent: Some(agent),
        ..LIKE_TONIC
    };
    out.extend(first.frames(1, None));
    out
}

/// The header fields of each request, as a full decoder reads them.
fn read(bytes: &[u8]) -> Vec<(u32, Fields)> {
    let mut decoder = Decoder::new();
    let (mut at, mut all) = (PREFACE.len(), Vec::new());
    while at < bytes.len() {
        let head = &bytes[at..at + 9];
        let len = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        let mut payload = &bytes[at + 9..at + 9 + len];
        if u32::from(head[3]) == kind::HEADERS {
            if head[4] & 8 != 0 {
                payload = &payload[1..len - usize::from(payload[0])];
            }
            let mut fields = Vec::new();
            decoder
                .decode_with_cb(payload, |name, value| {
                    fields.push((name.into_owned(), value.into_owned()));
                })
                .expect("a header block");
            all.push((stream, fields));
        }
        at += 9 + len;
    }
    assert_eq!(at, bytes.len());
    all
}

/// That `sent` is read as it was, but for what was made of the calls by what is `said` of them.
fn check(sent: &[u8], bytes: &[u8], said: &[Said]) -> Result<usize, TestCaseError> {
    prop_assert_eq!(bytes.len(), sent.len());
    let (sent, read) = (read(sent), read(bytes));
    prop_assert_eq!(sent.len(), read.len());
    prop_assert_eq!(sent.len(), said.len());
    let mut quiet = 0;
    for (((stream, sent), (number, read)), said) in sent.iter().zip(&read).zip(said) {
        prop_assert_eq!((stream, stream), (number, &said.stream));
        let at = sent.iter().position(|f| f.0 == b":path").unwrap();
        let mut expected = sent.clone();
        if said.class >= LATCHED && read[at].1 == UNKNOWN.as_bytes() {
            // Of what is gone on with in another send it is not known that its length stayed.
            let manners = [Manner::Unwritable, Manner::Quiet].map(code);
            prop_assert!(manners.contains(&said.manner));
            expected[at].1 = UNKNOWN.into();
        } else if said.class >= LATCHED && said.manner == code(Manner::Quiet) {
            quiet += 1;
            expected[at].1 = READY.into();
            let filler = (b"accept-charset".to_vec(), Vec::new());
            expected.splice(at + 1..at + 1, [filler.clone(), filler]);
            // RFC 9113 §8.3: no pseudo-header field behind another one.
            let regular = expected.iter().position(|f| f.0[0] != b':').unwrap();
            prop_assert!(expected[regular..].iter().all(|f| f.0[0] != b':'));
        } else if said.class >= LATCHED {
            let blocked = if sent[at].1 == PENDING.as_bytes() {
                "/source.v1.Source/PendingF="
            } else {
                "/source.v1.Source/IsRead="
            };
            expected[at].1 = blocked.into();
        }
        prop_assert_eq!(&expected, read);
        prop_assert_eq!(said.class >= WATCHED, true, "both methods are watched");
    }
    Ok(quiet)
}

/// What became of the only call of a connection.
fn manner(agent: &str, request: Request<'_>) -> u32 {
    let mut bytes = connection(agent);
    bytes.extend(request.frames(3, None));
    // Long enough for all of it.
    let (out, said) = rewrite_quietly(&bytes, &[255, 255], Judge::QUIET);
    check(&bytes, &out, &said).unwrap();
    said[1].manner
}

#[test]
fn tonic_s_calls_become_quiet() {
    for huffman in [true, false] {
        for field in [0x04, 0x05, 0x14] {
            let request = Request {
                huffman,
                field,
                ..LIKE_TONIC
            };
            for agent in [TONIC, "tonic/"] {
                assert_eq!(manner(agent, request), code(Manner::Quiet), "{agent}");
            }
        }
    }
}

/// Where the length can't be overwritten, the call is one of a method that no source has; in plain strings nothing is done.
#[test]
fn a_length_that_stays() {
    for (huffman, class, manner) in [
        (true, LATCHED, code(Manner::Unwritable)),
        (false, WATCHED, 0),
    ] {
        let mut bytes = connection(TONIC);
        let request = Request {
            huffman,
            ..LIKE_TONIC
        };
        bytes.extend(request.frames(3, None));
        let judge = Judge {
            writable: &|| false,
            ..Judge::QUIET
        };
        let (out, said) = rewrite_quietly(&bytes, &[255, 255], judge);
        check(&bytes, &out, &said).unwrap();
        assert_eq!((said[1].class, said[1].manner), (class, manner));
    }
}

#[test]
fn what_must_not_become_quiet() {
    for (agent, request, why) in [
        ("grpc-go/1.71.0", LIKE_TONIC, Manner::Client),
        ("tonic", LIKE_TONIC, Manner::Client),
        ("x tonic/0.14", LIKE_TONIC, Manner::Client),
        ("tonic0.14", LIKE_TONIC, Manner::Client),
        ("", LIKE_TONIC, Manner::Client),
        // A client that says two things of itself.
        (
            TONIC,
            Request {
                agent: Some("grpc-go/1.71.0"),
                ..LIKE_TONIC
            },
            Manner::Quiet,
        ),
        (
            TONIC,
            Request {
                field: 0x44,
                ..LIKE_TONIC
            },
            Manner::Indexed,
        ),
        (
            TONIC,
            Request {
                authority_first: false,
                ..LIKE_TONIC
            },
            Manner::Order,
        ),
    ] {
        assert_eq!(manner(agent, request), code(why), "{agent} {why:?}");
    }
    // The client's name stands behind the path: of the first request of a connection it isn't known yet.
    let mut bytes = PREFACE.to_vec();
    bytes.extend(frame(4, 0, 0, &[]));
    let first = Request {
        agent: Some(TONIC),
        ..LIKE_TONIC
    };
    bytes.extend(first.frames(1, None));
    bytes.extend(LIKE_TONIC.frames(3, None));
    let (out, said) = rewrite_quietly(&bytes, &[255, 255], Judge::QUIET);
    check(&bytes, &out, &said).unwrap();
    let manners: Vec<_> = said.iter().map(|said| said.manner).collect();
    assert_eq!(manners, [code(Manner::UnknownClient), code(Manner::Quiet)]);
}

#[test]
fn who_says_two_things_of_itself_is_nobody() {
    let mut bytes = connection(TONIC);
    for (stream, agent) in [(3, Some("grpc-go/1.71.0")), (5, Some(TONIC)), (7, None)] {
        bytes.extend(
            Request {
                agent,
                ..LIKE_TONIC
            }
            .frames(stream, None),
        );
    }
    let (out, said) = rewrite_quietly(&bytes, &[255, 255], Judge::QUIET);
    check(&bytes, &out, &said).unwrap();
    let manners: Vec<_> = said[1..].iter().map(|said| said.manner).collect();
    let client = code(Manner::Client);
    assert_eq!(manners, [code(Manner::Quiet), client, client]);
}

/// A client's stream of both methods, in all the ways.
fn stream(choices: &mut Choices<'_>) -> Vec<u8> {
    let mut bytes = connection(TONIC);
    for i in 0..choices.below(12) as u32 {
        let request = Request {
            path: choices.one::<&str>(&[PENDING, PENDING, READY]),
            huffman: choices.chance(200),
            field: *choices.one(&[0x04, 0x04, 0x14]),
            authority_first: choices.chance(220),
            agent: None,
        };
        let padding = choices.chance(60).then(|| choices.octet() % 40);
        bytes.extend(request.frames(3 + 2 * i, padding));
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(512) })]

    /// Sends that are sent in part, tried again, and judged anew each time, by who asks for quiet answers now and then.
    #[test]
    fn what_becomes_quiet_in_parts(
        choices in vec(any::<u8>(), 0..80), cuts in vec(any::<u8>(), 1..100),
        reject in vec(any::<bool>(), 1..8), quiet in vec(any::<bool>(), 1..8), writable in vec(any::<bool>(), 1..8),
    ) {
        let bytes = stream(&mut Choices::new(&choices));
        let judge = Judge {
            reject: &tosses(&reject),
            quiet: &tosses(&quiet),
            writable: &tosses(&writable),
        };
        let (out, said) = rewrite_quietly(&bytes, &cuts, judge);
        check(&bytes, &out, &said)?;
    }

    /// The same, cut within every path.
    #[test]
    fn what_becomes_quiet_octet_by_octet(choices in vec(any::<u8>(), 0..80), sent in 1u8..12) {
        let bytes = stream(&mut Choices::new(&choices));
        let (out, said) = rewrite_quietly(&bytes, &[60, sent * 2], Judge::QUIET);
        check(&bytes, &out, &said)?;
    }
}

/// That these properties are about something: each place in which one call can be cut, and what it becomes.
#[test]
fn one_call_cut_everywhere() {
    let first = connection(TONIC);
    let call = LIKE_TONIC.frames(3, None);
    let bytes = [&first[..], &call].concat();
    let mut quiet = 0;
    for cut in 1..call.len() {
        // The first sends bring all before the cut; the last one tries all the rest each time.
        for lost in [0, 1] {
            let (out, said) = cut_at(&bytes, first.len(), cut, lost);
            quiet += check(&bytes, &out, &said).unwrap();
        }
    }
    assert!(quiet > call.len(), "{quiet} of {}", 2 * (call.len() - 1));
}

/// Sends all up to `first`, then all, of which `cut` octets are sent, then the rest (after a try of which nothing is sent if `lost`).
fn cut_at(bytes: &[u8], first: usize, cut: usize, lost: usize) -> (Vec<u8>, Vec<Said>) {
    let rest = bytes.len() - first - cut;
    let mut sends = vec![(first, first), (bytes.len() - first, cut)];
    sends.extend(vec![(rest, 0); lost]);
    sends.push((rest, rest));
    super::edits::rewrite_sends(bytes, &sends, Judge::QUIET)
}
