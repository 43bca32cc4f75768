//! Valid streams of any shape, made from the input: each request has exactly the class that its maker gave it, from the
//! beginning and after a late join.
#![no_main]

use std::ops::ControlFlow;

use agent_common::h2::track::{End, status};
use agent_common::h2::walk::Conn;
use agent_common_fuzz::reference::build::{Builder, Habits};
use agent_common_fuzz::reference::choices::Choices;
use agent_common_fuzz::reference::drive::{self, Cuts};
use agent_common_fuzz::reference::{Stop, agree, parse};
use agent_common_fuzz::{parts, table};

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let (cuts, rest) = parts(input);
    let (before, after) = rest.split_at(rest.len() / 2);
    let mut builder = Builder::new(Habits::WILD);
    builder.run(&mut Choices::new(before));

    let parsed = parse(&builder.bytes);
    assert_eq!(parsed.stop, Stop::End);
    let decoded = parsed.requests.iter().map(|r| (r.stream, r.paths.clone()));
    assert!(decoded.eq(builder.made.iter().cloned()));
    let choices = &mut Choices::new(cuts);
    let walked = drive::connection(
        &builder.bytes,
        &Cuts::random(choices, builder.bytes.len()),
        table(),
    );
    agree(&parsed, &walked).unwrap();
    assert_eq!(walked.requests, builder.expected);

    builder.join();
    let first = builder.bytes.len();
    builder.run(&mut Choices::new(after));
    let conn = Conn::new();
    let (head, tail) = builder.bytes.split_at(first);
    let end = drive::send(&conn, &[head], usize::MAX, table(), |_, _| {});
    assert_eq!(end, End::Keep);
    let cuts = Cuts::random(choices, tail.len());
    let mut found = Vec::new();
    cuts.apply(tail, |pieces, window| {
        drive::send(&conn, pieces, window, table(), |stream, class| {
            found.push((stream, class));
        });
        assert_eq!(conn.status.get(), status::SYNCED);
        ControlFlow::Continue(())
    });
    assert_eq!(found, builder.expected);
});
