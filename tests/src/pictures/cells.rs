//! A line of coloured cells for each series, or for each bucket of a histogram.

use std::path::Path;

use anyhow::Result;
use plotters::style::RGBColor;
use plotters::style::text_anchor::HPos;

use super::canvas::{Canvas, INK};
use super::{Picture, Series, scale};
use crate::dashboard::{Kind, Unit};

const LEFT: i32 = 220;
/// Parts of the scale of colours.
const SHADES: i32 = 40;
/// From little to much, and nothing.
const RAMP: [(f64, f64, f64); 4] = [
    (255.0, 245.0, 200.0),
    (254.0, 190.0, 90.0),
    (240.0, 80.0, 40.0),
    (140.0, 0.0, 40.0),
];
const NOTHING: RGBColor = RGBColor(240, 242, 245);

pub fn draw(picture: &Picture, mut series: Vec<Series>, path: &Path) -> Result<()> {
    let histogram = matches!(picture.kind, Kind::HeatMap);
    if !histogram {
        series.sort_by(|a, b| b.name.cmp(&a.name));
    }
    let values = series
        .iter()
        .flat_map(|s| &s.points)
        .map(|(_, value)| *value);
    let most = values.filter(|value| value.is_finite()).fold(0.0, f64::max);
    let canvas = Canvas::new(picture, LEFT, path)?;
    let lines = series.len().max(1) as f64;
    for (i, series) in series.iter().enumerate() {
        let (low, high) = (i as f64 / lines, (i + 1) as f64 / lines);
        let (top, bottom) = (canvas.y(high) + 2, canvas.y(low) - 2);
        let name = (canvas.left() - 16, i32::midpoint(top, bottom));
        canvas.text(&series.name, name, HPos::Right, INK)?;
        let step = series
            .points
            .windows(2)
            .map(|pair| pair[1].0 - pair[0].0)
            .fold(f64::INFINITY, f64::min);
        for (time, value) in &series.points {
            let (from, to) = (canvas.x(*time), canvas.x(time + step.min(1e9)));
            if from < to {
                let shade = shade(*value / most);
                canvas.rectangle((from, top), (to - 1, bottom), shade)?;
            }
        }
    }
    // A histogram's cells are counts, whatever its buckets are.
    let unit = if histogram { Unit::Count } else { picture.unit };
    colours(
        &canvas,
        unit,
        most,
        if histogram {
            "calls"
        } else {
            scale::caption(unit)
        },
    )?;
    canvas.finish()
}

/// What the colours mean.
fn colours(canvas: &Canvas<'_>, unit: Unit, most: f64, caption: &str) -> Result<()> {
    let x = canvas.right() + 50;
    let (top, height) = (canvas.top() + 40, canvas.bottom() - canvas.top() - 40);
    let y = |share: f64| top + height - (share * f64::from(height)) as i32;
    for i in 0..SHADES {
        let (low, high) = (
            f64::from(i) / f64::from(SHADES),
            f64::from(i + 1) / f64::from(SHADES),
        );
        canvas.rectangle((x, y(high)), (x + 36, y(low)), shade(high))?;
    }
    let (factor, suffix) = scale::written(unit, most);
    for tick in scale::ticks(0.0, most * factor, 5) {
        let y = y(tick / factor / most);
        canvas.line(&[(x + 36, y), (x + 44, y)], INK, 2)?;
        let text = format!("{}{suffix}", scale::number(tick));
        canvas.text(&text, (x + 54, y), HPos::Left, INK)?;
    }
    canvas.text(caption, (x, canvas.top()), HPos::Left, INK)
}

fn shade(share: f64) -> RGBColor {
    if !share.is_finite() || share <= 0.0 {
        return NOTHING;
    }
    let at = share.min(1.0) * (RAMP.len() - 1) as f64;
    let i = (at as usize).min(RAMP.len() - 2);
    let (a, b, part) = (RAMP[i], RAMP[i + 1], at - i as f64);
    let mix = |a: f64, b: f64| (a + (b - a) * part).round() as u8;
    RGBColor(mix(a.0, b.0), mix(a.1, b.1), mix(a.2, b.2))
}

/// The buckets of a histogram, which count what is in the smaller ones too, each for itself, from the smallest that has something
/// to the largest.
pub fn buckets(picture: &Picture) -> Vec<Series> {
    let mut all: Vec<(f64, &Series)> = picture
        .series
        .iter()
        .filter_map(|series| Some((bound(&series.name)?, series)))
        .collect();
    all.sort_by(|a, b| a.0.total_cmp(&b.0));
    let below = |i: usize, time: f64| {
        let before = i.checked_sub(1).map(|i| all[i].1);
        let point = before?.points.iter().find(|(other, _)| *other == time);
        point.map(|(_, value)| *value)
    };
    let own: Vec<Series> = all
        .iter()
        .enumerate()
        .map(|(i, (bound, series))| Series {
            name: if bound.is_finite() {
                let (factor, suffix) = scale::written(Unit::Seconds, *bound);
                format!("to {}{suffix}", scale::number(bound * factor))
            } else {
                "more".to_owned()
            },
            points: series
                .points
                .iter()
                .map(|(time, value)| (*time, (value - below(i, *time).unwrap_or(0.0)).max(0.0)))
                .collect(),
        })
        .collect();
    let has = |series: &Series| series.points.iter().any(|(_, value)| *value > 0.0);
    let first = own.iter().position(has).unwrap_or(0);
    let last = own.iter().rposition(has).unwrap_or(0);
    own.into_iter().take(last + 1).skip(first).collect()
}

fn bound(le: &str) -> Option<f64> {
    if le == "+Inf" {
        return Some(f64::INFINITY);
    }
    le.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_counted_each_for_itself() {
        let bucket = |le: &str, value| Series {
            name: le.to_owned(),
            points: vec![(1.0, value)],
        };
        let picture = Picture {
            title: String::new(),
            kind: Kind::HeatMap,
            unit: Unit::Seconds,
            range: (0.0, 1.0),
            changing: (0.0, 0.0),
            change: String::new(),
            series: vec![
                bucket("+Inf", 9.0),
                bucket("0.0001", 0.0),
                bucket("0.01", 9.0),
                bucket("0.00025", 4.0),
            ],
        };
        let own = buckets(&picture);
        let named: Vec<_> = own
            .iter()
            .map(|s| (s.name.as_str(), s.points[0].1))
            .collect();
        assert_eq!(named, [("to 250 µs", 4.0), ("to 10 ms", 5.0)]);
    }

    #[test]
    fn more_is_darker_and_nothing_has_no_colour() {
        let dark = |RGBColor(r, g, b): RGBColor| 765 - u32::from(r) - u32::from(g) - u32::from(b);
        assert!(dark(shade(1.0)) > dark(shade(0.5)));
        assert!(dark(shade(0.5)) > dark(shade(0.01)));
        assert_eq!(shade(0.0), NOTHING);
        assert_eq!(shade(f64::NAN), NOTHING);
    }
}
