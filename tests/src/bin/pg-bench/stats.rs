//! Numbers out of many rounds: medians and how far the rounds lie apart, and lines through points.

use serde::{Deserialize, Serialize};

/// What a number was in all rounds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// Half of the rounds are below it.
    pub median: f64,
    /// A quarter of the rounds is below the first, a quarter above the second.
    pub quartiles: (f64, f64),
    /// The least of all rounds, and the most.
    pub range: (f64, f64),
    /// How many rounds.
    pub rounds: usize,
}

impl Spread {
    /// Of these numbers, in any order; `None` where there are none.
    pub fn of(mut numbers: Vec<f64>) -> Option<Self> {
        numbers.retain(|number| number.is_finite());
        numbers.sort_unstable_by(f64::total_cmp);
        let (least, most) = (*numbers.first()?, *numbers.last()?);
        Some(Self {
            median: quantile(&numbers, 0.5)?,
            quartiles: (quantile(&numbers, 0.25)?, quantile(&numbers, 0.75)?),
            range: (least, most),
            rounds: numbers.len(),
        })
    }
}

/// The value below which that share of sorted numbers lies, between two of them where it falls there.
pub fn quantile(sorted: &[f64], share: f64) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    let at = share * last as f64;
    let (low, high) = (at.floor(), at.ceil());
    let (below, above) = (sorted[low as usize], sorted[high as usize]);
    Some(below + (above - below) * (at - low))
}

/// A straight line through points, by least squares.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// What each step along x adds.
    pub slope: f64,
    /// Where x is 0.
    pub intercept: f64,
    /// Which share of the differences the line explains.
    pub r2: f64,
}

impl Line {
    /// `None` where the points have no two different x.
    pub fn through(points: &[(f64, f64)]) -> Option<Self> {
        let n = points.len() as f64;
        let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / n;
        let (mean_x, mean_y) = (mean(|p| p.0), mean(|p| p.1));
        let sum = |of: &dyn Fn(f64, f64) -> f64| {
            let parts = points.iter().map(|(x, y)| of(x - mean_x, y - mean_y));
            parts.sum::<f64>()
        };
        let (xx, xy, yy) = (sum(&|x, _| x * x), sum(&|x, y| x * y), sum(&|_, y| y * y));
        if points.is_empty() || xx == 0.0 {
            return None;
        }
        let slope = xy / xx;
        Some(Self {
            slope,
            intercept: mean_y - slope * mean_x,
            // Where nothing differs there is nothing to explain.
            r2: if yy == 0.0 { 1.0 } else { xy * xy / (xx * yy) },
        })
    }

    /// Its value at x.
    pub fn at(self, x: f64) -> f64 {
        self.intercept + self.slope * x
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_lie_between_numbers() {
        let numbers = [1.0, 2.0, 3.0, 10.0];
        assert_eq!(quantile(&numbers, 0.0), Some(1.0));
        assert_eq!(quantile(&numbers, 0.5), Some(2.5));
        assert_eq!(quantile(&numbers, 1.0), Some(10.0));
        assert_eq!(quantile(&[], 0.5), None);
        assert_eq!(quantile(&[7.0], 0.9), Some(7.0));
    }

    #[test]
    fn one_bad_round_does_not_move_the_median() {
        let spread = Spread::of(vec![1.01, 0.99, 40.0, 1.0, 0.98]).unwrap();
        assert_eq!(spread.median, 1.0);
        assert_eq!(spread.quartiles, (0.99, 1.01));
        assert_eq!((spread.range, spread.rounds), ((0.98, 40.0), 5));
    }

    #[test]
    fn what_is_no_number_is_no_round() {
        assert_eq!(Spread::of(vec![f64::NAN, f64::INFINITY]), None);
        let spread = Spread::of(vec![f64::NAN, 2.0]).unwrap();
        assert_eq!((spread.median, spread.rounds), (2.0, 1));
    }

    #[test]
    fn a_line_goes_through_its_points() {
        let line = Line::through(&[(1.0, 5.0), (2.0, 7.0), (4.0, 11.0)]).unwrap();
        assert!((line.slope - 2.0).abs() < 1e-12 && (line.intercept - 3.0).abs() < 1e-12);
        assert!((line.r2 - 1.0).abs() < 1e-12 && (line.at(10.0) - 23.0).abs() < 1e-12);
    }

    #[test]
    fn points_off_the_line_show_in_r2() {
        let line = Line::through(&[(0.0, 0.0), (1.0, 1.0), (2.0, 0.0), (3.0, 1.0)]).unwrap();
        assert!((line.r2 - 0.2).abs() < 1e-12, "{line:?}");
    }

    #[test]
    fn a_line_needs_two_places() {
        assert_eq!(Line::through(&[]), None);
        assert_eq!(Line::through(&[(1.0, 1.0), (1.0, 2.0)]), None);
        let flat = Line::through(&[(1.0, 3.0), (2.0, 3.0)]).unwrap();
        assert_eq!((flat.slope, flat.r2), (0.0, 1.0));
    }
}
