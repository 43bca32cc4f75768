//! Lines, each for itself or on top of each other.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Result;
use plotters::style::RGBColor;
use plotters::style::text_anchor::HPos;

use super::canvas::{Canvas, FAINT, INK, colours};
use super::{Picture, Series, scale};
use crate::dashboard::{Kind, Unit};

const LEFT: i32 = 140;
const LEGEND_LINE: i32 = 38;
/// Characters of a legend that fit beside the frame.
const LEGEND_WIDTH: usize = 27;

pub fn draw(picture: &Picture, path: &Path) -> Result<()> {
    let stacked = matches!(picture.kind, Kind::Stacked);
    let mut series = picture.series.clone();
    series.sort_by(|a, b| a.name.cmp(&b.name));
    let drawn = if stacked {
        stack(&series)
    } else {
        series.clone()
    };
    let values = drawn
        .iter()
        .flat_map(|s| &s.points)
        .map(|(_, value)| *value);
    let most = values.filter(|value| value.is_finite()).fold(0.0, f64::max);
    let high = top(picture.unit, most, stacked);

    let canvas = Canvas::new(picture, LEFT, path)?;
    axis(&canvas, picture.unit, high)?;
    let names: Vec<_> = series.iter().map(|series| series.name.as_str()).collect();
    let colours = colours(&names);
    let (left, right, bottom) = (canvas.left(), canvas.right(), canvas.bottom());
    canvas.line(&[(left, bottom), (right, bottom)], INK, 2)?;
    // The highest first, so that what is below it stays in sight.
    for (series, colour) in drawn.iter().zip(&colours).rev() {
        for run in runs(series) {
            let mut points: Vec<_> = run
                .iter()
                .map(|(time, value)| (canvas.x(*time), canvas.y(value / high)))
                .collect();
            if stacked {
                let (first, last) = (points[0].0, points[points.len() - 1].0);
                points.extend([(last, canvas.bottom()), (first, canvas.bottom())]);
                canvas.fill(&points, *colour)?;
            } else {
                canvas.line(&points, *colour, 4)?;
            }
        }
    }
    legend(&canvas, &series, &colours)?;
    canvas.finish()
}

/// The upper end of the axis.
fn top(unit: Unit, most: f64, stacked: bool) -> f64 {
    if unit == Unit::Share && !stacked && most <= 1.0 && most > 0.2 {
        return 1.0;
    }
    if most <= 0.0 {
        return 1.0;
    }
    let step = scale::step(most * 1.02, 5);
    (most * 1.02 / step).ceil() * step
}

fn axis(canvas: &Canvas<'_>, unit: Unit, high: f64) -> Result<()> {
    let (factor, suffix) = scale::written(unit, high);
    for tick in scale::ticks(0.0, high * factor, 5) {
        let y = canvas.y(tick / factor / high);
        canvas.line(&[(LEFT, y), (canvas.right(), y)], FAINT, 2)?;
        let text = format!("{}{suffix}", scale::number(tick));
        canvas.text(&text, (LEFT - 16, y), HPos::Right, INK)?;
    }
    let caption = scale::caption(unit);
    canvas.text(caption, (LEFT - 16, canvas.top() - 28), HPos::Right, INK)
}

fn legend(canvas: &Canvas<'_>, series: &[Series], colours: &[RGBColor]) -> Result<()> {
    let x = canvas.right() + 36;
    let mut y = canvas.top() + 14;
    for (series, colour) in series.iter().zip(colours) {
        canvas.rectangle((x, y - 10), (x + 20, y + 10), *colour)?;
        let name: String = series.name.chars().take(LEGEND_WIDTH).collect();
        canvas.text(&name, (x + 34, y), HPos::Left, INK)?;
        y += LEGEND_LINE;
        if y > canvas.bottom() {
            break;
        }
    }
    Ok(())
}

/// Parts without a hole in them: of two points or more.
fn runs(series: &Series) -> Vec<&[(f64, f64)]> {
    let points = &series.points;
    let step = points
        .windows(2)
        .map(|pair| pair[1].0 - pair[0].0)
        .fold(f64::INFINITY, f64::min);
    points
        .chunk_by(|a, b| a.1.is_finite() && b.1.is_finite() && b.0 - a.0 < 1.5 * step)
        .filter(|run| run.len() > 1)
        .collect()
}

/// Each series on top of those before it.
fn stack(series: &[Series]) -> Vec<Series> {
    // Times in milliseconds, which can be compared.
    let key = |time: f64| (time * 1e3).round() as i64;
    let mut sums: BTreeMap<i64, f64> = BTreeMap::new();
    for (time, _) in series.iter().flat_map(|series| &series.points) {
        sums.insert(key(*time), 0.0);
    }
    let mut stacked = Vec::new();
    for series in series {
        for (time, value) in &series.points {
            if value.is_finite() {
                *sums.entry(key(*time)).or_default() += value;
            }
        }
        stacked.push(Series {
            name: series.name.clone(),
            points: sums
                .iter()
                .map(|(time, sum)| (*time as f64 / 1e3, *sum))
                .collect(),
        });
    }
    stacked
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(points: &[(f64, f64)]) -> Series {
        Series {
            name: String::new(),
            points: points.to_vec(),
        }
    }

    #[test]
    fn stacked_series_are_sums_of_those_below() {
        let stacked = stack(&[series(&[(1.0, 5.0), (2.0, 5.0)]), series(&[(2.0, 1.0)])]);
        assert_eq!(stacked[0].points, [(1.0, 5.0), (2.0, 5.0)]);
        assert_eq!(stacked[1].points, [(1.0, 5.0), (2.0, 6.0)]);
    }

    #[test]
    fn holes_are_not_drawn_across() {
        let holed = series(&[
            (1.0, 1.0),
            (2.0, 1.0),
            (5.0, 1.0),
            (6.0, 1.0),
            (7.0, f64::NAN),
        ]);
        assert_eq!(runs(&holed).len(), 2);
    }
}
