//! Calls before and after a late join, and what a source answers, made from the input: what is learned of old indices is never wrong.
#![no_main]

use agent_common_fuzz::parts;
use agent_common_fuzz::reference::late::connection;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let (before, rest) = parts(input);
    if let Some((gaps, after)) = rest.split_first() {
        connection(before, after, gaps & 1 == 1);
    }
});
