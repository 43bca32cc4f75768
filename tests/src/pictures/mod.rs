//! Draws panels of the dashboard for the docs, from what Prometheus answers; and what benchmarks have measured ([`Bars`], [`Points`]).
//!
//! Panels show the same as the panels in Grafana do, and look alike; a picture of Grafana itself would need a Grafana and a browser.

mod bars;
mod canvas;
mod cells;
mod lines;
mod plain;
mod points;
mod scale;
mod terminal;

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result};

use crate::dashboard::{Kind, Unit};

pub use bars::{Bar, Bars};
pub use canvas::register_fonts;
pub use points::Points;
pub use terminal::draw as draw_terminal;

/// A panel with data.
#[derive(Debug)]
pub struct Picture {
    /// Above it.
    pub title: String,
    /// How it is drawn.
    pub kind: Kind,
    /// What the values are.
    pub unit: Unit,
    /// From when to when, as the times of the series are.
    pub range: (f64, f64),
    /// From when to when the mode was changed: it is shaded.
    pub changing: (f64, f64),
    /// What that is called.
    pub change: String,
    /// What there is to draw.
    pub series: Vec<Series>,
}

/// A line, or a line of cells.
#[derive(Clone, Debug)]
pub struct Series {
    /// What the legend calls it.
    pub name: String,
    /// Times and values.
    pub points: Vec<(f64, f64)>,
}

impl Picture {
    /// Whether there is anything but zeros to see.
    #[must_use]
    pub fn shows_something(&self) -> bool {
        let mut points = self.series.iter().flat_map(|series| &series.points);
        points.any(|(_, value)| value.is_finite() && *value != 0.0)
    }

    /// Draws it to a PNG file.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn draw(&self, path: &Path) -> Result<()> {
        match self.kind {
            Kind::Cells => cells::draw(self, self.series.clone(), path),
            Kind::HeatMap => cells::draw(self, cells::buckets(self), path),
            _ => lines::draw(self, path),
        }
        .with_context(|| format!("{}: {}", self.title, path.display()))
    }
}

/// A legend of Grafana's, `{{workload}} {{replica}}`, for one series.
#[must_use]
pub fn legend(template: &str, labels: &BTreeMap<String, String>) -> String {
    let mut name = template.to_owned();
    for (label, value) in labels {
        name = name.replace(&format!("{{{{{label}}}}}"), value);
    }
    // What is left has no value: Prometheus drops labels that are empty.
    let mut kept = String::new();
    for part in name.split("}}") {
        kept.push_str(part.split("{{").next().unwrap_or_default());
    }
    kept.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A file name for a title.
#[must_use]
pub fn slug(title: &str) -> String {
    let words = title
        .split(|c: char| !c.is_ascii_alphanumeric())
        .filter(|word| !word.is_empty())
        .map(str::to_ascii_lowercase);
    words.collect::<Vec<_>>().join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_legend_is_filled_in_as_grafana_does() {
        let labels = BTreeMap::from([
            ("workload".to_owned(), "orders".to_owned()),
            ("replica".to_owned(), "2".to_owned()),
        ]);
        assert_eq!(
            legend("{{workload}} {{vertex}} {{replica}}", &labels),
            "orders 2"
        );
        assert_eq!(legend("saved", &labels), "saved");
    }

    #[test]
    fn titles_become_file_names() {
        assert_eq!(
            slug("Saved and to be saved, per hour"),
            "saved-and-to-be-saved-per-hour"
        );
    }
}
