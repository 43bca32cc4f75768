//! The charts.

use std::path::Path;

use anyhow::{Context as _, Result};
use pendguard_tests::pictures::{Bar, Bars, Points, register_fonts};

use super::Report;
use crate::rounds::{Metric, Mode, Part, ratios};
use crate::scale::{Axis, Quantity, fit};

/// Draws all that was measured to PNG files in a directory.
pub fn draw(report: &Report, directory: &Path) -> Result<()> {
    const CHARTS: [(&str, &str, Metric); 4] = [
        (
            "bench-read",
            "Read at saturation, of bare: more is better",
            Metric::ReadRate,
        ),
        (
            "bench-cpu",
            "CPU time of the whole system a message read, of bare: less is better",
            Metric::ReadCpu(Part::Whole),
        ),
        (
            "bench-pending",
            "Duration of an admitted Pending call (p50), of bare: less is better",
            Metric::PendingP50,
        ),
        (
            "bench-rejected",
            "Rejected calls a second, of admitted ones in bare: more is better",
            Metric::RejectedRate,
        ),
    ];
    std::fs::create_dir_all(directory).with_context(|| directory.display().to_string())?;
    register_fonts()?;
    for (name, title, metric) in CHARTS {
        let bars = bars(report, title, metric);
        if !bars.bars.is_empty() {
            bars.draw(&directory.join(format!("{name}.png")))?;
        }
    }
    for (name, title, axis, quantity) in [
        (
            "bench-memory",
            "Agent's resident memory, MiB",
            Axis::Pods,
            Quantity::Resident,
        ),
        (
            "bench-scrape",
            "Duration of a scrape, ms",
            Axis::Pods,
            Quantity::Scrape,
        ),
    ] {
        let Some(line) = fit(&report.scale, axis, quantity) else {
            continue;
        };
        let of_axis = report.scale.iter().filter(|point| point.axis == axis);
        let picture = Points {
            title: title.to_owned(),
            caption: format!(
                "{:.2} and {:.4} more for each (r² {:.3})",
                line.intercept, line.slope, line.r2
            ),
            x: axis.name().to_owned(),
            points: of_axis.map(|point| (point.x, point.of(quantity))).collect(),
            line: (line.at(0.0), line.slope),
        };
        picture.draw(&directory.join(format!("{name}.png")))?;
    }
    Ok(())
}

fn bars(report: &Report, title: &str, metric: Metric) -> Bars {
    let bars = report.modes().into_iter().filter_map(|mode| {
        let spread = ratios(&report.samples, mode, metric)?;
        // Bare beside itself says nothing to one who looks at a picture; and what is compared for its calls makes them.
        if mode == Mode::Control || (metric == Metric::RejectedRate && !mode.rejects()) {
            return None;
        }
        let ours = matches!(mode, Mode::Audit | Mode::NoAnswers | Mode::Gate);
        Some(Bar {
            name: if ours {
                format!("Pendguard: {}", mode.name())
            } else {
                mode.name().to_owned()
            },
            value: spread.median,
            range: spread.quartiles,
            text: format!("{:.2}", spread.median),
            ours,
        })
    });
    Bars {
        title: title.to_owned(),
        caption: "Medians of interleaved rounds; whiskers: half of the rounds. tonic client and source on a Unix socket."
            .to_owned(),
        bars: bars.collect(),
        mark: 1.0,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::proxies::Kind;
    use crate::rounds::Sample;

    #[test]
    fn a_bar_for_each_mode_that_was_measured() {
        let sample = |mode, with| Sample {
            round: 0,
            mode,
            before: BTreeMap::from([(Metric::ReadRate, 2.0), (Metric::PendingRate, 2.0)]),
            with: BTreeMap::from([(Metric::ReadRate, with), (Metric::RejectedRate, with)]),
            after: BTreeMap::from([(Metric::ReadRate, 2.0), (Metric::PendingRate, 2.0)]),
            resident: None,
            programs: BTreeMap::new(),
        };
        let report = Report {
            samples: vec![
                sample(Mode::Control, 2.0),
                sample(Mode::Audit, 1.9),
                sample(Mode::Proxy(Kind::Envoy), 1.0),
            ],
            ..Report::default()
        };
        let read = bars(&report, "", Metric::ReadRate);
        let seen: Vec<_> = read
            .bars
            .iter()
            .map(|b| (b.name.as_str(), b.value, b.ours))
            .collect();
        assert_eq!(
            seen,
            [("Pendguard: audit", 0.95, true), ("Envoy", 0.5, false)]
        );
        let rejected = bars(&report, "", Metric::RejectedRate);
        assert_eq!(rejected.bars.len(), 1);
    }
}
