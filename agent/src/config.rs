//! The configuration file: read, checked as a whole, and every mistake named with its line and its key.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use agent_common::h2::paths::{self, MAX_LEN, MAX_PATHS, PathError};
use clap::ValueEnum as _;
use globset::{Glob, GlobMatcher};
use toml::Spanned;
use toml::de::{DeArray, DeString, DeTable, DeValue};

use crate::model::{Answer, Mode};

/// What a file says. What it doesn't say is `None`.
#[derive(Debug, Default)]
pub struct File {
    /// `mode`.
    pub mode: Option<Placed<Mode>>,
    /// `allowed_replicas`; contains 0.
    pub allowed_replicas: Option<BTreeSet<u32>>,
    /// `methods`: 1 to [`MAX_PATHS`] paths that can be watched.
    pub methods: Option<Vec<Placed<String>>>,
    /// `[[rule]]`, in the order of the file.
    pub rules: Vec<FileRule>,
}

/// One `[[rule]]`.
#[derive(Debug)]
pub struct FileRule {
    /// `namespace`, everything if absent.
    pub namespace: GlobMatcher,
    /// `workload`, everything if absent.
    pub workload: GlobMatcher,
    /// `mode`.
    pub mode: Placed<Mode>,
    /// `answer`, if the rule says so.
    pub answer: Option<Answer>,
}

/// A value and where it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed<T> {
    /// The value.
    pub value: T,
    /// Where it is written.
    pub place: Place,
}

/// A place in a configuration file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub file: PathBuf,
    /// The line, counted from 1.
    pub line: usize,
    /// The key (`rule[0].mode`); empty where the text isn't TOML.
    pub key: String,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file.display(), self.line)?;
        if !self.key.is_empty() {
            write!(f, ": {}", OneLine(&self.key))?;
        }
        Ok(())
    }
}

/// Text of somebody else's, in a message that is one line on a terminal: what controls that is escaped.
struct OneLine<T>(T);

impl<T: fmt::Display> fmt::Display for OneLine<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.to_string().chars() {
            if c.is_control() {
                write!(f, "{}", c.escape_default())?;
            } else {
                write!(f, "{c}")?;
            }
        }
        Ok(())
    }
}

/// Why a configuration file can't be followed.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It can't be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// There are mistakes in it, at least one.
    #[error("{}", Lines(.0))]
    Mistakes(Vec<Mistake>),
}

/// One mistake.
#[derive(Debug, thiserror::Error)]
#[error("{place}: {}", OneLine(.fault))]
pub struct Mistake {
    /// Where.
    pub place: Place,
    /// What.
    pub fault: Fault,
}

/// What can be wrong.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The text isn't TOML.
    #[error("{0}")]
    Syntax(String),
    /// No such key.
    #[error("unknown key; known here: {}", .0.join(", "))]
    UnknownKey(&'static [&'static str]),
    /// A key that must be there.
    #[error("missing")]
    Missing,
    /// A value of another type.
    #[error("expected {wanted}, found {found}")]
    Type {
        /// What belongs here.
        wanted: &'static str,
        /// What is here.
        found: &'static str,
    },
    /// Not one of the values that there are.
    #[error("{found:?} is none of {}", .known.join(", "))]
    Value {
        /// What is here.
        found: String,
        /// What there is.
        known: &'static [&'static str],
    },
    /// Not the number of a replica.
    #[error("{0} is no replica's number: those are 0 to {max}", max = u32::MAX)]
    Replica(String),
    /// Replica 0 is not allowed.
    #[error("must contain 0: Numaflow scales by what replica 0 is answered")]
    NoReplicaZero,
    /// No method.
    #[error("names no method, so nothing would be watched")]
    NoMethod,
    /// A method that can't be watched.
    #[error("{method:?} {}", path_error(*.error))]
    Method {
        /// As it is written.
        method: String,
        /// Why not.
        error: PathError,
    },
    /// An empty glob.
    #[error("an empty glob matches nothing; \"*\" matches everything")]
    EmptyGlob,
    /// A glob that isn't one.
    #[error("bad glob: {0}")]
    Glob(globset::Error),
}

struct Lines<'a>(&'a [Mistake]);

impl fmt::Display for Lines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, mistake) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            mistake.fmt(f)?;
        }
        Ok(())
    }
}

fn path_error(error: PathError) -> String {
    match error {
        PathError::TooMany => format!("is one method too many: at most {MAX_PATHS} are watched"),
        PathError::TooLong => format!("is too long: at most {MAX_LEN} octets"),
        PathError::NotAMethod => {
            "is no path of a gRPC method: /package.Service/Method, in letters, digits, _ and ."
                .to_owned()
        }
        PathError::Twice => "is named twice".to_owned(),
    }
}

const KEYS: &[&str] = &["mode", "allowed_replicas", "methods", "rule"];
const RULE_KEYS: &[&str] = &["namespace", "workload", "mode", "answer"];
const MODES: &[&str] = &["\"off\"", "\"audit\"", "\"enforce\""];
const ANSWERS: &[&str] = &["\"unimplemented\"", "\"quiet\""];

/// Reads and checks a file.
pub fn read(path: &Path) -> Result<File, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
        path: path.to_owned(),
        source,
    })?;
    parse(path, &text)
}

/// Checks the text of a file; `path` is for messages.
pub fn parse(path: &Path, text: &str) -> Result<File, ConfigError> {
    let mut reader = Reader {
        path,
        text,
        mistakes: Vec::new(),
    };
    let mut file = File::default();
    match DeTable::parse(text) {
        Ok(table) => reader.file(table.get_ref(), &mut file),
        Err(error) => {
            let span = error.span().unwrap_or(0..0);
            reader.mistake(span, "", Fault::Syntax(error.message().to_owned()));
        }
    }
    if reader.mistakes.is_empty() {
        return Ok(file);
    }
    reader.mistakes.sort_by_key(|mistake| mistake.place.line);
    Err(ConfigError::Mistakes(reader.mistakes))
}

struct Reader<'a> {
    path: &'a Path,
    text: &'a str,
    mistakes: Vec<Mistake>,
}

type Value<'i> = Spanned<DeValue<'i>>;

impl Reader<'_> {
    fn place(&self, span: Range<usize>, key: &str) -> Place {
        let before = self.text.as_bytes().get(..span.start);
        Place {
            file: self.path.to_owned(),
            line: 1 + before.map_or(0, |text| text.iter().filter(|&&b| b == b'\n').count()),
            key: key.to_owned(),
        }
    }

    fn mistake(&mut self, span: Range<usize>, key: &str, fault: Fault) {
        let place = self.place(span, key);
        self.mistakes.push(Mistake { place, fault });
    }

    fn file(&mut self, table: &DeTable<'_>, file: &mut File) {
        for (name, value) in table {
            let key = name.get_ref().as_ref();
            match key {
                "mode" => file.mode = self.mode(key, value),
                "allowed_replicas" => file.allowed_replicas = self.replicas(key, value),
                "methods" => file.methods = self.methods(key, value),
                "rule" => file.rules = self.rules(key, value),
                _ => self.unknown(key, name, KEYS),
            }
        }
    }

    fn unknown(&mut self, key: &str, name: &Spanned<DeString<'_>>, known: &'static [&'static str]) {
        self.mistake(name.span(), key, Fault::UnknownKey(known));
    }

    fn wrong_type(&mut self, key: &str, value: &Value<'_>, wanted: &'static str) {
        let found = value.get_ref().type_str();
        self.mistake(value.span(), key, Fault::Type { wanted, found });
    }

    fn string<'v>(&mut self, key: &str, value: &'v Value<'_>) -> Option<&'v str> {
        let text = value.get_ref().as_str();
        if text.is_none() {
            self.wrong_type(key, value, "a string");
        }
        text
    }

    fn array<'v, 'i>(
        &mut self,
        key: &str,
        value: &'v Value<'i>,
        wanted: &'static str,
    ) -> Option<&'v DeArray<'i>> {
        let array = value.get_ref().as_array();
        if array.is_none() {
            self.wrong_type(key, value, wanted);
        }
        array
    }

    fn mode(&mut self, key: &str, value: &Value<'_>) -> Option<Placed<Mode>> {
        let text = self.string(key, value)?;
        match Mode::from_str(text, false) {
            Ok(mode) => Some(Placed {
                value: mode,
                place: self.place(value.span(), key),
            }),
            Err(_) => {
                let found = text.to_owned();
                self.mistake(
                    value.span(),
                    key,
                    Fault::Value {
                        found,
                        known: MODES,
                    },
                );
                None
            }
        }
    }

    fn replicas(&mut self, key: &str, value: &Value<'_>) -> Option<BTreeSet<u32>> {
        let array = self.array(key, value, "an array of numbers")?;
        let before = self.mistakes.len();
        let mut replicas = BTreeSet::new();
        for (i, item) in array.iter().enumerate() {
            let key = format!("{key}[{i}]");
            let Some(integer) = item.get_ref().as_integer() else {
                self.wrong_type(&key, item, "a number");
                continue;
            };
            match u32::from_str_radix(integer.as_str(), integer.radix()) {
                Ok(number) => drop(replicas.insert(number)),
                Err(_) => {
                    let found = integer.to_string();
                    self.mistake(item.span(), &key, Fault::Replica(found));
                }
            }
        }
        if self.mistakes.len() == before && !replicas.contains(&0) {
            self.mistake(value.span(), key, Fault::NoReplicaZero);
        }
        Some(replicas)
    }

    fn methods(&mut self, key: &str, value: &Value<'_>) -> Option<Vec<Placed<String>>> {
        let array = self.array(key, value, "an array of strings")?;
        let mut methods: Vec<Placed<String>> = Vec::new();
        for (i, item) in array.iter().enumerate() {
            let key = format!("{key}[{i}]");
            let Some(method) = self.string(&key, item) else {
                continue;
            };
            let error = if methods.len() >= MAX_PATHS {
                Some(PathError::TooMany)
            } else if methods.iter().any(|other| other.value == method) {
                Some(PathError::Twice)
            } else {
                paths::check(method).err()
            };
            let method = method.to_owned();
            match error {
                None => methods.push(Placed {
                    value: method,
                    place: self.place(item.span(), &key),
                }),
                Some(error) => self.mistake(item.span(), &key, Fault::Method { method, error }),
            }
        }
        if array.is_empty() {
            self.mistake(value.span(), key, Fault::NoMethod);
        }
        Some(methods)
    }

    fn rules(&mut self, key: &str, value: &Value<'_>) -> Vec<FileRule> {
        const WANTED: &str = "tables, each written [[rule]]";
        let Some(array) = self.array(key, value, WANTED) else {
            return Vec::new();
        };
        let mut rules = Vec::new();
        for (i, item) in array.iter().enumerate() {
            let key = format!("{key}[{i}]");
            match item.get_ref().as_table() {
                Some(table) => rules.extend(self.rule(&key, item.span(), table)),
                None => self.wrong_type(&key, item, WANTED),
            }
        }
        rules
    }

    fn rule(&mut self, prefix: &str, span: Range<usize>, table: &DeTable<'_>) -> Option<FileRule> {
        let before = self.mistakes.len();
        let mut namespace = None;
        let mut workload = None;
        let mut mode = None;
        let mut answer = None;
        let mut has_mode = false;
        for (name, value) in table {
            let key = format!("{prefix}.{}", name.get_ref());
            match name.get_ref().as_ref() {
                "namespace" => namespace = self.glob(&key, value),
                "workload" => workload = self.glob(&key, value),
                "mode" => {
                    has_mode = true;
                    mode = self.mode(&key, value);
                }
                "answer" => answer = self.answer(&key, value),
                _ => self.unknown(&key, name, RULE_KEYS),
            }
        }
        if !has_mode {
            self.mistake(span, &format!("{prefix}.mode"), Fault::Missing);
        }
        if self.mistakes.len() > before {
            return None;
        }
        let everything = || Glob::new("*").ok().map(|glob| glob.compile_matcher());
        Some(FileRule {
            namespace: namespace.or_else(everything)?,
            workload: workload.or_else(everything)?,
            mode: mode?,
            answer,
        })
    }

    fn glob(&mut self, key: &str, value: &Value<'_>) -> Option<GlobMatcher> {
        let text = self.string(key, value)?;
        let fault = match Glob::new(text) {
            _ if text.is_empty() => Fault::EmptyGlob,
            Ok(glob) => return Some(glob.compile_matcher()),
            Err(error) => Fault::Glob(error),
        };
        self.mistake(value.span(), key, fault);
        None
    }

    fn answer(&mut self, key: &str, value: &Value<'_>) -> Option<Answer> {
        let text = self.string(key, value)?;
        let found = text.to_owned();
        let fault = match text {
            "unimplemented" => return Some(Answer::Unimplemented),
            "quiet" => return Some(Answer::Quiet),
            _ => Fault::Value {
                found,
                known: ANSWERS,
            },
        };
        self.mistake(value.span(), key, fault);
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FULL: &str = include_str!("../testdata/full.toml");

    fn read(text: &str) -> Result<File, ConfigError> {
        parse(Path::new("p.toml"), text)
    }

    #[test]
    fn a_message_is_one_line() {
        for text in [
            "\"a\\nb\" = 1",
            "[[rule]]\nmode = \"off\"\nworkload = \"[\\n\\u001b[2J\"",
            "a = \"\n",
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(!error.contains(char::is_control), "{error:?}");
        }
    }

    #[test]
    fn all_of_it() {
        let file = read(FULL).unwrap();
        assert_eq!(file.mode.unwrap().value, Mode::Audit);
        assert_eq!(file.allowed_replicas, Some(BTreeSet::from([0, 2, 10])));
        let methods = file.methods.unwrap();
        assert_eq!(methods[0].value, "/source.v1.Source/PendingFn");
        assert_eq!(methods[1].value, "/other.Thing/Do_it");
        assert_eq!(methods[1].place.to_string(), "p.toml:4: methods[1]");
        let [first, second] = &file.rules[..] else {
            panic!("two rules")
        };
        assert!(first.namespace.is_match("payments-eu"));
        assert!(!first.namespace.is_match("payroll"));
        assert_eq!(first.mode.value, Mode::Off);
        assert_eq!(first.answer, Some(Answer::Unimplemented));
        assert_eq!((second.mode.value, second.answer), (Mode::Enforce, None));
        assert!(second.namespace.is_match("any") && second.workload.is_match("thing"));
        assert_eq!(second.mode.place.to_string(), "p.toml:13: rule[1].mode");
    }

    #[test]
    fn an_empty_file_says_nothing() {
        let file = read("# nothing\n").unwrap();
        assert!(file.mode.is_none() && file.methods.is_none() && file.rules.is_empty());
        assert!(file.allowed_replicas.is_none());
    }

    #[test]
    fn mistakes_are_named_with_line_and_key() {
        let nine: Vec<String> = (0..9).map(|i| format!("\"/a.B/C{i}\"")).collect();
        let nine = format!("methods = [{}]", nine.join(", "));
        let long = format!("methods = [\"/a.B/{}\"]", "c".repeat(92));
        for (text, start, contains) in [
            // Syntax.
            ("mode = ", "p.toml:1: ", ""),
            ("mode = audit", "p.toml:1: ", ""),
            ("\n\nmode audit", "p.toml:3: ", ""),
            (
                "mode = \"audit\"\nmode = \"off\"",
                "p.toml:2: ",
                "duplicate key",
            ),
            ("[[rule]\n", "p.toml:1: ", ""),
            ("mode = \"audit", "p.toml:1: ", ""),
            ("= 1", "p.toml:1: ", ""),
            // Unknown keys.
            (
                "\nmoed = \"audit\"",
                "p.toml:2: moed: unknown key",
                "mode, allowed_replicas",
            ),
            (
                "answer = \"unimplemented\"",
                "p.toml:1: answer: unknown key",
                "",
            ),
            (
                "mode.x = 1",
                "p.toml:1: mode: expected a string, found table",
                "",
            ),
            ("[server]\nport = 1", "p.toml:1: server: unknown key", ""),
            (
                "[[rule]]\nmode = \"off\"\nworkloads = \"x\"",
                "p.toml:3: rule[0].workloads: unknown key",
                "workload, mode",
            ),
            (
                "[[rule]]\nmode = \"off\"\n[[rule]]\nmode = \"off\"\n[rule.more]\n",
                "p.toml:5: rule[1].more: unknown key",
                "",
            ),
            // Modes.
            (
                "mode = \"loud\"",
                "p.toml:1: mode: \"loud\" is none of",
                "audit",
            ),
            (
                "mode = \"Audit\"",
                "p.toml:1: mode: \"Audit\" is none of",
                "",
            ),
            ("mode = \"\"", "p.toml:1: mode: \"\" is none of", ""),
            (
                "mode = 1",
                "p.toml:1: mode: expected a string, found integer",
                "",
            ),
            (
                "mode = [\"audit\"]",
                "p.toml:1: mode: expected a string, found array",
                "",
            ),
            // Replicas.
            (
                "allowed_replicas = 0",
                "p.toml:1: allowed_replicas: expected an array",
                "",
            ),
            (
                "allowed_replicas = []",
                "p.toml:1: allowed_replicas: must contain 0",
                "",
            ),
            (
                "allowed_replicas = [1]",
                "p.toml:1: allowed_replicas: must contain 0",
                "",
            ),
            (
                "allowed_replicas = [0,\n-1]",
                "p.toml:2: allowed_replicas[1]: -1 is no replica",
                "",
            ),
            (
                "allowed_replicas = [4294967296]",
                "p.toml:1: allowed_replicas[0]: 4294967296 is no replica",
                "",
            ),
            (
                "allowed_replicas = [0.0]",
                "p.toml:1: allowed_replicas[0]: expected a number, found float",
                "",
            ),
            (
                "allowed_replicas = [\"0\"]",
                "p.toml:1: allowed_replicas[0]: expected a number, found string",
                "",
            ),
            // Methods.
            (
                "methods = \"/a.B/C\"",
                "p.toml:1: methods: expected an array",
                "",
            ),
            ("methods = []", "p.toml:1: methods: names no method", ""),
            (
                "methods = [1]",
                "p.toml:1: methods[0]: expected a string",
                "",
            ),
            (
                "methods = [\n\"/a.B/C\",\n\"\"]",
                "p.toml:3: methods[1]: \"\" is no path",
                "",
            ),
            (
                "methods = [\"a.B/C\"]",
                "p.toml:1: methods[0]: \"a.B/C\" is no path",
                "/package.Service/Method",
            ),
            (
                "methods = [\"/a.B/C/\"]",
                "p.toml:1: methods[0]: ",
                "is no path",
            ),
            (
                "methods = [\"/a.B/C D\"]",
                "p.toml:1: methods[0]: ",
                "is no path",
            ),
            (
                "methods = [\"/a.B/C\\n\"]",
                "p.toml:1: methods[0]: ",
                "is no path",
            ),
            (
                "methods = [\"/a.B/C\", \"/a.B/C\"]",
                "p.toml:1: methods[1]: ",
                "named twice",
            ),
            (&nine, "p.toml:1: methods[8]: ", "at most 8"),
            (&long, "p.toml:1: methods[0]: ", "at most 96 octets"),
            // Rules.
            ("rule = 1", "p.toml:1: rule: expected tables", "[[rule]]"),
            (
                "[rule]\nmode = \"off\"",
                "p.toml:1: rule: expected tables",
                "",
            ),
            ("rule = [1]", "p.toml:1: rule[0]: expected tables", ""),
            (
                "\n[[rule]]\nnamespace = \"a\"",
                "p.toml:2: rule[0].mode: missing",
                "",
            ),
            (
                "[[rule]]\nmode = 1",
                "p.toml:2: rule[0].mode: expected a string",
                "",
            ),
            (
                "[[rule]]\nmode = \"off\"\nnamespace = \"a[\"",
                "p.toml:3: rule[0].namespace: bad glob",
                "a[",
            ),
            (
                "[[rule]]\nmode = \"off\"\nworkload = \"{a\"",
                "p.toml:3: rule[0].workload: bad glob",
                "{a",
            ),
            (
                "[[rule]]\nmode = \"off\"\nworkload = \"\"",
                "p.toml:3: rule[0].workload: an empty glob",
                "",
            ),
            (
                "[[rule]]\nmode = \"off\"\nworkload = 7",
                "p.toml:3: rule[0].workload: expected a string",
                "",
            ),
            (
                "[[rule]]\nmode = \"off\"\nanswer = \"loud\"",
                "p.toml:3: rule[0].answer: \"loud\" is none of \"unimplemented\", \"quiet\"",
                "",
            ),
            (
                "[[rule]]\nmode = \"off\"\nanswer = 1",
                "p.toml:3: rule[0].answer: expected a string",
                "",
            ),
        ] {
            let error = read(text).expect_err(text).to_string();
            assert!(error.starts_with(start), "{text:?}: {error}");
            assert!(error.contains(contains), "{text:?}: {error}");
            assert_eq!(error.lines().count(), 1, "{text:?}: {error}");
        }
    }

    #[test]
    fn all_mistakes_are_named_at_once_in_the_order_of_lines() {
        let error =
            read("zzz = 1\nmode = 2\n[[rule]]\nmode = \"off\"\nnamespace = \"[\"\n").unwrap_err();
        let places: Vec<String> = error
            .to_string()
            .lines()
            .map(|line| line.split(' ').take(2).collect::<Vec<_>>().join(" "))
            .collect();
        assert_eq!(
            places,
            [
                "p.toml:1: zzz:",
                "p.toml:2: mode:",
                "p.toml:5: rule[0].namespace:"
            ]
        );
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = super::read(Path::new("/nonexistent/p.toml")).unwrap_err();
        assert!(
            error.to_string().starts_with("/nonexistent/p.toml: "),
            "{error}"
        );
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "\\PC*") {
            let _ = read(&text);
        }

        #[test]
        fn nor_does_a_damaged_file(at in 0..FULL.len(), insert in "[\\PC\n\"\\[\\]=.]{0,3}") {
            let mut text = FULL.to_owned();
            text.replace_range(at..=at, &insert);
            match read(&text) {
                Ok(_) => {}
                Err(ConfigError::Mistakes(mistakes)) => {
                    prop_assert!(!mistakes.is_empty());
                    let lines = text.lines().count() + 1;
                    prop_assert!(mistakes.iter().all(|m| (1..=lines).contains(&m.place.line)));
                }
                Err(other) => panic!("{other}"),
            }
        }

        #[test]
        fn a_single_method_is_taken_as_the_tracker_takes_it(method in "[/a-zA-Z0-9_.-]{0,100}") {
            let text = format!("methods = [\"{method}\"]");
            prop_assert_eq!(read(&text).is_ok(), paths::check(&method).is_ok());
        }
    }
}
