//! Horizontal bars, each with a whisker for how far its rounds lie apart.

use std::path::Path;

use anyhow::{Context as _, Result};
use plotters::style::RGBColor;
use plotters::style::text_anchor::HPos;

use super::canvas::{FAINT, INK};
use super::plain::{MARGIN, Plain, TOP};
use super::scale;

const WIDTH: u32 = 1840;
/// A bar and the room around it.
const STEP: i32 = 52;
const THICK: i32 = 30;
/// Beside the bars: names, and what the numbers are.
const LEFT: i32 = 420;
const RIGHT: i32 = 330;
const BOTTOM: i32 = 76;

const OURS: RGBColor = RGBColor(0, 114, 178);
const OTHERS: RGBColor = RGBColor(178, 182, 190);
const WHISKER: RGBColor = RGBColor(51, 56, 66);
const MARK: RGBColor = RGBColor(213, 94, 0);

/// A bar.
#[derive(Clone, Debug)]
pub struct Bar {
    /// Left of it.
    pub name: String,
    /// How long it is.
    pub value: f64,
    /// The whisker's ends.
    pub range: (f64, f64),
    /// Right of it.
    pub text: String,
    /// In the colour of what the picture is about.
    pub ours: bool,
}

/// A picture of bars.
#[derive(Clone, Debug)]
pub struct Bars {
    /// Above it.
    pub title: String,
    /// Below it: what is shown.
    pub caption: String,
    /// From top to bottom.
    pub bars: Vec<Bar>,
    /// A line across all bars, such as at 1.
    pub mark: f64,
}

impl Bars {
    /// Draws it to a PNG file.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn draw(&self, path: &Path) -> Result<()> {
        self.drawn(path)
            .with_context(|| format!("{}: {}", self.title, path.display()))
    }

    fn drawn(&self, path: &Path) -> Result<()> {
        let bottom = TOP + STEP * self.bars.len() as i32;
        let sheet = Plain::new(&self.title, (WIDTH, (bottom + BOTTOM) as u32), path)?;
        let most = self.most();
        let room = WIDTH as i32 - LEFT - RIGHT;
        let x = |value: f64| LEFT + (value / most * f64::from(room)).round() as i32;
        for tick in scale::ticks(0.0, most, 8) {
            sheet.line((x(tick), TOP), (x(tick), bottom), FAINT, 2)?;
            sheet.text(
                &scale::number(tick),
                (x(tick), bottom + 20),
                HPos::Center,
                INK,
            )?;
        }
        for (i, bar) in (0..).zip(&self.bars) {
            let middle = TOP + STEP * i + STEP / 2;
            let (from, to) = (middle - THICK / 2, middle + THICK / 2);
            let colour = if bar.ours { OURS } else { OTHERS };
            sheet.text(&bar.name, (LEFT - 16, middle), HPos::Right, INK)?;
            sheet.rectangle((LEFT, from), (x(bar.value), to), colour)?;
            let (low, high) = (x(bar.range.0), x(bar.range.1));
            sheet.line((low, middle), (high, middle), WHISKER, 2)?;
            for end in [low, high] {
                sheet.line((end, middle - 7), (end, middle + 7), WHISKER, 2)?;
            }
            let behind = x(bar.value).max(high) + 14;
            sheet.text(&bar.text, (behind, middle), HPos::Left, INK)?;
        }
        sheet.line((x(self.mark), TOP - 8), (x(self.mark), bottom + 4), MARK, 3)?;
        sheet.text(&self.caption, (MARGIN, bottom + 52), HPos::Left, INK)?;
        sheet.finish()
    }

    /// What the frame reaches to.
    fn most(&self) -> f64 {
        let ends = self.bars.iter().map(|bar| bar.value.max(bar.range.1));
        ends.filter(|end| end.is_finite()).fold(self.mark, f64::max) * 1.02
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_frame_holds_every_whisker_and_the_mark() {
        let bar = |value, most| Bar {
            name: String::new(),
            value,
            range: (value, most),
            text: String::new(),
            ours: true,
        };
        let mut bars = Bars {
            title: String::new(),
            caption: String::new(),
            bars: vec![bar(0.5, 0.7), bar(f64::NAN, f64::NAN)],
            mark: 1.0,
        };
        assert!((bars.most() - 1.02).abs() < 1e-9);
        bars.bars.push(bar(2.0, 4.0));
        assert!(bars.most() > 4.0);
    }
}
