//! Any octets in any sends on a connection of any status: no panic, the state stays sound (`drive::send` checks it after
//! each step), and what is lost can be joined again.
#![no_main]

use std::ops::ControlFlow;

use agent_common::h2::frame::PREFACE;
use agent_common::h2::track::{End, status};
use agent_common::h2::walk::{Conn, UNRESOLVED, WATCHED};
use agent_common_fuzz::reference::PATHS;
use agent_common_fuzz::reference::build::frame;
use agent_common_fuzz::reference::choices::Choices;
use agent_common_fuzz::reference::drive::{self, Cuts};
use agent_common_fuzz::{parts, table};

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let (cuts, rest) = parts(input);
    let Some((how, bytes)) = rest.split_first() else {
        return;
    };
    let conn = Conn::new();
    if how % 3 > 0 {
        drive::send(&conn, &[&PREFACE], usize::MAX, table(), |_, _| {});
    }
    if how % 3 > 1 {
        let end = drive::send(&conn, &[&[0; 9]], usize::MAX, table(), |_, _| {});
        assert!(matches!(end, End::Lost(_)));
    }
    let cuts = Cuts::random(&mut Choices::new(cuts), bytes.len());
    cuts.apply(bytes, |pieces, window| {
        let before = conn.status.get();
        let empty = pieces.iter().all(|p| p.is_empty());
        let end = drive::send(&conn, pieces, window, table(), |stream, class| {
            assert_eq!(stream % 2, 1);
            assert!(class < WATCHED + PATHS.len() as u32 || class == UNRESOLVED);
        });
        let after = conn.status.get();
        let right = match end {
            _ if empty => after == before,
            End::Keep => after == status::SYNCED || before == status::NEW && after == status::TLS,
            End::Lost(_) => after == status::UNSYNCED && before != status::TLS,
            // A preface that was broken off leaves nothing; all else leaves what was.
            End::Drop => after == before || after == status::NEW && before != status::TLS,
        };
        assert!(right, "{before} to {after} by {end:?}");
        ControlFlow::Continue(())
    });

    let mut request = Vec::new();
    frame(
        &mut request,
        1,
        4,
        1,
        b"\x04\x1b/source.v1.Source/PendingFn",
    );
    let mut found = Vec::new();
    let mut send = |bytes: &[u8]| {
        drive::send(&conn, &[bytes], usize::MAX, table(), |stream, class| {
            found.push((stream, class));
        })
    };
    if conn.status.get() == status::TLS || conn.status.get() == status::SYNCED && !conn.at_border()
    {
        return;
    }
    if conn.status.get() == status::SYNCED {
        assert_eq!(send(&PREFACE), End::Keep);
    }
    assert_eq!(send(&request), End::Keep);
    assert_eq!(found, [(1, WATCHED)]);
});
