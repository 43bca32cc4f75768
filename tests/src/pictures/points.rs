//! Points, and the straight line through them.

use std::path::Path;

use anyhow::{Context as _, Result};
use plotters::style::RGBColor;
use plotters::style::text_anchor::HPos;

use super::canvas::{FAINT, INK};
use super::plain::{MARGIN, Plain, TOP};
use super::scale;

const SIZE: (u32, u32) = (1840, 680);
const LEFT: i32 = 150;
const RIGHT: i32 = 60;
const BOTTOM: i32 = 130;

const DOT: RGBColor = RGBColor(0, 114, 178);
const LINE: RGBColor = RGBColor(213, 94, 0);

/// A picture of points.
#[derive(Clone, Debug)]
pub struct Points {
    /// Above it.
    pub title: String,
    /// Below it.
    pub caption: String,
    /// What x is.
    pub x: String,
    /// Where they are.
    pub points: Vec<(f64, f64)>,
    /// What the line is at 0, and what each step adds.
    pub line: (f64, f64),
}

impl Points {
    /// Draws it to a PNG file.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn draw(&self, path: &Path) -> Result<()> {
        self.drawn(path)
            .with_context(|| format!("{}: {}", self.title, path.display()))
    }

    fn drawn(&self, path: &Path) -> Result<()> {
        let sheet = Plain::new(&self.title, SIZE, path)?;
        let (right, bottom) = (SIZE.0 as i32 - RIGHT, SIZE.1 as i32 - BOTTOM);
        let most = |of: fn(&(f64, f64)) -> f64| self.points.iter().map(of).fold(0.0, f64::max);
        let (most_x, most_y) = (most(|p| p.0).max(1.0), most(|p| p.1).max(1e-9) * 1.1);
        let x = |value: f64| LEFT + (value / most_x * f64::from(right - LEFT)).round() as i32;
        let y = |value: f64| bottom - (value / most_y * f64::from(bottom - TOP)).round() as i32;
        for tick in scale::ticks(0.0, most_y, 6) {
            sheet.line((LEFT, y(tick)), (right, y(tick)), FAINT, 2)?;
            sheet.text(&scale::number(tick), (LEFT - 14, y(tick)), HPos::Right, INK)?;
        }
        for tick in scale::ticks(0.0, most_x, 8) {
            sheet.line((x(tick), bottom), (x(tick), bottom + 8), INK, 2)?;
            sheet.text(
                &scale::number(tick),
                (x(tick), bottom + 28),
                HPos::Center,
                INK,
            )?;
        }
        let (at_zero, step) = self.line;
        let end = at_zero + step * most_x;
        sheet.line((x(0.0), y(at_zero)), (right, y(end)), LINE, 3)?;
        for (at_x, at_y) in &self.points {
            sheet.dot((x(*at_x), y(*at_y)), DOT)?;
        }
        sheet.text(&self.x, (right, bottom + 64), HPos::Right, INK)?;
        sheet.text(&self.caption, (MARGIN, bottom + 100), HPos::Left, INK)?;
        sheet.finish()
    }
}
