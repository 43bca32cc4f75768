//! Makes valid client streams of every shape that RFC 9113 and RFC 7541 allow, and says what the tracker must find.

use std::collections::VecDeque;

use agent_common::h2::frame::{PREFACE, flag, kind};
use agent_common::h2::huffman;
use agent_common::h2::walk::UNRESOLVED;

use super::choices::Choices;
use super::{PATHS, TABLE_SIZE, class};

/// RFC 7541 appendix A, as far as it is used here: index and name.
const STATIC: [(u32, &[u8]); 8] = [
    (1, b":authority"),
    (3, b":method"),
    (6, b":scheme"),
    (15, b"accept-charset"),
    (16, b"accept-encoding"),
    (31, b"content-type"),
    (58, b"user-agent"),
    (61, b"www-authenticate"),
];
/// Static entries of more than a name that aren't `:path`.
const STATIC_WHOLE: [u32; 6] = [2, 3, 6, 7, 16, 61];
const NAMES: [&[u8]; 8] = [
    b"grpc-timeout",
    b"te",
    b":pat",
    b":paths",
    b":patH",
    b"path",
    b"",
    b"x-a-name-that-is-longer-than-thirty-two-octets",
];

/// How a stream may differ from what every gRPC client does.
#[derive(Clone, Copy, Debug)]
pub struct Habits {
    /// Leaves stream numbers out.
    pub gaps: bool,
    /// Sends requests with two paths or none.
    pub malformed: bool,
    /// Refers to the dynamic table for anything but `:path`.
    pub indexes: bool,
    /// Refers to the dynamic table for `:path`.
    pub indexes_path: bool,
}

impl Habits {
    /// Everything.
    pub const WILD: Self = Self {
        gaps: true,
        malformed: true,
        indexes: true,
        indexes_path: true,
    };
    /// What tonic does.
    pub const LITERAL_PATH: Self = Self {
        gaps: false,
        malformed: false,
        indexes: true,
        indexes_path: false,
    };
}

struct Entry {
    name: Vec<u8>,
    value: Vec<u8>,
    /// The tracker saw it inserted, and what its name was.
    known: bool,
}

/// A client, and a model of what a tracker of it knows.
pub struct Builder {
    habits: Habits,
    /// What it has sent.
    pub bytes: Vec<u8>,
    /// Every request with the values of its `:path`.
    pub made: Vec<(u32, Vec<Vec<u8>>)>,
    /// What the tracker must report.
    pub expected: Vec<(u32, u32)>,
    table: VecDeque<Entry>,
    table_size: usize,
    table_max: usize,
    /// Highest stream opened.
    stream: u32,
    /// Highest stream that the tracker saw opened since it joined.
    seen: u32,
}

/// What a block's `:path`s and unknown fields come to.
#[derive(Default)]
struct Block {
    bytes: Vec<u8>,
    paths: Vec<Vec<u8>>,
    known: Vec<Vec<u8>>,
    unknown: bool,
}

impl Builder {
    pub fn new(habits: Habits) -> Self {
        Self {
            habits,
            bytes: PREFACE.to_vec(),
            made: Vec::new(),
            expected: Vec::new(),
            table: VecDeque::new(),
            table_size: 0,
            table_max: TABLE_SIZE,
            stream: 0,
            seen: 0,
        }
    }

    /// Sends things until the choices are used up.
    pub fn run(&mut self, choices: &mut Choices) {
        while !choices.is_empty() {
            match choices.below(8) {
                0..5 => self.request(choices),
                5 => self.trailers(choices),
                _ => self.other(choices),
            }
        }
    }

    /// The tracker is joined here: it knows nothing of what was sent before.
    pub fn join(&mut self) {
        self.forget();
        self.seen = 0;
        self.expected.clear();
        self.made.clear();
        self.bytes.clear();
        // A whole frame that every tracker knows, so that it can be joined.
        self.frame(kind::PING, 0, 0, &[0; 8]);
    }

    fn forget(&mut self) {
        for entry in &mut self.table {
            entry.known = false;
        }
    }

    /// A request on a new stream.
    pub fn request(&mut self, choices: &mut Choices) {
        let skip = if self.habits.gaps && choices.chance(20) {
            2 * choices.below(4) as u32
        } else {
            0
        };
        self.stream = if self.stream == 0 { 1 } else { self.stream + 2 } + skip;
        let paths = if self.habits.malformed && choices.chance(20) {
            2 * choices.below(2)
        } else {
            1
        };
        self.headers(choices, self.stream, paths);
    }

    fn trailers(&mut self, choices: &mut Choices) {
        if self.stream > 0 {
            let back = 2 * choices.below(3) as u32;
            let stream = if back < self.stream {
                self.stream - back
            } else {
                1
            };
            self.headers(choices, stream, 0);
        }
    }

    fn headers(&mut self, choices: &mut Choices, stream: u32, paths: usize) {
        if self.seen != 0 && stream > self.seen + 2 {
            self.forget();
        }
        let block = self.block(choices, paths);
        self.block_frames(choices, stream, &block.bytes);
        if !block.paths.is_empty() {
            self.made.push((stream, block.paths));
        }
        if stream > self.seen {
            self.seen = stream;
            if !block.known.is_empty() {
                self.expected.push((stream, class(&block.known)));
            } else if block.unknown {
                self.expected.push((stream, UNRESOLVED));
            }
        }
    }

    fn block(&mut self, choices: &mut Choices, paths: usize) -> Block {
        let mut block = Block::default();
        // RFC 7541 §4.2: size updates stand at the beginning.
        let updates = if self.habits.indexes && choices.chance(24) {
            1 + choices.below(2)
        } else {
            0
        };
        for _ in 0..updates {
            let size = match choices.below(4) {
                0 => 0,
                1 => TABLE_SIZE,
                2 => choices.below(300),
                _ => choices.below(TABLE_SIZE + 1),
            };
            integer(choices, &mut block.bytes, 0x20, 5, size as u32);
            self.table_max = size;
            self.evict();
        }
        let fields = choices.below(6);
        for _ in 0..fields {
            self.field(choices, &mut block);
        }
        for _ in 0..paths {
            self.path(choices, &mut block);
            if choices.chance(96) {
                self.field(choices, &mut block);
            }
        }
        if block.bytes.is_empty() || updates > 0 && fields + paths == 0 {
            // The reference refuses a block that ends with a size update.
            block.bytes.push(0x83);
        }
        block
    }

    /// A field that isn't `:path`.
    fn field(&mut self, choices: &mut Choices, block: &mut Block) {
        let others = self.indices(|e| e.name != b":path");
        match choices.below(4) {
            0 => block.bytes.push(0x80 | *choices.one(&STATIC_WHOLE) as u8),
            1 if self.habits.indexes && !others.is_empty() => {
                let at = *choices.one(&others);
                self.indexed(choices, block, at);
            }
            _ => {
                let (index, name) = match choices.below(3) {
                    0 => (0, choices.one(&NAMES).to_vec()),
                    1 if self.habits.indexes && !others.is_empty() => {
                        let at = *choices.one(&others);
                        (62 + at as u32, self.table[at].name.clone())
                    }
                    _ => {
                        let (index, name) = *choices.one(&STATIC);
                        (index, name.to_vec())
                    }
                };
                // Any value, and one that would be watched as a path.
                let value = self.value(choices);
                self.literal(choices, block, index, name, value);
            }
        }
    }

    fn path(&mut self, choices: &mut Choices, block: &mut Block) {
        let paths = self.indices(|e| e.name == b":path");
        let indexed = self.habits.indexes_path && !paths.is_empty();
        match choices.below(4) {
            0 if indexed => {
                let at = *choices.one(&paths);
                self.indexed(choices, block, at);
            }
            1 if choices.chance(40) => {
                let index = 4 + choices.below(2) as u32;
                integer(choices, &mut block.bytes, 0x80, 7, index);
                let value = if index == 4 {
                    &b"/"[..]
                } else {
                    b"/index.html"
                };
                block.paths.push(value.to_vec());
                block.known.push(value.to_vec());
            }
            _ => {
                let index = match choices.below(4) {
                    0 => 0,
                    1 => 4,
                    2 if indexed => 62 + *choices.one(&paths) as u32,
                    _ => 5,
                };
                let value = self.value(choices);
                self.literal(choices, block, index, b":path".to_vec(), value);
            }
        }
    }

    /// Positions in the dynamic table.
    fn indices(&self, of: impl Fn(&Entry) -> bool) -> Vec<usize> {
        (0..self.table.len())
            .filter(|&i| of(&self.table[i]))
            .collect()
    }

    /// RFC 7541 §6.1.
    fn indexed(&mut self, choices: &mut Choices, block: &mut Block, at: usize) {
        integer(choices, &mut block.bytes, 0x80, 7, 62 + at as u32);
        let entry = &self.table[at];
        block.note(&entry.name, &entry.value, entry.known);
    }

    /// RFC 7541 §6.2: a name by `index`, or in full if that is 0.
    fn literal(
        &mut self,
        choices: &mut Choices,
        block: &mut Block,
        index: u32,
        name: Vec<u8>,
        value: Vec<u8>,
    ) {
        let known = index < 62 || self.table[index as usize - 62].known;
        let insert = choices.below(3);
        match insert {
            0 => integer(choices, &mut block.bytes, 0x00, 4, index),
            1 => integer(choices, &mut block.bytes, 0x10, 4, index),
            _ => integer(choices, &mut block.bytes, 0x40, 6, index),
        }
        if index == 0 {
            string(choices, &mut block.bytes, &name);
        }
        string(choices, &mut block.bytes, &value);
        block.note(&name, &value, known);
        if insert == 2 {
            self.table_size += name.len() + value.len() + 32;
            self.table.push_front(Entry { name, value, known });
            self.evict();
        }
    }

    fn evict(&mut self) {
        while self.table_size > self.table_max {
            let entry = self
                .table
                .pop_back()
                .expect("an empty table has the size 0");
            self.table_size -= entry.name.len() + entry.value.len() + 32;
        }
    }

    fn value(&self, choices: &mut Choices) -> Vec<u8> {
        let watched = choices.one(&PATHS).as_bytes().to_vec();
        match choices.below(8) {
            0..4 => watched,
            4 => near(choices, watched),
            5 => choices.one(&[&b"/"[..], b":path", b""]).to_vec(),
            6 => choices.some_octets(40),
            _ => {
                let n = choices.below(400);
                watched.iter().cycle().take(n).copied().collect()
            }
        }
    }

    /// A block in HEADERS and CONTINUATION.
    fn block_frames(&mut self, choices: &mut Choices, stream: u32, block: &[u8]) {
        let mut fragments = vec![block];
        if choices.chance(64) {
            for _ in 0..=choices.below(4) {
                let last = fragments.pop().expect("never empty");
                let (one, other) = last.split_at(choices.below(last.len() + 1));
                fragments.extend([one, other]);
            }
        }
        let last = fragments.len() - 1;
        for (i, fragment) in fragments.into_iter().enumerate() {
            let end = if i == last { flag::END_HEADERS } else { 0 };
            if i > 0 {
                // Flags that CONTINUATION doesn't have are ignored (RFC 9113 §4.1).
                let more = if choices.chance(32) {
                    flag::PADDED | flag::PRIORITY
                } else {
                    0
                };
                self.frame(kind::CONTINUATION, end | more, stream, fragment);
                continue;
            }
            let mut flags = end;
            let mut payload = Vec::new();
            let mut padding = Vec::new();
            if choices.chance(48) {
                flags |= flag::PADDED;
                padding = choices.some_octets(255);
                payload.push(padding.len() as u8);
            }
            if choices.chance(48) {
                flags |= flag::PRIORITY;
                payload.extend((0..5).map(|_| choices.octet()));
            }
            if choices.chance(64) {
                flags |= flag::END_STREAM;
            }
            payload.extend(fragment);
            payload.extend(padding);
            self.frame(kind::HEADERS, flags, stream, &payload);
        }
    }

    /// A frame that says nothing of requests.
    fn other(&mut self, choices: &mut Choices) {
        let stream = self.stream.max(1);
        match choices.below(9) {
            0 => {
                let n = choices.below(600);
                // Looks like anything that matters.
                let looks = [
                    &PREFACE[..],
                    b"\x00\x00\x01\x01\x05\x00\x00\x00\x01\x84",
                    PATHS[0].as_bytes(),
                    b"\0",
                ];
                let payload: Vec<u8> = choices
                    .one(&looks)
                    .iter()
                    .cycle()
                    .take(n)
                    .copied()
                    .collect();
                let flags = choices.octet() as u32 & flag::END_STREAM;
                self.frame(kind::DATA, flags, stream, &payload);
            }
            1 => {
                let mut payload = choices.some_octets(40);
                let padding = choices.octet();
                payload.insert(0, padding);
                payload.extend(vec![0; padding as usize]);
                self.frame(kind::DATA, flag::PADDED, stream, &payload);
            }
            2 => self.frame(kind::PRIORITY, 0, stream, &[0, 0, 0, 3, 15]),
            3 => self.frame(kind::RST_STREAM, 0, stream, &[0, 0, 0, 8]),
            4 => {
                let payload = [0, 4, 0, 1, 0, 0].repeat(choices.below(4));
                self.frame(kind::SETTINGS, 0, 0, &payload);
            }
            5 => self.frame(kind::PING, flag::ACK, 0, b"00000000"),
            6 => self.frame(kind::GOAWAY, 0, 0, b"\0\0\0\0\0\0\0\0why"),
            7 => {
                let on = stream * choices.below(2) as u32;
                self.frame(kind::WINDOW_UPDATE, 0, on, &[0, 0, 1, 0]);
            }
            _ => {
                // RFC 9113 §5.5: types and flags that nobody defined.
                let payload = choices.some_octets(20);
                let (kind, flags) = (10 + choices.below(246) as u32, choices.octet() as u32);
                let on = stream * choices.below(2) as u32;
                self.frame(kind, flags, on, &payload);
            }
        }
    }

    /// One frame.
    pub fn frame(&mut self, kind: u32, flags: u32, stream: u32, payload: &[u8]) {
        frame(&mut self.bytes, kind, flags, stream, payload);
    }
}

impl Block {
    fn note(&mut self, name: &[u8], value: &[u8], known: bool) {
        self.unknown |= !known;
        if name == b":path" {
            self.paths.push(value.to_vec());
            if known {
                self.known.push(value.to_vec());
            }
        }
    }
}

/// `path` with one octet more, less, or another.
pub fn near(choices: &mut Choices, mut path: Vec<u8>) -> Vec<u8> {
    let at = choices.below(path.len());
    match choices.below(3) {
        0 => path[at] ^= 1 << choices.below(8),
        1 => path.truncate(at),
        _ => path.push(choices.octet()),
    }
    path
}

/// Appends a frame.
pub fn frame(out: &mut Vec<u8>, kind: u32, flags: u32, stream: u32, payload: &[u8]) {
    let len = (payload.len() as u32).to_be_bytes();
    out.extend([len[1], len[2], len[3], kind as u8, flags as u8]);
    out.extend(stream.to_be_bytes());
    out.extend(payload);
}

/// RFC 7541 §5.1; sometimes in more octets than it needs, but never in more than anybody accepts.
fn integer(choices: &mut Choices, out: &mut Vec<u8>, pattern: u8, bits: u32, value: u32) {
    let most = (1 << bits) - 1;
    if value < most {
        out.push(pattern | value as u8);
        return;
    }
    out.push(pattern | most as u8);
    let mut rest = value - most;
    let redundant = if choices.chance(32) {
        choices.below(4)
    } else {
        0
    };
    let octets = (1..=4)
        .find(|&n| rest >> (7 * n) == 0)
        .expect("28 bits are enough");
    for left in (0..(octets + redundant).min(4)).rev() {
        out.push((rest & 0x7f) as u8 | if left > 0 { 0x80 } else { 0 });
        rest >>= 7;
    }
}

/// RFC 7541 §5.2, in one of the two spellings.
fn string(choices: &mut Choices, out: &mut Vec<u8>, text: &[u8]) {
    if choices.chance(128) {
        let mut code = vec![0; huffman::encoded_len(text)];
        let n = huffman::encode(text, &mut code).expect("it has the right length");
        integer(choices, out, 0x80, 7, n as u32);
        out.extend(&code[..n]);
    } else {
        integer(choices, out, 0, 7, text.len() as u32);
        out.extend(text);
    }
}
