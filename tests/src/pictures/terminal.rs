//! What a terminal shows.

use std::path::Path;

use anyhow::{Context as _, Result};
use plotters::prelude::*;
use plotters::style::Color as _;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use vt100::{Cell, Color, Screen};

use super::canvas::MONOSPACE;

/// A cell, twice as large as it will be shown.
const WIDTH: i32 = 18;
const HEIGHT: i32 = 36;
const TEXT: i32 = 30;
const EDGE: i32 = 24;

const PAPER: RGBColor = RGBColor(24, 27, 33);
const INK: RGBColor = RGBColor(222, 225, 230);
/// The eight colours of terminals, and the eight bright ones.
const COLOURS: [RGBColor; 16] = [
    RGBColor(60, 64, 72),
    RGBColor(224, 108, 117),
    RGBColor(152, 195, 121),
    RGBColor(229, 192, 123),
    RGBColor(97, 175, 239),
    RGBColor(198, 120, 221),
    RGBColor(86, 182, 194),
    INK,
    RGBColor(130, 137, 150),
    RGBColor(240, 140, 148),
    RGBColor(175, 215, 150),
    RGBColor(240, 210, 150),
    RGBColor(130, 195, 245),
    RGBColor(215, 150, 235),
    RGBColor(120, 205, 215),
    WHITE,
];

/// Draws a screen to a PNG file. The fonts must be registered.
///
/// # Errors
/// The file can't be written.
pub fn draw(screen: &Screen, path: &Path) -> Result<()> {
    let (rows, columns) = screen.size();
    let size = |cells: u16, cell: i32| (i32::from(cells) * cell + 2 * EDGE).unsigned_abs();
    let sheet = (size(columns, WIDTH), size(rows, HEIGHT));
    let area = BitMapBackend::new(path, sheet).into_drawing_area();
    area.fill(&PAPER)?;
    for row in 0..rows {
        for column in 0..columns {
            let Some(cell) = screen.cell(row, column) else {
                continue;
            };
            let at = (
                EDGE + i32::from(column) * WIDTH,
                EDGE + i32::from(row) * HEIGHT,
            );
            let (ink, paper) = colours(cell);
            if paper != PAPER {
                let end = (at.0 + WIDTH, at.1 + HEIGHT);
                area.draw(&Rectangle::new([at, end], paper.filled()))?;
            }
            if cell.has_contents() && cell.contents() != " " {
                let style = if cell.bold() {
                    FontStyle::Bold
                } else {
                    FontStyle::Normal
                };
                let font = (MONOSPACE, TEXT, style).into_font().color(&ink);
                let place = (at.0 + WIDTH / 2, at.1 + HEIGHT / 2);
                let style = font.pos(Pos::new(HPos::Center, VPos::Center));
                area.draw(&Text::new(cell.contents().to_owned(), place, style))?;
            }
        }
    }
    area.present().with_context(|| path.display().to_string())
}

/// Ink and paper of a cell.
fn colours(cell: &Cell) -> (RGBColor, RGBColor) {
    let ink = colour(cell.fgcolor(), INK);
    let paper = colour(cell.bgcolor(), PAPER);
    if cell.inverse() {
        (paper, ink)
    } else {
        (ink, paper)
    }
}

fn colour(colour: Color, default: RGBColor) -> RGBColor {
    match colour {
        Color::Idx(number) => COLOURS.get(usize::from(number)).copied().unwrap_or(default),
        Color::Rgb(r, g, b) => RGBColor(r, g, b),
        Color::Default => default,
    }
}
