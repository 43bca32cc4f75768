//! Kernels on which a gate before Unix sockets is known to be unsafe.
//!
//! | bug | fixed in | what is done |
//! |---|---|---|
//! | a socket in a map holds no reference to its peer: the peer may be freed while it is used (kernel commit 8866730aed51) | 6.1.72, 6.6.5, 6.7 | no gate |
//! | a send to a socket that is just being closed may read freed memory (CVE-2026-43016) | 6.6.134, 6.12.81, 6.18.22, 6.19.12, 7.0 | it is told |
//! | programs of system calls' tracepoints are preempted, and skipped where another task has the same one running: a send passes its hold unseen | not yet | no gate |
//!
//! The numbers are those of the review of 6.1.72 and 6.6.5 on the stable list, and of the CVE's record. Other series have no
//! such fix that is known, so they count as having none: for kernels whose distribution has put it in by itself that is
//! too careful. The second bug is a race of a source that ends with a send to it; most kernels in use have it.
#![forbid(unsafe_code)]

use std::io::{BufRead, BufReader};
use std::path::Path;

use crate::host::Outcome;

/// The kernel's symbols. Their names need no privilege.
pub const SYMBOLS: &str = "/proc/kallsyms";
/// The function that runs programs of system calls' tracepoints where they may be preempted (Linux 7.1 or 7.2).
const PREEMPTED_BY: &str = "trace_call_bpf_faultable";
/// What follows for the gate.
pub const PREEMPTED: &str = "programs of system calls' tracepoints are preempted and skipped: a send may pass its hold unseen";
/// Unix stream sockets in socket maps (kernel commit 94531cfcbe79).
const FIRST: (u32, u32) = (5, 15);
/// Series that have the peer's reference, and from which release on.
const PEER_REFERENCE: [((u32, u32), u32); 2] = [((6, 1), 72), ((6, 6), 5)];
/// All after it have it.
const PEER_REFERENCE_SINCE: (u32, u32) = (6, 7);
/// The same for CVE-2026-43016.
const CLOSE_RACE: [((u32, u32), u32); 4] =
    [((6, 6), 134), ((6, 12), 81), ((6, 18), 22), ((6, 19), 12)];
const CLOSE_RACE_SINCE: (u32, u32) = (7, 0);

/// A kernel's version, as far as it tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kernel {
    series: (u32, u32),
    /// The stable release; `None` where the distribution counts by itself.
    release: Option<u32>,
    /// A distribution that takes over most of BPF under an old number.
    patched: bool,
}

impl Kernel {
    /// From `uname -r` and `uname -v`: Debian tells the stable release only in the second.
    pub fn parse(release: &str, version: &str) -> Option<Self> {
        let debian = version
            .split_once("Debian ")
            .and_then(|(_, rest)| numbers(rest));
        let ((major, minor), patch) = debian.or_else(|| numbers(release))?;
        // `6.8.0-45-generic`, `6.1.0-18-amd64`: not the stable release, but a number of the distribution's.
        let counted = debian.is_none() && patch == Some(0) && release.contains(".0-");
        Some(Self {
            series: (major, minor),
            release: if counted { None } else { patch },
            patched: release.contains(".el"),
        })
    }

    fn has(self, fixed: &[((u32, u32), u32)], since: (u32, u32)) -> Outcome {
        if self.series >= since {
            return Outcome::Supported;
        }
        if self.patched {
            return Outcome::Inconclusive;
        }
        let first = fixed.iter().find(|(series, _)| *series == self.series);
        match (first, self.release) {
            (None, _) => Outcome::NotSupported,
            (Some(_), None) => Outcome::Inconclusive,
            (Some((_, first)), Some(release)) if release >= *first => Outcome::Supported,
            _ => Outcome::NotSupported,
        }
    }

    /// Whether the gate may be used, and why not.
    pub fn gate(self) -> (Outcome, &'static str) {
        if self.series < FIRST && !self.patched {
            return (
                Outcome::NotSupported,
                "socket maps take Unix sockets since Linux 5.15",
            );
        }
        let outcome = self.has(&PEER_REFERENCE, PEER_REFERENCE_SINCE);
        let why = match outcome {
            Outcome::Supported => "",
            Outcome::Inconclusive => {
                "it is not known whether it has kernel commit 8866730aed51 (in 6.1.72, 6.6.5 and 6.7)"
            }
            Outcome::NotSupported => {
                "it lacks kernel commit 8866730aed51 (in 6.1.72, 6.6.5 and 6.7): a peer may be freed while it is used"
            }
        };
        (outcome, why)
    }

    /// Whether CVE-2026-43016 is fixed.
    pub fn close_race(self) -> Outcome {
        self.has(&CLOSE_RACE, CLOSE_RACE_SINCE)
    }
}

/// `6.1.76-1`: series 6.1, release 76.
fn numbers(text: &str) -> Option<((u32, u32), Option<u32>)> {
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let mut numbers = text[..end].split('.').map(str::parse::<u32>);
    let series = (numbers.next()?.ok()?, numbers.next()?.ok()?);
    Some((
        series,
        Some(numbers.next().and_then(Result::ok).unwrap_or(0)),
    ))
}

/// Whether programs of system calls' tracepoints are preempted, by the kernel's symbols (`/proc/kallsyms`). `Err` is the reason why that can't be known.
pub fn preempts(symbols: &Path) -> Result<bool, String> {
    let unreadable = |error| format!("{}: {error}", symbols.display());
    let file = std::fs::File::open(symbols).map_err(unreadable)?;
    for line in BufReader::new(file).lines() {
        if line.map_err(unreadable)?.split_whitespace().nth(2) == Some(PREEMPTED_BY) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Why this kernel must not have a gate; `None` where nothing is known against it.
pub fn refused() -> Option<String> {
    if preempts(Path::new(SYMBOLS)) == Ok(true) {
        return Some(PREEMPTED.to_owned());
    }
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let release = read("/proc/sys/kernel/osrelease");
    let kernel = Kernel::parse(release.trim(), &read("/proc/sys/kernel/version"))?;
    let (outcome, why) = kernel.gate();
    (outcome == Outcome::NotSupported).then(|| format!("Linux {}: {why}", release.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use Outcome::{Inconclusive, NotSupported, Supported};

    #[test]
    fn a_kernel_that_preempts_programs_is_known_by_its_symbol() {
        let symbols = tempfile::NamedTempFile::new().unwrap();
        let holds = |text: &str| {
            std::fs::write(symbols.path(), text).unwrap();
            preempts(symbols.path())
        };
        assert_eq!(holds("0000000000000000 T trace_call_bpf\n"), Ok(false));
        assert_eq!(
            holds("0000000000000000 t __trace_call_bpf_faultable\n"),
            Ok(false)
        );
        assert_eq!(
            holds("0 T trace_call_bpf\n0 T trace_call_bpf_faultable\n"),
            Ok(true)
        );
        assert!(preempts(Path::new("/nonexistent")).is_err());
    }

    #[test]
    fn the_table() {
        let debian = |of: &str| format!("#1 SMP PREEMPT_DYNAMIC Debian {of} (2026-01-01)");
        for (release, version, gate, race) in [
            (
                "5.10.0-28-amd64",
                &*debian("5.10.209-2"),
                NotSupported,
                NotSupported,
            ),
            ("5.15.148", "", NotSupported, NotSupported),
            (
                "5.15.0-91-generic",
                "#101-Ubuntu SMP",
                NotSupported,
                NotSupported,
            ),
            ("6.0.19", "", NotSupported, NotSupported),
            ("6.1.71", "", NotSupported, NotSupported),
            ("6.1.72", "", Supported, NotSupported),
            (
                "6.1.0-18-cloud-amd64",
                &*debian("6.1.76-1"),
                Supported,
                NotSupported,
            ),
            (
                "6.1.0-13-amd64",
                &*debian("6.1.55-1"),
                NotSupported,
                NotSupported,
            ),
            ("6.1.0-18-cloud-amd64", "", Inconclusive, NotSupported),
            ("6.5.13", "", NotSupported, NotSupported),
            ("6.6.4", "", NotSupported, NotSupported),
            ("6.6.5", "", Supported, NotSupported),
            ("6.6.134", "", Supported, Supported),
            (
                "6.8.0-45-generic",
                "#45-Ubuntu SMP",
                Supported,
                NotSupported,
            ),
            (
                "6.12.80+deb13-cloud-amd64",
                &*debian("6.12.81-1"),
                Supported,
                Supported,
            ),
            ("6.12.0-1-amd64", "", Supported, Inconclusive),
            ("6.18.44-fc-v595", "#1 SMP", Supported, Supported),
            ("7.2+", "", Supported, Supported),
            ("5.14.0-427.el9.x86_64", "", Inconclusive, Inconclusive),
        ] {
            let kernel = Kernel::parse(release, version).expect(release);
            assert_eq!(kernel.gate().0, gate, "{release} {version}");
            assert_eq!(kernel.close_race(), race, "{release} {version}");
            assert_eq!(kernel.gate().1.is_empty(), gate == Supported);
        }
        assert_eq!(Kernel::parse("linux", ""), None);
    }
}
