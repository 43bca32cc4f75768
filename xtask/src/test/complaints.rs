//! What tests said when they failed, to be said again where a reader of a long log ends.

/// Lines of one test that are kept, and characters of each.
const LINES: usize = 12;
const CHARACTERS: usize = 600;

/// What the test programs whose output was read had to say.
#[derive(Clone, Debug, Default)]
pub struct Complaints {
    lines: Vec<String>,
    /// How many more lines of the test that is being read.
    room: usize,
}

impl Complaints {
    /// Takes what `line` says, if a test that failed says it:
    /// it stands behind `---- NAME stdout ----`, before its stack and the names of all that failed.
    pub fn read(&mut self, line: &str) {
        let line = line.trim_end();
        if line.starts_with("---- ") && line.ends_with(" stdout ----") {
            self.room = LINES;
        } else if ["failures:", "stack backtrace:", "Stack backtrace:"].contains(&line) {
            self.room = 0;
        }
        if self.room > 0 && !line.is_empty() {
            self.room -= 1;
            self.lines.push(line.chars().take(CHARACTERS).collect());
        }
    }

    /// It, a line each.
    pub fn lines(&self) -> &[String] {
        &self.lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_failed_test_said() {
        let output = "running 2 tests\ntest a ... ok\ntest b ... FAILED\n\nfailures:\n\n---- b stdout ----\nError: not within 5s: it\n\nStack backtrace:\n   0: core\n\n\nfailures:\n    b\n\ntest result: FAILED. 1 passed; 1 failed\n";
        let mut complaints = Complaints::default();
        output.lines().for_each(|line| complaints.read(line));
        assert_eq!(
            complaints.lines(),
            ["---- b stdout ----", "Error: not within 5s: it"]
        );
    }

    #[test]
    fn no_more_than_fits() {
        let mut complaints = Complaints::default();
        complaints.read("---- b stdout ----");
        (0..100).for_each(|_| complaints.read(&"x".repeat(2 * CHARACTERS)));
        assert_eq!(complaints.lines().len(), LINES);
        assert_eq!(complaints.lines()[1].len(), CHARACTERS);
    }
}
