//! Connections that are joined late, of clients that index their paths: what is learned from answers is never wrong.

use proptest::collection::vec;
use proptest::prelude::*;

use crate::reference::late::connection;

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1_000) })]

    #[test]
    fn what_is_learned_is_never_wrong(before in vec(any::<u8>(), 0..100), after in vec(any::<u8>(), 0..600), gaps: bool) {
        connection(&before, &after, gaps);
    }
}

/// The same for many calls: nearly all of them are known.
#[test]
fn what_can_be_learned_is() {
    let after: Vec<u8> = (0..20_000u32).map(|i| (i * i / 7 + i * 31) as u8).collect();
    let seen = connection(&after[..50], &after, false);
    assert!(
        seen.resolved > 100 && seen.unresolved < 10,
        "{} of {} calls",
        seen.resolved,
        seen.resolved + seen.unresolved
    );
}
