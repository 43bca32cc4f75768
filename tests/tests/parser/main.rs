//! The parser as it was built for the kernel and the same parser as it was built for the host, on the same bytes: valid streams of every
//! habit, damaged ones, garbage, and streams that are joined in the middle, cut anywhere. Behind each send their states must be equal to
//! the last octet, and what they found; and behind each buffer of the gate's walk, what was overwritten.

#[path = "../../../agent-common/tests/reference/mod.rs"]
#[allow(dead_code, reason = "the parser's own tests need more of it")]
mod reference;

mod host;
mod kernel;
mod socket;

use std::mem::zeroed;
use std::ops::ControlFlow;

use agent_common::abi::cases::{self, Case, IN_FRONT};
use agent_common::h2::track::status;
use agent_common::h2::walk::Conn;
use anyhow::{Context as _, Result, ensure};
use pendguard_tests::scale::{Scale, scale};
use pendguard_tests::splitmix::SplitMix;

use crate::kernel::Kernel;
use crate::reference::build::{Builder, Habits};
use crate::reference::choices::Choices;
use crate::reference::drive::Cuts;
use crate::reference::{PATHS, parse, table};

/// Streams, of some hundred sends each.
fn cases() -> u64 {
    match scale() {
        Scale::Full => 20_000,
        Scale::Fast => 2_000,
        Scale::Vm => 200,
    }
}

/// A client's stream of some kind.
fn stream(random: &mut SplitMix) -> Vec<u8> {
    let len = random.within(20..=400) as usize;
    let mut choices = Vec::new();
    random.fill(&mut choices, len);
    let mut builder = Builder::new(Habits::WILD);
    builder.run(&mut Choices::new(&choices));
    let mut bytes = builder.bytes;
    match random.within(0..=3) {
        // What any client may send.
        0 => {}
        // One octet of it changed.
        1 => {
            let at = random.within(0..=bytes.len() as u64 - 1) as usize;
            bytes[at] = random.word() as u8;
        }
        // Garbage behind the preface.
        2 => {
            bytes.truncate(24);
            let len = random.within(0..=300) as usize;
            random.fill(&mut bytes, len);
        }
        // From the middle on.
        _ => {
            let frames = parse(&bytes).frames;
            if !frames.is_empty() {
                let frame = random.within(0..=frames.len() as u64 - 1) as usize;
                bytes.drain(..frames[frame]);
            }
        }
    }
    bytes
}

fn conn_bytes(conn: &Conn) -> &[u8] {
    // SAFETY: it is made of integers without gaps.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(conn).cast(), size_of::<Conn>()) }
}

/// What must be equal of two cases.
fn found(case: &Case) -> (u32, u32, u32, Vec<u32>, Vec<u64>, &[u8]) {
    let calls = case.calls.get() as usize;
    (
        case.begun.get(),
        case.ended.get(),
        case.kept.get(),
        case.found.iter().map(|found| found.get()).collect(),
        case.call[..calls].iter().map(|call| call.get()).collect(),
        conn_bytes(&case.conn),
    )
}

fn case() -> Case {
    // SAFETY: it is made of integers, for which all zero is a value.
    unsafe { zeroed() }
}

#[test]
fn the_tap_s_walk_is_the_same() -> Result<()> {
    let mut kernel = Kernel::load()?;
    let table = table(PATHS);
    let (mut random, mut sends, mut requests) = (SplitMix::new(1), 0u64, 0u64);
    for number in 0..cases() {
        let bytes = stream(&mut random);
        let mut choices = Vec::new();
        random.fill(&mut choices, 60);
        let cuts = Cuts::random(&mut Choices::new(&choices), bytes.len());
        let (mut here, mut there) = (case(), case());
        let mut result = Ok(());
        cuts.apply(&bytes, |pieces, _| {
            let vectors: Vec<[u64; 2]> = pieces
                .iter()
                .map(|piece| [piece.as_ptr() as u64, piece.len() as u64])
                .collect();
            let total = pieces.iter().map(|piece| piece.len()).sum::<usize>();
            if total == 0 {
                return ControlFlow::Continue(());
            }
            there.total = total as u32;
            if let [piece] = pieces {
                there.buffers = 0;
                there.address = piece.as_ptr() as u64;
            } else {
                there.buffers = pieces.len() as u32;
                there.address = vectors.as_ptr() as u64;
            }
            host::send(&here, pieces, &table);
            result = kernel.send(&mut there).and_then(|()| {
                ensure!(
                    found(&here) == found(&there),
                    "case {number}, send {sends}, {pieces:x?}: here {:?}, in the kernel {:?}",
                    found(&here),
                    found(&there)
                );
                Ok(())
            });
            sends += 1;
            requests += u64::from(here.calls.get());
            if result.is_err() {
                return ControlFlow::Break(());
            }
            // As the programs do.
            if here.kept.get() != cases::KEEP {
                (here, there) = (case(), case());
            }
            ControlFlow::Continue(())
        });
        result?;
    }
    ensure!(
        requests > cases() / 10,
        "{requests} calls: nothing was tested"
    );
    println!(
        "{} streams, {sends} sends, {requests} calls: no difference",
        cases()
    );
    Ok(())
}

#[test]
fn the_gate_s_walk_is_the_same() -> Result<()> {
    let mut kernel = Kernel::load()?;
    let (table, substitutes) = (table(PATHS), host::substitutes(&PATHS));
    let (mut random, mut buffers, mut edited) = (SplitMix::new(2), 0u64, 0u64);
    for number in 0..cases() {
        let bytes = stream(&mut random);
        kernel.gate()?;
        let conn = Conn::new();
        conn.status.set(status::SYNCED);
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let longest = (*[40, 300, 3000]
                .get(random.within(0..=2) as usize)
                .context("three")?)
            .min(rest.len() as u64);
            let (buffer, behind) = rest.split_at(random.within(1..=longest) as usize);
            rest = behind;
            let mut here = vec![0; IN_FRONT];
            here.extend(buffer);
            let mut there = here.clone();
            let Some(lost) = host::buffer(&conn, &mut here, &table, &substitutes) else {
                break;
            };
            let (lost_there, conn_there) = kernel.buffer(&mut there)?;
            ensure!(
                here == there && lost == lost_there && conn_bytes(&conn) == conn_there,
                "case {number}, {buffer:x?}: here {here:x?} {lost} {:?}, in the kernel {there:x?} {lost_there} {conn_there:?}",
                conn_bytes(&conn)
            );
            buffers += 1;
            edited += u64::from(here[IN_FRONT..] != *buffer);
            if lost {
                break;
            }
        }
    }
    ensure!(edited > cases() / 10, "{edited} edits: nothing was tested");
    println!(
        "{} streams, {buffers} buffers, {edited} of them edited: no difference",
        cases()
    );
    Ok(())
}
