//! The table of watched paths: exact, for any paths.

use agent_common::h2::huffman;
use agent_common::h2::paths::{MAX_LEN, MAX_PATHS, PathError, PathTable, Paths, check};
use proptest::collection::{btree_set, vec};
use proptest::prelude::*;

use crate::reference::build::near;
use crate::reference::choices::Choices;
use crate::reference::table;

const NAME: u32 = PathTable::NAME;

fn number(mask: u32) -> u32 {
    PathTable::number(mask)
}

/// What [`Paths`] says of a whole string: the candidates that are left at its end.
fn left(table: &PathTable, huffman: u32, text: &[u8]) -> u32 {
    text.iter().enumerate().fold(
        table.lengths(huffman, text.len() as u32),
        |mask, (i, &octet)| {
            if mask == 0 {
                0
            } else {
                mask & table.at(huffman, i as u32, octet)
            }
        },
    )
}

fn coded(text: &[u8]) -> Vec<u8> {
    let mut code = vec![0; huffman::encoded_len(text)];
    huffman::encode(text, &mut code).expect("it has the right length");
    code
}

/// Which of `paths` the table takes `text` for, in both spellings.
fn found(table: &PathTable, text: &[u8]) -> [Option<u32>; 2] {
    [left(table, 0, text), left(table, 1, &coded(text))].map(|mask| {
        assert!(mask.count_ones() <= 1, "{text:?} is two candidates");
        (mask & !NAME != 0).then(|| number(mask))
    })
}

fn path() -> impl Strategy<Value = String> {
    let short = "/[ab]{1,3}/[ab]{1,3}";
    let real = r"/[a-z]{1,8}\.v[0-9]\.[A-Z][a-z_]{1,12}/[A-Z][a-zA-Z]{1,12}";
    let long = "/[A-Z0-9_.]{46}/[a-zX]{47,48}";
    prop_oneof![short, real, long]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(200) })]

    /// Brute force: whatever the watched paths, they are found, and nothing near one of them is.
    #[test]
    fn exactly_the_watched_paths_are_found(
        paths in btree_set(path(), 0..=MAX_PATHS), others in vec(path(), 0..20), edits in vec(any::<u8>(), 400),
    ) {
        let paths: Vec<String> = paths.into_iter().collect();
        let table = table(paths.iter().map(String::as_str));
        let is = |text: &[u8]| paths.iter().position(|p| p.as_bytes() == text).map(|i| i as u32);
        let mut choices = Choices::new(&edits);
        for text in paths.iter().chain(&others) {
            prop_assert_eq!(found(&table, text.as_bytes()), [is(text.as_bytes()); 2]);
            for _ in 0..8 {
                let text = near(&mut choices, text.clone().into_bytes());
                prop_assert_eq!(found(&table, &text), [is(&text); 2], "{:?}", text);
            }
            // A code with another end is not the path's: RFC 7541 §5.2 leaves no choice of padding.
            let code = near(&mut choices, coded(text.as_bytes()));
            let same = paths.iter().position(|p| coded(p.as_bytes()) == code);
            let mask = left(&table, 1, &code) & !NAME;
            prop_assert_eq!((mask != 0).then(|| number(mask) as usize), same);
        }
    }
}

/// Every single octet of a path, replaced by every other.
#[test]
fn no_octet_may_differ() {
    let path = "/source.v1.Source/PendingFn";
    let table = table([
        path,
        "/source.v1.Source/BlockedFn",
        "/source.v1.Source/PendingFm",
    ]);
    assert_eq!(found(&table, path.as_bytes()), [Some(0); 2]);
    for at in 0..path.len() {
        for octet in 0..=255 {
            let mut text = path.as_bytes().to_vec();
            text[at] = octet;
            let want = match text.as_slice() {
                b"/source.v1.Source/PendingFn" => Some(0),
                b"/source.v1.Source/PendingFm" => Some(2),
                _ => None,
            };
            assert_eq!(found(&table, &text), [want; 2], "octet {at} as {octet}");
            let mut code = coded(path.as_bytes());
            if let Some(o) = code.get_mut(at) {
                *o = octet;
                let watched = [
                    &b"/source.v1.Source/PendingFn"[..],
                    b"/source.v1.Source/PendingFm",
                ];
                let want = watched.iter().any(|w| coded(w) == code);
                assert_eq!(left(&table, 1, &code) != 0, want);
            }
        }
    }
}

#[test]
fn the_name_is_found_in_both_spellings() {
    let table = table(["/path/path"]);
    for (huffman, text) in [(0, b":path".to_vec()), (1, coded(b":path"))] {
        assert_eq!(left(&table, huffman, &text) & !NAME, 0);
        assert_ne!(left(&table, huffman, &text) & NAME, 0);
        assert_eq!(left(&table, 1 - huffman, &text), 0);
    }
    for text in [&b":pat"[..], b":paths", b":Path", b"path", b"", b":patg"] {
        assert_eq!(left(&table, 0, text), 0);
        assert_eq!(left(&table, 1, &coded(text)), 0);
    }
}

#[test]
fn numbers_are_those_of_the_paths() {
    for i in 0..MAX_PATHS as u32 {
        assert_eq!(number(1 << i), i);
        assert_eq!(number(1 << (i + MAX_PATHS as u32)), i);
    }
}

#[test]
fn strings_longer_than_any_path_are_none() {
    let table = table(crate::reference::PATHS);
    for len in [97, 127, 128, 129, 255, 256, 1 << 28, u32::MAX] {
        // (One of up to 127 octets may be a user-agent.)
        assert_eq!(table.lengths(0, len) & !PathTable::AGENT, 0);
        assert_eq!(table.lengths(1, len) & !PathTable::AGENT, 0);
        assert!(len < 128 || table.lengths(0, len) | table.lengths(1, len) == 0);
    }
}

#[test]
fn what_cant_be_watched_is_refused() {
    for path in [
        "", "/", "//", "a/b", "/a", "/a/", "//b", "/a/b/", "/a/b/c", "/a b/c", "/a/b?", "/ä/b",
        "/a-b/c", "/a/*",
    ] {
        assert_eq!(check(path), Err(PathError::NotAMethod), "{path}");
    }
    let longest = format!("/{}/{}", "a".repeat(47), "b".repeat(47));
    assert_eq!(longest.len(), MAX_LEN);
    assert_eq!(check(&longest), Ok(()));
    assert_eq!(check(&format!("{longest}b")), Err(PathError::TooLong));
    assert_eq!(
        found(&table([longest.as_str()]), longest.as_bytes()),
        [Some(0); 2]
    );

    let mut full = Box::new(PathTable::EMPTY);
    let nine: Vec<String> = (0..9).map(|i| format!("/a/b{i}")).collect();
    assert_eq!(
        full.fill(nine.iter().map(String::as_str)),
        Err(PathError::TooMany)
    );
    let mut twice = Box::new(PathTable::EMPTY);
    assert_eq!(twice.fill(["/a/b", "/c/d", "/a/b"]), Err(PathError::Twice));
}

/// `MAX_LEN`'s comment: no watched path is longer in the Huffman code than in full.
#[test]
fn no_character_of_a_path_takes_more_than_eight_bits() {
    for octet in (0..=255u8).filter(|o| o.is_ascii_alphanumeric() || b"/_.".contains(o)) {
        assert!(huffman::encoded_len(&[octet; 8]) <= 8, "{octet}");
    }
}
