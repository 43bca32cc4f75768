//! RFC 7541 appendix C, as header blocks of an HTTP/2 connection.

use agent_common::h2::frame::PREFACE;
use agent_common::h2::paths::PathTable;
use agent_common::h2::track::{End, send};
use agent_common::h2::walk::{Conn, OTHER, WATCHED};
use loona_hpack::Decoder;

use crate::reference::build::frame;
use crate::reference::table;

fn octets(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.bytes().filter(u8::is_ascii_hexdigit).collect();
    digits
        .chunks(2)
        .map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

/// A connection that blocks are sent on, each on a new stream, beside a full decoder.
struct Connection {
    conn: Conn,
    table: Box<PathTable>,
    decoder: Decoder<'static>,
    stream: u32,
}

impl Connection {
    /// One on which `/sample/path` is watched, with a table of `size` octets.
    fn new(size: usize) -> Self {
        let connection = Self {
            conn: Conn::new(),
            table: table(["/source.v1.Source/PendingFn", "/sample/path"]),
            decoder: Decoder::new(),
            stream: 1,
        };
        let end = send(&connection.conn, &[&PREFACE], &*connection.table, |_, _| {});
        assert_eq!(end, End::Keep);
        let mut this = connection;
        this.decoder.set_max_table_size(size);
        this
    }

    /// The class of the request that `block` makes, if it makes one.
    fn block(&mut self, hex: &str) -> Option<u32> {
        let block = octets(hex);
        self.decoder.decode(&block).expect("an example of the RFC");
        let mut bytes = Vec::new();
        frame(&mut bytes, 1, 4, self.stream, &block);
        let mut found = None;
        let end = send(&self.conn, &[&bytes], &*self.table, |stream, class| {
            assert_eq!(stream, self.stream);
            assert_eq!(found.replace(class), None);
        });
        assert_eq!(end, End::Keep);
        assert!(self.conn.at_border());
        assert_eq!(self.conn.check_invariants(), Ok(()));
        self.stream += 2;
        found
    }

    /// How many entries were inserted. A left-out stream number makes the tracker tell.
    fn inserted(mut self) -> u32 {
        self.stream += 2;
        self.block("83");
        self.conn.gap.get()
    }
}

/// C.2: single fields.
#[test]
fn c2_fields() {
    let mut c = Connection::new(4096);
    let with_indexing = "400a 6375 7374 6f6d 2d6b 6579 0d63 7573 746f 6d2d 6865 6164 6572";
    assert_eq!(c.block(with_indexing), None);
    let without_indexing = "040c 2f73 616d 706c 652f 7061 7468";
    assert_eq!(c.block(without_indexing), Some(WATCHED + 1));
    let never_indexed = "1008 7061 7373 776f 7264 0673 6563 7265 74";
    assert_eq!(c.block(never_indexed), None);
    let indexed = "82";
    assert_eq!(c.block(indexed), None);
    assert_eq!(c.inserted(), 1);
}

const C3: [&str; 3] = [
    "8286 8441 0f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
    "8286 84be 5808 6e6f 2d63 6163 6865",
    "8287 85bf 400a 6375 7374 6f6d 2d6b 6579 0c63 7573 746f 6d2d 7661 6c75 65",
];
const C4: [&str; 3] = [
    "8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff",
    "8286 84be 5886 a8eb 1064 9cbf",
    "8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf",
];

/// C.3 and C.4: requests for `/`, `/` and `/index.html`, all of them static entries.
#[test]
fn c3_and_c4_requests() {
    for blocks in [C3, C4] {
        let mut c = Connection::new(4096);
        for block in blocks {
            assert_eq!(c.block(block), Some(OTHER));
        }
        assert_eq!(c.inserted(), 3);
    }
}

const C5: [&str; 3] = [
    "4803 3330 3258 0770 7269 7661 7465 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32
     3120 474d 546e 1768 7474 7073 3a2f 2f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
    "4803 3330 37c1 c0bf",
    "88c1 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 3220 474d 54c0 5a04 677a 6970
     7738 666f 6f3d 4153 444a 4b48 514b 425a 584f 5157 454f 5049 5541 5851 5745 4f49 553b 206d 6178 2d61
     6765 3d33 3630 303b 2076 6572 7369 6f6e 3d31",
];
const C6: [&str; 3] = [
    "4882 6402 5885 aec3 771a 4b61 96d0 7abe 9410 54d4 44a8 2005 9504 0b81 66e0 82a6 2d1b ff6e 919d 29ad
     1718 63c7 8f0b 97c8 e9ae 82ae 43d3",
    "4883 640e ffc1 c0bf",
    "88c1 6196 d07a be94 1054 d444 a820 0595 040b 8166 e084 a62d 1bff c05a 839b d9ab 77ad 94e7 821d d7f2
     e6c7 b335 dfdf cd5b 3960 d5af 2708 7f36 72c1 ab27 0fb5 291f 9587 3160 65c0 03ed 4ee5 b106 3d50 07",
];

/// C.5 and C.6: responses, with a table of 256 octets that evicts. They have no path; what counts is the numbering.
#[test]
fn c5_and_c6_responses() {
    for blocks in [C5, C6] {
        for (n, inserted) in [(1, 4), (2, 5), (3, 8)] {
            let mut c = Connection::new(256);
            for block in &blocks[..n] {
                assert_eq!(c.block(block), None);
            }
            assert_eq!(c.inserted(), inserted);
        }
    }
}

/// The table of C.5, with a path among its entries: what was evicted around it moves no index.
#[test]
fn a_path_among_evicted_entries() {
    let mut c = Connection::new(256);
    assert_eq!(c.block(C5[0]), None);
    // `:path: /sample/path`, indexed: 49 octets more evict `:status: 302`.
    assert_eq!(
        c.block("440c 2f73 616d 706c 652f 7061 7468"),
        Some(WATCHED + 1)
    );
    assert_eq!(c.block("be"), Some(WATCHED + 1));
    // `:status: 307` goes in front of it.
    assert_eq!(c.block("4803 3330 37"), None);
    assert_eq!(c.block("bf"), Some(WATCHED + 1));
    // Its name, another path.
    assert_eq!(c.block("0f30 022f 61"), Some(OTHER));
    assert_eq!(
        c.block("7f00 0c2f 73616d706c652f70617468"),
        Some(WATCHED + 1)
    );
    assert_eq!(c.block("be"), Some(WATCHED + 1));
    assert_eq!(c.block("c0"), Some(WATCHED + 1));
    assert_eq!(c.inserted(), 7);
}
