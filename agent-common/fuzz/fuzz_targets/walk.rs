//! Any octets after the preface: what the tracker finds is what a full parser and decoder find, however the stream is cut.
#![no_main]

use agent_common::h2::frame::PREFACE;
use agent_common_fuzz::reference::choices::Choices;
use agent_common_fuzz::reference::drive::{self, Cuts};
use agent_common_fuzz::reference::{Stop, agree, parse};
use agent_common_fuzz::{parts, table};

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let (cuts, rest) = parts(input);
    let stream = [&PREFACE, rest].concat();
    let parsed = parse(&stream);

    let whole = drive::connection(&stream, &Cuts::none(stream.len()), table());
    agree(&parsed, &whole).unwrap();

    let cuts = Cuts::random(&mut Choices::new(cuts), stream.len());
    let cut = drive::connection(&stream, &cuts, table());
    agree(&parsed, &cut).unwrap();
    // A preface begins a new connection only where a send begins with it.
    if parsed.stop != Stop::Preface {
        assert_eq!(whole, cut);
    }
});
