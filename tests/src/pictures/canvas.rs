//! The sheet that all pictures are drawn on: title, frame and times.

use std::path::Path;

use anyhow::{Context as _, Result, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::register_font;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::{Picture, scale};

/// Debian's package fonts-dejavu-core, which `cargo xtask setup --tests` installs.
const FONTS: [(&str, FontStyle, &str); 4] = [
    (
        FAMILY,
        FontStyle::Normal,
        "/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf",
    ),
    (
        FAMILY,
        FontStyle::Bold,
        "/usr/share/fonts/truetype/dejavu/DejaVuSans-Bold.ttf",
    ),
    (
        MONOSPACE,
        FontStyle::Normal,
        "/usr/share/fonts/truetype/dejavu/DejaVuSansMono.ttf",
    ),
    (
        MONOSPACE,
        FontStyle::Bold,
        "/usr/share/fonts/truetype/dejavu/DejaVuSansMono-Bold.ttf",
    ),
];
pub const FAMILY: &str = "sans-serif";
pub const MONOSPACE: &str = "monospace";

/// Everything is twice as large as it will be shown, so that it is sharp on every screen.
const SIZE: (u32, u32) = (1840, 680);
const TOP: i32 = 96;
const BOTTOM: i32 = 64;
const RIGHT: i32 = 470;
const TEXT: i32 = 24;

pub const INK: RGBColor = RGBColor(51, 56, 66);
pub const FAINT: RGBColor = RGBColor(222, 225, 230);
const MARK: RGBColor = RGBColor(120, 120, 130);
const SHADED: RGBColor = RGBColor(244, 245, 248);
/// How far down text has to be moved for its small letters to be in the middle.
const LOWER: i32 = 4;

/// Colours that can be told apart, by the colour-blind too (Okabe and Ito).
const PALETTE: [RGBColor; 8] = [
    RGBColor(0, 114, 178),
    RGBColor(230, 159, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(213, 94, 0),
    RGBColor(120, 120, 120),
    RGBColor(190, 175, 40),
];

/// What means the same in every picture has the same colour in all of them.
const MEANINGS: [(&str, RGBColor); 8] = [
    ("admitted", PALETTE[0]),
    ("would_reject", PALETTE[1]),
    ("would be saved", PALETTE[1]),
    ("rejected", PALETTE[2]),
    ("saved", PALETTE[2]),
    ("unresolved", PALETTE[6]),
    ("OK", PALETTE[0]),
    ("UNIMPLEMENTED", PALETTE[2]),
];

/// The colours of series with these names: all different, as long as there are enough.
pub fn colours(names: &[&str]) -> Vec<RGBColor> {
    let meant = |name: &str| {
        let meaning = MEANINGS.iter().find(|(meaning, _)| *meaning == name);
        meaning.map(|(_, colour)| *colour)
    };
    let used: Vec<_> = names.iter().filter_map(|name| meant(name)).collect();
    let mut free = PALETTE
        .into_iter()
        .filter(|colour| !used.contains(colour))
        .chain(PALETTE.map(lighter))
        .cycle();
    names
        .iter()
        .map(|name| meant(name).or_else(|| free.next()).unwrap_or(INK))
        .collect()
}

fn lighter(RGBColor(r, g, b): RGBColor) -> RGBColor {
    let [r, g, b] = [r, g, b].map(|part| 255 - (255 - part) / 2);
    RGBColor(r, g, b)
}

/// Reads the fonts. Once, before anything is drawn.
///
/// # Errors
/// One isn't there.
pub fn register_fonts() -> Result<()> {
    for (family, style, path) in FONTS {
        let font = std::fs::read(path)
            .with_context(|| format!("{path} (run `cargo xtask setup --tests`)"))?;
        // The drawing library keeps fonts until the program ends.
        register_font(family, style, Box::leak(font.into_boxed_slice()))
            .map_err(|_| anyhow!("{path} is no font"))?;
    }
    Ok(())
}

/// A sheet with a frame for the data.
pub struct Canvas<'a> {
    area: DrawingArea<BitMapBackend<'a>, Shift>,
    left: i32,
    range: (f64, f64),
}

impl<'a> Canvas<'a> {
    /// With title and times; `left` is the room for what is written beside the frame.
    pub fn new(picture: &Picture, left: i32, path: &'a Path) -> Result<Self> {
        let area = BitMapBackend::new(path, SIZE).into_drawing_area();
        area.fill(&WHITE)?;
        let canvas = Self {
            area,
            left,
            range: picture.range,
        };
        let title = (FAMILY, 30, FontStyle::Bold).into_font().color(&INK);
        canvas
            .area
            .draw(&Text::new(picture.title.clone(), (24, 24), title))?;
        let (start, end) = picture.range;
        let (from, to) = (canvas.x(picture.changing.0), canvas.x(picture.changing.1));
        canvas.rectangle((from, TOP), (to, canvas.bottom()), SHADED)?;
        let above = (i32::midpoint(from, to), TOP - 22);
        canvas.text(&picture.change, above, HPos::Center, MARK)?;
        for tick in scale::ticks(0.0, end - start, 8) {
            let x = canvas.x(start + tick);
            let y = canvas.bottom();
            canvas.line(&[(x, y), (x, y + 8)], INK, 2)?;
            let text = format!("{} s", scale::number(tick));
            canvas.text(&text, (x, y + 28), HPos::Center, INK)?;
        }
        Ok(canvas)
    }

    pub fn left(&self) -> i32 {
        self.left
    }

    pub fn right(&self) -> i32 {
        SIZE.0 as i32 - RIGHT
    }

    pub fn top(&self) -> i32 {
        TOP
    }

    pub fn bottom(&self) -> i32 {
        SIZE.1 as i32 - BOTTOM
    }

    /// Where a time is.
    pub fn x(&self, time: f64) -> i32 {
        let (start, end) = self.range;
        let share = ((time - start) / (end - start)).clamp(0.0, 1.0);
        self.left + (share * f64::from(self.right() - self.left)).round() as i32
    }

    /// Where a share of the height is, from below.
    pub fn y(&self, share: f64) -> i32 {
        let height = f64::from(self.bottom() - TOP);
        self.bottom() - (share.clamp(0.0, 1.0) * height).round() as i32
    }

    pub fn line(&self, points: &[(i32, i32)], colour: RGBColor, width: u32) -> Result<()> {
        let path = PathElement::new(points.to_vec(), colour.stroke_width(width));
        Ok(self.area.draw(&path)?)
    }

    pub fn fill(&self, points: &[(i32, i32)], colour: RGBColor) -> Result<()> {
        let polygon = Polygon::new(points.to_vec(), colour.filled());
        Ok(self.area.draw(&polygon)?)
    }

    pub fn rectangle(&self, from: (i32, i32), to: (i32, i32), colour: RGBColor) -> Result<()> {
        Ok(self
            .area
            .draw(&Rectangle::new([from, to], colour.filled()))?)
    }

    /// Text whose middle line is at that height.
    pub fn text(&self, text: &str, at: (i32, i32), side: HPos, colour: RGBColor) -> Result<()> {
        write(&self.area, text, at, side, colour)
    }

    /// Writes the file.
    pub fn finish(self) -> Result<()> {
        Ok(self.area.present()?)
    }
}

/// Text whose middle line is at that height.
pub fn write(
    area: &DrawingArea<BitMapBackend<'_>, Shift>,
    text: &str,
    at: (i32, i32),
    side: HPos,
    colour: RGBColor,
) -> Result<()> {
    let style = (FAMILY, TEXT)
        .into_font()
        .color(&colour)
        .pos(Pos::new(side, VPos::Center));
    let at = (at.0, at.1 + LOWER);
    Ok(area.draw(&Text::new(text.to_owned(), at, style))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_of_one_picture_have_different_colours() {
        let mut names = vec!["rejected", "admitted", "would_reject", "unresolved"];
        names.extend(["a", "b", "c", "d", "e", "f", "g", "h"]);
        let colours = colours(&names);
        assert_eq!(colours[0], PALETTE[2]);
        for (i, colour) in colours.iter().enumerate() {
            assert!(!colours[..i].contains(colour), "{}", names[i]);
        }
    }
}
