//! Random choices, taken from bytes that proptest or a fuzzer made.

/// Answers questions out of a byte string. Where that has ended, every answer is the first one.
pub struct Choices<'a> {
    bytes: &'a [u8],
}

impl<'a> Choices<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub fn octet(&mut self) -> u8 {
        match self.bytes.split_first() {
            Some((&octet, rest)) => {
                self.bytes = rest;
                octet
            }
            None => 0,
        }
    }

    /// A number below `n`, which is at most 65,536.
    pub fn below(&mut self, n: usize) -> usize {
        if n <= 256 {
            self.octet() as usize * n / 256
        } else {
            (self.octet() as usize * 256 + self.octet() as usize) * n / 65_536
        }
    }

    /// True in about `n` of 256 cases.
    pub fn chance(&mut self, n: u8) -> bool {
        self.octet() > 255 - n
    }

    pub fn one<'b, T>(&mut self, of: &'b [T]) -> &'b T {
        &of[self.below(of.len())]
    }

    /// Up to `most` octets of any value.
    pub fn some_octets(&mut self, most: usize) -> Vec<u8> {
        (0..self.below(most + 1)).map(|_| self.octet()).collect()
    }
}
