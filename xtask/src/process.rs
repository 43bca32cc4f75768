//! Running other programs: quietly, with their output kept, or in full view.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};

use anyhow::{Context as _, Result, anyhow, bail};

/// How much of a failed command's log is shown.
const TAIL_LINES: usize = 40;

/// `command` as one would type it: the variables it sets, the program, its arguments.
pub fn describe(command: &Command) -> String {
    let variables = command.get_envs().filter_map(|(name, value)| {
        value.map(|value| format!("{}={}", name.display(), quote(&value.to_string_lossy())))
    });
    let words = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| quote(&word.to_string_lossy()));
    variables.chain(words).collect::<Vec<_>>().join(" ")
}

/// `word`, quoted for a shell if it needs to be.
fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=+,./:@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// What `command` prints; an error tells what it said on its way out.
pub fn stdout(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| cannot_start(command))?;
    if !output.status.success() {
        bail!(
            "{} ended with {}: {}",
            describe(command),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    let text = String::from_utf8(output.stdout)
        .with_context(|| format!("what {} prints", describe(command)))?;
    Ok(text.trim().to_owned())
}

/// What `command` prints, or nothing if it isn't there or fails: for finding out what a machine has.
pub fn probe(command: &mut Command) -> Option<String> {
    stdout(command).ok()
}

/// The value of a `name: value` line, the form in which `rustc -vV` answers.
pub fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .map(str::trim)
}

/// Runs `command` with its output in full view.
pub fn show(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| cannot_start(command))?;
    succeeded(command, status)
}

/// Runs `command` in full view, and also hands each line of its standard output to `on_line`.
pub fn show_and_read(command: &mut Command, mut on_line: impl FnMut(&str)) -> Result<()> {
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| cannot_start(command))?;
    let output = child.stdout.take().context("the child has no output")?;
    let mut screen = io::stdout().lock();
    for_each_line(output, |line| {
        screen.write_all(line)?;
        screen.flush()?;
        on_line(&String::from_utf8_lossy(line));
        Ok(())
    })
    .with_context(|| format!("reading what {} prints", describe(command)))?;
    let status = child.wait().with_context(|| describe(command))?;
    succeeded(command, status)
}

/// Runs `command` with its output appended to the file `log`, and hands each line to `on_line` as it comes.
///
/// If it fails, the end of the log is printed.
pub fn log(command: &mut Command, log: &Path, mut on_line: impl FnMut(&str)) -> Result<()> {
    let mut file = File::options()
        .create(true)
        .append(true)
        .open(log)
        .with_context(|| log.display().to_string())?;
    writeln!(file, "$ {}", describe(command)).with_context(|| log.display().to_string())?;
    // One pipe for both, so that the order of the lines is kept.
    let (reader, writer) = io::pipe().context("pipe")?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(writer.try_clone().context("pipe")?)
        .stderr(writer)
        .spawn()
        .with_context(|| cannot_start(command))?;
    // The command holds the pipe's other ends, which must close for the reading to end.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut recent = Recent::default();
    for_each_line(reader, |line| {
        file.write_all(line)?;
        let line = String::from_utf8_lossy(line);
        let line = line.trim_end();
        recent.push(line);
        on_line(line);
        Ok(())
    })
    .with_context(|| format!("keeping what {} prints", describe(command)))?;
    let status = child.wait().with_context(|| describe(command))?;
    succeeded(command, status).map_err(|error| {
        anyhow!(
            "{error}\n{}\n(all of it: {})",
            recent.indented(),
            log.display()
        )
    })
}

/// The last lines of an output.
#[derive(Default)]
struct Recent(std::collections::VecDeque<String>);

impl Recent {
    fn push(&mut self, line: &str) {
        if self.0.len() == TAIL_LINES {
            self.0.pop_front();
        }
        self.0.push_back(line.to_owned());
    }

    fn indented(&self) -> String {
        let lines: Vec<_> = self.0.iter().map(|line| format!("    {line}")).collect();
        lines.join("\n")
    }
}

/// Calls `handle` with each line of `input`, its end included.
fn for_each_line(
    input: impl io::Read,
    mut handle: impl FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let mut input = BufReader::new(input);
    let mut line = Vec::new();
    while input.read_until(b'\n', &mut line)? != 0 {
        handle(&line)?;
        line.clear();
    }
    Ok(())
}

fn cannot_start(command: &Command) -> String {
    format!("cannot start {}", describe(command))
}

fn succeeded(command: &Command, status: ExitStatus) -> Result<()> {
    if status.success() {
        Ok(())
    } else {
        Err(anyhow!("{} ended with {status}", describe(command)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_described_as_one_would_type_it() {
        let mut command = Command::new("cargo");
        command
            .args(["build", "--config", r#"a=["b"]"#])
            .env("RUSTC", "/usr/bin/rustc")
            .env_remove("RUSTFLAGS");
        assert_eq!(
            describe(&command),
            r#"RUSTC=/usr/bin/rustc cargo build --config 'a=["b"]'"#
        );
    }

    #[test]
    fn a_quote_in_a_word_survives_the_shell() {
        assert_eq!(quote("it's"), r"'it'\''s'");
        assert_eq!(quote(""), "''");
    }

    #[test]
    fn a_field_is_found_by_its_whole_name() {
        let text = "host: x86_64-unknown-linux-gnu\nLLVM version: 22.1.2";
        assert_eq!(field(text, "LLVM version"), Some("22.1.2"));
        assert_eq!(field(text, "LLVM"), None);
    }

    #[test]
    fn a_failure_shows_the_end_of_the_log() -> Result<()> {
        let path = std::env::temp_dir().join(format!("xtask-log-{}", std::process::id()));
        let mut seen = Vec::new();
        let result = log(
            Command::new("sh").args(["-c", "echo one; echo two >&2; exit 3"]),
            &path,
            |line| seen.push(line.to_owned()),
        );
        let kept = std::fs::read_to_string(&path)?;
        std::fs::remove_file(&path)?;
        assert_eq!(seen, ["one", "two"]);
        assert!(kept.ends_with("one\ntwo\n"), "{kept}");
        let error = result.expect_err("it exits 3").to_string();
        assert!(
            error.contains("exit status: 3") && error.contains("    two"),
            "{error}"
        );
        Ok(())
    }
}
