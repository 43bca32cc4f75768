//! Programs for benchmarks, which no agent loads: they do nothing. What is measured with them is what their hooks cost.
//!
//! | program | attaches to |
//! |---|---|
//! | `floor_verdict` | the sockets in `FLOOR_SOCKETS` (sk_skb) |
//! | `floor_call` | tracepoints of system calls |
#![no_std]
#![no_main]

mod object;

use aya_ebpf::macros::{map, stream_verdict, tracepoint};
use aya_ebpf::maps::SockMap;
use aya_ebpf::programs::{SkBuffContext, TracePointContext};

#[map]
static FLOOR_SOCKETS: SockMap = SockMap::with_max_entries(64, 0);

/// `SK_PASS`.
const PASS: u32 = 1;

#[stream_verdict]
pub fn floor_verdict(_: SkBuffContext) -> u32 {
    PASS
}

#[tracepoint]
pub fn floor_call(_: TracePointContext) -> u32 {
    0
}
