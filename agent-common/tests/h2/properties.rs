//! Random streams: the tracker against a full decoder and against the maker of the stream.

use std::ops::ControlFlow;

use agent_common::h2::track::{End, status};
use agent_common::h2::walk::Conn;
use loona_hpack::{Decoder, Encoder};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::reference::build::{Builder, Habits, frame};
use crate::reference::choices::Choices;
use crate::reference::drive::{self, Cuts};
use crate::reference::{PATHS, Stop, agree, class, parse, table};

fn bytes(most: usize) -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 0..most)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) })]

    /// Everything that a client may do: the class of each request is what the strings say, wherever the stream is cut.
    #[test]
    fn every_request_has_the_class_of_its_path(stream in bytes(600), cuts in bytes(200)) {
        let mut builder = Builder::new(Habits { gaps: false, ..Habits::WILD });
        builder.run(&mut Choices::new(&stream));
        let parsed = parse(&builder.bytes);
        prop_assert_eq!(parsed.stop, Stop::End);
        let decoded: Vec<_> = parsed.requests.iter().map(|r| (r.stream, r.paths.clone())).collect();
        prop_assert_eq!(&decoded, &builder.made, "the full decoder reads what was meant");

        let cuts = Cuts::random(&mut Choices::new(&cuts), builder.bytes.len());
        let walked = drive::connection(&builder.bytes, &cuts, &*table(PATHS));
        prop_assert_eq!(agree(&parsed, &walked), Ok(()));
        let by_path: Vec<_> = builder.made.iter().map(|(s, p)| (*s, class(p))).collect();
        prop_assert_eq!(&walked.requests, &by_path);
        prop_assert_eq!(walked.requests, builder.expected);
    }

    /// Stream numbers left out: what was indexed before is unresolved after, never wrong, and all else stays exact.
    #[test]
    fn after_a_gap_only_old_indices_are_unresolved(stream in bytes(600), cuts in bytes(200)) {
        let mut builder = Builder::new(Habits::WILD);
        builder.run(&mut Choices::new(&stream));
        let parsed = parse(&builder.bytes);
        prop_assert_eq!(parsed.stop, Stop::End);
        let cuts = Cuts::random(&mut Choices::new(&cuts), builder.bytes.len());
        let walked = drive::connection(&builder.bytes, &cuts, &*table(PATHS));
        prop_assert_eq!(agree(&parsed, &walked), Ok(()));
        prop_assert_eq!(walked.requests, builder.expected);
    }

    /// Joined in the middle: what was indexed before is unresolved, never wrong, and all else is exact.
    #[test]
    fn joined_late_only_old_indices_are_unresolved(
        before in bytes(300), after in bytes(300), cuts in bytes(200), gaps: bool, malformed: bool,
    ) {
        let mut builder = Builder::new(Habits { gaps, malformed, ..Habits::WILD });
        builder.run(&mut Choices::new(&before));
        builder.join();
        let first = builder.bytes.len();
        builder.run(&mut Choices::new(&after));
        let walked = join(&builder, first, &cuts);
        prop_assert_eq!(walked, builder.expected);
    }

    /// A client that never indexes its paths is exact from the join on.
    #[test]
    fn joined_late_literal_paths_are_exact(before in bytes(300), after in bytes(300), cuts in bytes(200)) {
        let mut builder = Builder::new(Habits::LITERAL_PATH);
        builder.run(&mut Choices::new(&before));
        builder.join();
        let first = builder.bytes.len();
        // No trailers: those of a call older than the join would count as a call that can't be resolved.
        let mut choices = Choices::new(&after);
        while !choices.is_empty() {
            builder.request(&mut choices);
        }
        let walked = join(&builder, first, &cuts);
        let by_path: Vec<_> = builder.made.iter().map(|(s, p)| (*s, class(p))).collect();
        prop_assert_eq!(&walked, &by_path);
        prop_assert_eq!(walked, builder.expected);
    }

    /// The registry's encoder, with requests as a gRPC client has them.
    #[test]
    fn what_a_full_encoder_writes_is_read(
        calls in vec((0..PATHS.len() + 2, 0..20u32), 1..40), size in 0..5usize, cuts in bytes(200),
    ) {
        let mut encoder = Encoder::new();
        let mut stream = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        let size = [0, 64, 100, 256, 4096][size];
        encoder.set_max_table_size(size);
        let mut expected = Vec::new();
        for (i, (path, timeout)) in calls.iter().enumerate() {
            let path = PATHS.get(*path).copied().unwrap_or("/grpc.health.v1.Health/Check");
            let timeout = format!("{timeout}m");
            // RFC 7541 §6.3: an encoder with another table than the default says so first.
            let mut block = if i == 0 { size_update(size) } else { Vec::new() };
            block.extend(encoder.encode([
                (&b":method"[..], &b"POST"[..]),
                (b":scheme", b"http"),
                (b":path", path.as_bytes()),
                (b":authority", b"localhost"),
                (b"x-path", path.as_bytes()),
                (b"grpc-timeout", timeout.as_bytes()),
            ]));
            let id = 2 * i as u32 + 1;
            frame(&mut stream, 1, 4, id, &block);
            expected.push((id, class(&[path.as_bytes().to_vec()])));
        }
        let cuts = Cuts::random(&mut Choices::new(&cuts), stream.len());
        let walked = drive::connection(&stream, &cuts, &*table(PATHS));
        prop_assert_eq!(walked.requests, expected);
        prop_assert_eq!(walked.fault, None);
    }

    /// Two ways to read any Huffman code that ours writes: a path, and whatever else may stand in a path.
    #[test]
    fn huffman_codes_are_read_by_a_full_decoder(text in prop_oneof!["[ -~]{0,200}", "/[a-zA-Z0-9_.]{1,90}/[a-zA-Z]{1,40}"]) {
        assert_huffman(text.as_bytes());
    }

    #[test]
    fn huffman_codes_of_any_octets_are_read_by_a_full_decoder(text in bytes(200)) {
        assert_huffman(&text);
    }

    /// Any octets after the preface: as much as the reference makes of them is made of them.
    #[test]
    fn any_octets_are_judged_alike(noise in bytes(200), cuts in bytes(50)) {
        let mut stream = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        stream.extend(noise);
        let cuts = Cuts::random(&mut Choices::new(&cuts), stream.len());
        let walked = drive::connection(&stream, &cuts, &*table(PATHS));
        prop_assert_eq!(agree(&parse(&stream), &walked), Ok(()));
    }

    /// A valid stream with one octet changed.
    #[test]
    fn a_damaged_stream_is_judged_alike(stream in bytes(300), at: prop::sample::Index, to: u8, cuts in bytes(50)) {
        let mut builder = Builder::new(Habits::WILD);
        builder.run(&mut Choices::new(&stream));
        let mut stream = builder.bytes;
        prop_assume!(stream.len() > 24);
        let at = 24 + at.index(stream.len() - 24);
        stream[at] = to;
        let cuts = Cuts::random(&mut Choices::new(&cuts), stream.len());
        let walked = drive::connection(&stream, &cuts, &*table(PATHS));
        prop_assert_eq!(agree(&parse(&stream), &walked), Ok(()));
    }
}

fn assert_huffman(text: &[u8]) {
    let mut code = vec![0; agent_common::h2::huffman::encoded_len(text)];
    let n = agent_common::h2::huffman::encode(text, &mut code);
    assert_eq!(n, Some(code.len()));
    let mut decoder = loona_hpack::huffman::HuffmanDecoder::new();
    assert_eq!(decoder.decode(&code), Ok(text.to_vec()));

    // And as the value of a field.
    let mut block = vec![0x04, 0xff];
    let mut rest = code.len() as i64 - 127;
    if rest < 0 {
        block[1] = 0x80 | code.len() as u8;
    } else {
        while rest >= 128 {
            block.push(rest as u8 | 0x80);
            rest >>= 7;
        }
        block.push(rest as u8);
    }
    block.extend(code);
    let fields = Decoder::new().decode(&block).expect("a block");
    assert_eq!(fields, [(b":path".to_vec(), text.to_vec())]);
}

/// RFC 7541 §6.3.
fn size_update(size: usize) -> Vec<u8> {
    match size.checked_sub(31) {
        None => vec![0x20 | size as u8],
        Some(rest) if rest < 128 => vec![0x3f, rest as u8],
        Some(rest) => vec![0x3f, rest as u8 | 0x80, (rest >> 7) as u8],
    }
}

/// The requests found in a stream that is joined: its first `first` octets are one send.
fn join(builder: &Builder, first: usize, cuts: &[u8]) -> Vec<(u32, u32)> {
    let table = table(PATHS);
    let conn = Conn::new();
    let (head, rest) = builder.bytes.split_at(first);
    let end = drive::send(&conn, &[head], usize::MAX, &*table, |_, _| {
        panic!("a request in a PING")
    });
    assert_eq!(end, End::Keep);
    assert_eq!(conn.status.get(), status::SYNCED);
    let cuts = Cuts::random(&mut Choices::new(cuts), rest.len());
    let mut requests = Vec::new();
    cuts.apply(rest, |pieces, window| {
        let end = drive::send(&conn, pieces, window, &*table, |stream, class| {
            requests.push((stream, class));
        });
        assert!(matches!(end, End::Keep | End::Drop));
        assert_eq!(conn.status.get(), status::SYNCED);
        ControlFlow::Continue(())
    });
    requests
}
