//! What was aimed at, beside what was measured.

use super::Report;
use crate::rounds::{Metric, Mode, Part, ratios, ratios_to};
use crate::scale::{Axis, Quantity};
use crate::stats::Spread;
use crate::tap::Kind;

/// One aim.
pub struct Goal {
    pub what: &'static str,
    pub bound: Bound,
    pub unit: &'static str,
    /// `None`: it was not measured in this run.
    pub measured: Option<Spread>,
}

/// On which side of a number it lies.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

impl Bound {
    /// Whether a number keeps it.
    pub fn holds(self, value: f64) -> bool {
        match self {
            Self::AtLeast(least) => value >= least,
            Self::AtMost(most) => value <= most,
        }
    }
}

impl Goal {
    /// `met` or `missed`, by the median.
    pub fn verdict(&self) -> &'static str {
        match &self.measured {
            None => "not measured",
            Some(spread) if self.bound.holds(spread.median) => "met",
            Some(_) => "**missed**",
        }
    }
}

/// All of them.
pub fn goals(report: &Report) -> Vec<Goal> {
    use Bound::{AtLeast, AtMost};
    let of = |mode, metric| ratios(&report.samples, mode, metric);
    let behind = |metric| ratios_to(&report.samples, Mode::Gate, Mode::Empty, metric);
    let ratio = |what, bound, measured| Goal {
        what,
        bound,
        unit: "",
        measured,
    };
    let tax = |kind| {
        let taxes = report.tap.iter().flat_map(|tap| &tap.taxes);
        let mut of_kind = taxes.filter(move |tax| tax.kind == kind && !tax.watched);
        of_kind.next().map(|tax| tax.above_empty_ns)
    };
    let large = report.scale.iter().filter(|point| point.axis == Axis::Pods);
    let large = large.max_by(|a, b| a.x.total_cmp(&b.x));
    vec![
        ratio(
            "Read throughput at saturation, audit, of bare",
            AtLeast(0.99),
            of(Mode::Audit, Metric::ReadRate),
        ),
        ratio(
            "the same with `--no-answers`",
            AtLeast(0.99),
            of(Mode::NoAnswers, Metric::ReadRate),
        ),
        ratio(
            "Read throughput at saturation, gate, of the same with an empty sk_skb program",
            AtLeast(0.98),
            behind(Metric::ReadRate),
        ),
        ratio(
            "Read at 50,000 messages/s, gate, of bare",
            AtLeast(0.98),
            of(Mode::Gate, Metric::PacedRate),
        ),
        ratio(
            "Pending p50, admitted, audit, of bare",
            AtMost(1.03),
            of(Mode::Audit, Metric::PendingP50),
        ),
        ratio(
            "Rejected calls a second, gate, of bare admitted ones",
            AtLeast(0.75),
            of(Mode::Gate, Metric::RejectedRate),
        ),
        ratio(
            "the same with Read at saturation beside both",
            AtLeast(0.75),
            of(Mode::Gate, Metric::BusyRejectedRate),
        ),
        ratio(
            "CPU time of the whole system a Read message, audit, of bare",
            AtMost(1.02),
            of(Mode::Audit, Metric::ReadCpu(Part::Whole)),
        ),
        Goal {
            what: "Agent's resident memory, 250 pods and 2,000 connections",
            bound: AtMost(20.0),
            unit: " MiB",
            measured: large.and_then(|point| Spread::of(vec![point.of(Quantity::Resident)])),
        },
        Goal {
            what: "`write` of an unwatched process: above empty programs on the same tracepoints",
            bound: AtMost(20.0),
            unit: " ns",
            measured: tax(Kind::Null),
        },
        Goal {
            what: "`read` of an unwatched process: the same",
            bound: AtMost(20.0),
            unit: " ns",
            measured: tax(Kind::Zero),
        },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_decides() {
        let goal = |bound, numbers: &[f64]| Goal {
            what: "",
            bound,
            unit: "",
            measured: Spread::of(numbers.to_vec()),
        };
        let numbers = [0.5, 0.99, 1.0];
        assert_eq!(goal(Bound::AtLeast(0.99), &numbers).verdict(), "met");
        assert_eq!(goal(Bound::AtLeast(1.0), &numbers).verdict(), "**missed**");
        assert_eq!(goal(Bound::AtMost(0.99), &numbers).verdict(), "met");
        assert_eq!(goal(Bound::AtMost(0.98), &numbers).verdict(), "**missed**");
        assert_eq!(goal(Bound::AtMost(1.0), &[]).verdict(), "not measured");
    }

    #[test]
    fn nothing_measured_meets_nothing() {
        let goals = goals(&Report::default());
        assert!(goals.iter().all(|goal| goal.verdict() == "not measured"));
    }
}
