//! A sheet without times: title, lines, text.

use std::path::Path;

use anyhow::Result;
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::HPos;

use super::canvas::{FAMILY, INK, write};

/// Where what is drawn begins, below the title.
pub const TOP: i32 = 96;
/// Left of which titles and captions begin.
pub const MARGIN: i32 = 24;

/// The sheet.
pub struct Plain<'a> {
    area: DrawingArea<BitMapBackend<'a>, Shift>,
}

impl<'a> Plain<'a> {
    pub fn new(title: &str, size: (u32, u32), path: &'a Path) -> Result<Self> {
        let area = BitMapBackend::new(path, size).into_drawing_area();
        area.fill(&WHITE)?;
        let style = (FAMILY, 30, FontStyle::Bold).into_font().color(&INK);
        area.draw(&Text::new(title.to_owned(), (MARGIN, MARGIN), style))?;
        Ok(Self { area })
    }

    pub fn line(
        &self,
        from: (i32, i32),
        to: (i32, i32),
        colour: RGBColor,
        width: u32,
    ) -> Result<()> {
        let path = PathElement::new(vec![from, to], colour.stroke_width(width));
        Ok(self.area.draw(&path)?)
    }

    pub fn rectangle(&self, from: (i32, i32), to: (i32, i32), colour: RGBColor) -> Result<()> {
        let rectangle = Rectangle::new([from, to], colour.filled());
        Ok(self.area.draw(&rectangle)?)
    }

    pub fn dot(&self, at: (i32, i32), colour: RGBColor) -> Result<()> {
        Ok(self.area.draw(&Circle::new(at, 8, colour.filled()))?)
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
