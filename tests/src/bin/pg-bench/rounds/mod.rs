//! Modes side by side: each round has a sample of every mode.

pub mod metric;
pub mod mode;
pub mod sample;
pub mod world;

use std::time::Duration;

use anyhow::{Context as _, Result};

pub use metric::{Metric, Part};
pub use mode::Mode;
pub use sample::{Plan, Sample};

use crate::progress::Progress;
use crate::stats::Spread;

/// What is done in a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    Calls,
    Reading,
    Both,
    /// Reading at saturation, on a machine whose clock counts instructions.
    Instructions,
}

/// Rounds of our own modes, and of proxies, which differ more from bare than rounds from each other.
const ROUNDS: (usize, usize) = (11, 5);
const QUICK_ROUNDS: (usize, usize) = (2, 1);
/// Rounds where instructions are counted: nothing there is left to chance but how client and source take turns.
const COUNTED_ROUNDS: (usize, usize) = (5, 0);

/// How many rounds of our own modes and of proxies.
fn rounds(what: What, quick: bool) -> (usize, usize) {
    match (what, quick) {
        (_, true) => QUICK_ROUNDS,
        (What::Instructions, false) => COUNTED_ROUNDS,
        _ => ROUNDS,
    }
}

/// Which modes, in how many rounds.
fn schedule(modes: &[Mode], (ours, proxies): (usize, usize)) -> Vec<(usize, Mode)> {
    let mut schedule = Vec::new();
    for round in 0..ours.max(proxies) {
        let taken = modes.iter().copied().filter(|mode| match mode {
            Mode::Proxy(_) => round < proxies,
            _ => round < ours,
        });
        let mut taken: Vec<_> = taken.collect();
        // No mode always follows the same other one.
        if !taken.is_empty() {
            let by = round % taken.len();
            taken.rotate_left(by);
        }
        schedule.extend(taken.into_iter().map(|mode| (round, mode)));
    }
    schedule
}

/// How many samples [`run`] takes.
pub fn count(modes: &[Mode], what: What, quick: bool) -> u64 {
    schedule(modes, rounds(what, quick)).len() as u64
}

/// What a sample takes, in full and in a quick run.
fn plan(what: What, quick: bool) -> Plan {
    let part = if quick { 2 } else { 1 };
    let time = |wanted: bool, millis: u64| match wanted {
        true => Duration::from_millis(millis) / part,
        false => Duration::ZERO,
    };
    Plan {
        calls: time(matches!(what, What::Calls | What::Both), 400),
        reading: match what {
            // Each millisecond is a million instructions.
            What::Instructions => Duration::from_millis(200),
            _ => time(what != What::Calls, 1000),
        },
        paced: time(matches!(what, What::Reading | What::Both), 1000),
        warm_up: time(true, 200),
    }
}

/// Takes all samples. After an error those are there that had been taken.
pub async fn run(
    modes: &[Mode],
    what: What,
    quick: bool,
    bar: &Progress,
    samples: &mut Vec<Sample>,
) -> Result<()> {
    let plan = plan(what, quick);
    for (round, mode) in schedule(modes, rounds(what, quick)) {
        bar.begin(format!("round {}: {}", round + 1, mode.name()));
        let sample = Sample::take(round, mode, plan).await;
        samples.push(sample.with_context(|| format!("round {}: {}", round + 1, mode.name()))?);
        bar.done();
    }
    Ok(())
}

/// What a metric was in a mode, in all rounds.
pub fn values(samples: &[Sample], mode: Mode, metric: Metric) -> Option<Spread> {
    let of_mode = samples.iter().filter(|sample| sample.mode == mode);
    Spread::of(
        of_mode
            .filter_map(|s| s.with.get(&metric).copied())
            .collect(),
    )
}

/// The same as ratios to bare.
pub fn ratios(samples: &[Sample], mode: Mode, metric: Metric) -> Option<Spread> {
    let of_mode = samples.iter().filter(|sample| sample.mode == mode);
    Spread::of(of_mode.filter_map(|s| s.ratio(metric)).collect())
}

/// The same as ratios to another mode's in the same round.
pub fn ratios_to(samples: &[Sample], mode: Mode, other: Mode, metric: Metric) -> Option<Spread> {
    let of = |sample: &Sample| {
        let beside = samples
            .iter()
            .find(|s| s.mode == other && s.round == sample.round)?;
        Some(sample.ratio(metric)? / beside.ratio(metric)?)
    };
    let of_mode = samples.iter().filter(|sample| sample.mode == mode);
    Spread::of(of_mode.filter_map(of).collect())
}

/// What a metric was bare, in all rounds of all modes.
pub fn bare(samples: &[Sample], metric: Metric) -> Option<Spread> {
    let both = samples.iter().flat_map(|s| [&s.before, &s.after]);
    Spread::of(both.filter_map(|m| m.get(&metric).copied()).collect())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::proxies::Kind;

    fn sample(round: usize, mode: Mode, bare: f64, with: f64) -> Sample {
        let of = |value| BTreeMap::from([(Metric::ReadRate, value)]);
        Sample {
            round,
            mode,
            before: of(bare),
            with: of(with),
            after: of(bare),
            resident: None,
            programs: BTreeMap::new(),
        }
    }

    #[test]
    fn modes_are_compared_within_a_round() {
        // The machine gets slower from round to round; the ratios stay.
        let samples = [
            sample(0, Mode::Empty, 100.0, 80.0),
            sample(0, Mode::Gate, 100.0, 72.0),
            sample(1, Mode::Gate, 50.0, 36.0),
            sample(1, Mode::Empty, 50.0, 40.0),
        ];
        let gate = ratios(&samples, Mode::Gate, Metric::ReadRate).unwrap();
        assert!((gate.median - 0.72).abs() < 1e-12 && gate.rounds == 2);
        let to = ratios_to(&samples, Mode::Gate, Mode::Empty, Metric::ReadRate).unwrap();
        assert!((to.median - 0.9).abs() < 1e-12 && (to.range.1 - to.range.0).abs() < 1e-12);
        assert_eq!(bare(&samples, Metric::ReadRate).unwrap().median, 75.0);
        assert_eq!(ratios(&samples, Mode::Audit, Metric::ReadRate), None);
    }

    #[test]
    fn a_plan_has_what_is_asked_for() {
        let parts = |what| {
            let Plan {
                calls,
                reading,
                paced,
                ..
            } = plan(what, true);
            [calls, reading, paced].map(|time| !time.is_zero())
        };
        assert_eq!(parts(What::Calls), [true, false, false]);
        assert_eq!(parts(What::Reading), [false, true, true]);
        assert_eq!(parts(What::Both), [true, true, true]);
        assert_eq!(parts(What::Instructions), [false, true, false]);
    }

    #[test]
    fn every_mode_has_its_rounds_in_changing_order() {
        let modes = Mode::all();
        let schedule = schedule(&modes, rounds(What::Both, false));
        let of = |mode| schedule.iter().filter(|(_, m)| *m == mode).count();
        assert_eq!((of(Mode::Audit), of(Mode::Proxy(Kind::Envoy))), ROUNDS);
        let first = |round| schedule.iter().find(|(r, _)| *r == round).unwrap().1;
        assert_ne!(first(0), first(1));
        assert_eq!(count(&modes, What::Both, false), schedule.len() as u64);
    }
}
