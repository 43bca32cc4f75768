//! What was measured, as JSON, as Markdown and as pictures.

mod blocks;
mod goals;
mod markdown;
mod pictures;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use crate::rounds::{Mode, Sample};
use crate::scale::Point;
use crate::{profile, proxies, tap};

pub use pictures::draw;

/// All of it. Parts that were not measured are empty.
#[derive(Default, Serialize, Deserialize)]
pub struct Report {
    pub machine: Option<Machine>,
    pub samples: Vec<Sample>,
    pub tap: Option<tap::Report>,
    pub scale: Vec<Point>,
    #[serde(default)]
    pub profile: Option<profile::Report>,
}

/// On what.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Machine {
    pub kernel: String,
    pub processor: String,
    pub processors: usize,
    pub memory_bytes: u64,
    /// Of what it is compared with.
    pub versions: BTreeMap<String, String>,
    /// Fewer and shorter rounds.
    pub quick: bool,
}

impl Machine {
    /// This one.
    pub fn this(quick: bool) -> Result<Self> {
        let field = |file: &str, name: &str| {
            let text = std::fs::read_to_string(file).with_context(|| file.to_owned())?;
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            let value = line.and_then(|line| line.split_once(':'));
            Ok::<_, anyhow::Error>(value.map_or("", |(_, value)| value.trim()).to_owned())
        };
        let memory = field("/proc/meminfo", "MemTotal")?;
        let kib: u64 = memory
            .trim_end_matches(" kB")
            .parse()
            .context("/proc/meminfo")?;
        Ok(Self {
            kernel: rustix::system::uname()
                .release()
                .to_string_lossy()
                .into_owned(),
            processor: field("/proc/cpuinfo", "model name")?,
            processors: std::thread::available_parallelism()?.get(),
            memory_bytes: kib * 1024,
            versions: proxies::versions(),
            quick,
        })
    }
}

impl Report {
    /// What an earlier run wrote.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        serde_json::from_str(&text)
            .with_context(|| format!("{}: not written by this version", path.display()))
    }

    /// Puts what a later run has measured in the place of the same here.
    pub fn update(&mut self, later: Self) {
        let measured: BTreeSet<_> = later
            .samples
            .iter()
            .flat_map(|sample| sample.with.keys().map(|metric| (sample.mode, *metric)))
            .collect();
        for sample in &mut self.samples {
            let mode = sample.mode;
            sample
                .with
                .retain(|metric, _| !measured.contains(&(mode, *metric)));
        }
        self.samples.retain(|sample| !sample.with.is_empty());
        self.samples.extend(later.samples);
        if !later.scale.is_empty() {
            self.scale = later.scale;
        }
        self.tap = later.tap.or(self.tap.take());
        self.profile = later.profile.or(self.profile.take());
        self.machine = later.machine.or(self.machine.take());
    }

    /// Writes it as JSON.
    pub fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)?;
        std::fs::write(path, text + "\n").with_context(|| path.display().to_string())
    }

    /// Writes it as Markdown: into the marked places of a file, or as a file of its own.
    pub fn write_markdown(&self, path: &Path) -> Result<()> {
        let sections = markdown::sections(self);
        let context = || path.display().to_string();
        let text = if path.exists() {
            let old = std::fs::read_to_string(path).with_context(context)?;
            blocks::fill(&old, &sections).with_context(context)?
        } else {
            markdown::alone(&sections)
        };
        std::fs::write(path, text).with_context(context)
    }

    /// For a terminal.
    pub fn show(&self) {
        for section in markdown::sections(self) {
            if !section.text.is_empty() && section.name != "tap" && section.name != "scale" {
                println!("{}\n\n{}", section.title, section.text);
            }
        }
        if let Some(report) = &self.tap {
            tap::show(report);
        }
        if !self.scale.is_empty() {
            crate::scale::show(&self.scale);
        }
    }

    /// The modes that were measured, in their order.
    fn modes(&self) -> Vec<Mode> {
        let modes: BTreeSet<_> = self.samples.iter().map(|sample| sample.mode).collect();
        modes.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rounds::Metric;
    use crate::rounds::metric::Measures;

    fn sample(mode: Mode, metric: Metric, value: f64) -> Sample {
        Sample {
            round: 0,
            mode,
            before: Measures::new(),
            with: Measures::from([(metric, value)]),
            after: Measures::new(),
            resident: None,
            programs: BTreeMap::new(),
        }
    }

    #[test]
    fn a_later_run_replaces_what_it_has_measured() {
        let mut report = Report {
            samples: vec![
                sample(Mode::Audit, Metric::ReadRate, 1.0),
                sample(Mode::Audit, Metric::PendingP50, 2.0),
                sample(Mode::Gate, Metric::ReadRate, 3.0),
            ],
            ..Report::default()
        };
        report.update(Report {
            samples: vec![sample(Mode::Audit, Metric::ReadRate, 4.0)],
            ..Report::default()
        });
        let values: Vec<_> = report
            .samples
            .iter()
            .flat_map(|sample| sample.with.values().copied())
            .collect();
        assert_eq!(values, [2.0, 3.0, 4.0]);
        assert_eq!(report.modes(), [Mode::Audit, Mode::Gate]);
    }

    #[test]
    fn a_report_survives_its_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("report.json");
        let report = Report {
            machine: Some(Machine::this(true).unwrap()),
            samples: vec![sample(Mode::Gate, Metric::RejectedRate, 1.5)],
            ..Report::default()
        };
        report.write(&path).unwrap();
        let read = Report::read(&path).unwrap();
        assert_eq!(read.samples[0].with, report.samples[0].with);
        assert!(read.machine.unwrap().quick);
    }
}
