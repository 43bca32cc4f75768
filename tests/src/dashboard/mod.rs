//! The Grafana dashboard that is shipped, as data: `deploy/grafana/pendguard.json` is made from what is here.
//!
//! It is made rather than drawn by hand so that a panel can't be without a description, that the test of the dashboard has every
//! expression to evaluate, and that the docs' pictures ask what Grafana asks.

mod grafana;
mod panel;
mod rows;
mod variables;

use std::path::{Path, PathBuf};

pub use grafana::dashboard;
pub use panel::{Kind, Panel, Query, Row, Unit};
pub use rows::ROWS;
pub use variables::{LABELS, Label, fill_in};

/// All panels, in their order.
pub fn panels() -> impl Iterator<Item = &'static Panel> {
    ROWS.iter().flat_map(|row| row.panels)
}

/// Where the dashboard is.
#[must_use]
pub fn path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("deploy/grafana/pendguard.json")
}

/// The dashboard as it is written there.
///
/// # Errors
/// None that is known.
pub fn json() -> serde_json::Result<String> {
    let mut text = serde_json::to_string_pretty(&dashboard())?;
    text.push('\n');
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use anyhow::{Context as _, Result, ensure};
    use serde_json::Value;

    use super::*;
    use crate::promql::series;

    /// How names of metrics of workloads begin.
    const OF_WORKLOADS: [&str; 5] = [
        "workload:",
        "pendguard_calls_",
        "pendguard_call_duration_",
        "pendguard_rejections_",
        "pendguard_source_pending",
    ];

    /// With this variable the file is written anew instead.
    const UPDATE: &str = "PENDGUARD_UPDATE_DOCS";

    #[test]
    fn the_file_is_what_is_generated() -> Result<()> {
        let text = json()?;
        if std::env::var_os(UPDATE).is_some_and(|value| value == "1") {
            std::fs::write(path(), &text)?;
        }
        let file = std::fs::read_to_string(path()).with_context(|| path().display().to_string())?;
        ensure!(
            file == text,
            "{} is not what is generated: run the tests with {UPDATE}=1",
            path().display()
        );
        Ok(())
    }

    #[test]
    fn panels_say_what_they_show() {
        let mut titles = HashSet::new();
        for panel in panels() {
            assert!(titles.insert(panel.title), "{} twice", panel.title);
            let sentences = panel.description;
            assert!(sentences.len() > 60, "{}: {sentences}", panel.title);
            assert!(sentences.ends_with('.'), "{}: {sentences}", panel.title);
            assert!(!panel.queries.is_empty(), "{}", panel.title);
        }
    }

    #[test]
    fn panels_fill_the_grid_and_do_not_overlap() {
        let mut taken = HashSet::new();
        for panel in dashboard().panels {
            let place = panel.grid_pos();
            for x in place.x..place.x + place.w {
                assert!(x < 24);
                for y in place.y..place.y + place.h {
                    assert!(taken.insert((x, y)), "{x} {y} twice");
                }
            }
        }
        let height = taken.iter().map(|(_, y)| y + 1).max().unwrap_or(0);
        assert_eq!(taken.len(), 24 * usize::from(height), "a hole");
    }

    #[test]
    fn every_query_asks_the_chosen_source_for_the_chosen_workloads() -> Result<()> {
        let text = json()?;
        let all: Value = serde_json::from_str(&text)?;
        let panels = all["panels"].as_array().context("no panels")?;
        for panel in panels.iter().filter(|panel| panel["type"] != "row") {
            assert_eq!(panel["datasource"]["uid"], "${datasource}");
            for target in panel["targets"].as_array().context("no targets")? {
                assert_eq!(target["datasource"]["uid"], "${datasource}");
            }
        }
        // Metrics of workloads, as opposed to those of agents, are never shown of all at once.
        for panel in super::panels() {
            for query in panel.queries {
                let expression = query.expression();
                let of_workloads = series(&expression)
                    .iter()
                    .filter(|name| OF_WORKLOADS.iter().any(|start| name.starts_with(start)))
                    .count();
                let chosen = expression.matches("workload=~\"$workload\"").count();
                assert_eq!(of_workloads, chosen, "{}: {expression}", panel.title);
                assert!(!expression.contains('<'), "{expression}");
            }
        }
        Ok(())
    }

    #[test]
    fn nothing_is_left_of_variables_that_are_filled_in() {
        for panel in super::panels() {
            for query in panel.queries {
                let filled = fill_in(&query.expression(), "10s");
                assert!(!filled.contains('$'), "{filled}");
            }
        }
    }
}
