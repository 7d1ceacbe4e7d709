//! Plots as SVG, drawn by `plotters`. Elements get a class instead of a colour; page.css has their looks in either theme and on
//! paper.

use std::fmt::Display;
use std::ops::Range;

use plotters::coord::ranged1d::{DefaultFormatting, KeyPointHint, Ranged};
use plotters::prelude::*;
use plotters::style::RGBColor;

use super::escaped::Escaped;
use crate::{Error, Result};

/// Units per CSS pixel. `plotters` has whole numbers as coordinates.
const FINE: u32 = 10;
const FONT: u32 = 13 * FINE;
const RADIUS: u32 = 26;
/// How many series have looks of their own in page.css.
pub const SERIES: usize = 12;

/// What an element of a plot stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ink {
    /// Axes and tick marks.
    Axis,
    /// Lines across the plot.
    Grid,
    /// Labels.
    Label,
    /// What others are compared with, such as the original model or the uncorrected layer.
    Reference,
    /// One of [`SERIES`] that look different; higher numbers begin again.
    Series(usize),
}

impl Ink {
    /// The class in page.css.
    pub fn class(self) -> String {
        match self {
            Self::Axis => "axis".to_string(),
            Self::Grid => "grid".to_string(),
            Self::Label => "label".to_string(),
            Self::Reference => "reference".to_string(),
            Self::Series(index) => format!("series-{}", index % SERIES),
        }
    }

    /// The colour that stands for the class until [`classes`] replaces it.
    fn colour(self) -> RGBColor {
        let code = match self {
            Self::Axis => 0,
            Self::Grid => 1,
            Self::Label => 2,
            Self::Reference => 3,
            Self::Series(index) => 4 + (index % SERIES) as u8,
        };
        RGBColor(1, 2, code)
    }

    fn all() -> impl Iterator<Item = Self> {
        [Self::Axis, Self::Grid, Self::Label, Self::Reference].into_iter().chain((0..SERIES).map(Self::Series))
    }
}

/// Values over blocks.
#[derive(Debug, Clone)]
pub struct Curve {
    /// How it looks.
    pub ink: Ink,
    /// Blocks, from 0 and rising, with their values. The line is interrupted where a block is missing.
    pub points: Vec<(usize, f64)>,
}

/// The vertical axis.
#[derive(Debug, Clone, PartialEq)]
pub struct Axis {
    low: f64,
    high: f64,
    ticks: Vec<f64>,
    logarithmic: bool,
}

impl Axis {
    /// From 0 to a round number not below `high`.
    pub fn from_zero(high: f64) -> Self {
        let step = nice_step(high.max(f64::MIN_POSITIVE) / 5.0);
        let steps = (high / step - 1e-9).ceil().max(1.0);
        let ticks = (0..=steps as usize).map(|index| index as f64 * step).collect();
        Self { low: 0.0, high: steps * step, ticks, logarithmic: false }
    }

    /// Fits `values`. Begins at 0, or is logarithmic if the greatest value is so large that `typical` ones would vanish.
    pub fn fitting(values: &[f64], typical: f64) -> Self {
        let low = values.iter().copied().fold(f64::INFINITY, f64::min);
        let high = values.iter().copied().fold(0.0, f64::max);
        if !(low > 0.0 && high < f64::INFINITY && high > 20.0 * typical) {
            return Self::from_zero(high);
        }
        let (low, high) = (low.log10() - 0.05, high.log10() + 0.05);
        let ticks = [&[1.0, 2.0, 5.0][..], &[1.0, 3.0], &[1.0]].into_iter().map(|steps| decades(low, high, steps));
        let sparse = decades(low, high, &[1.0]).into_iter().filter(|tick| tick.round() as i64 % 3 == 0).collect();
        let ticks = ticks.chain([sparse]).find(|ticks| ticks.len() <= 6).unwrap_or_default();
        Self { low, high, ticks, logarithmic: true }
    }

    /// Whether equal distances are equal ratios.
    pub fn is_logarithmic(&self) -> bool {
        self.logarithmic
    }

    fn place(&self, value: f64) -> f64 {
        if self.logarithmic { value.log10() } else { value }
    }

    fn label(&self, place: f64) -> String {
        let value = if self.logarithmic { 10f64.powf(place) } else { place };
        if value != 0.0 && !(0.000_95..1e5).contains(&value) {
            return format!("{value:.0e}");
        }
        // Ticks have at most two significant digits. `{}` prints no zeros after them.
        let digits = if value == 0.0 { 0 } else { (2 - value.log10().floor() as i32).max(0) };
        let scale = 10f64.powi(digits);
        ((value * scale).round() / scale).to_string()
    }
}

/// A range with given ticks. `plotters` itself would choose too many.
struct Scale {
    range: Range<f64>,
    ticks: Vec<f64>,
}

impl Ranged for Scale {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        let share = (value - self.range.start) / (self.range.end - self.range.start);
        limit.0 + (share * f64::from(limit.1 - limit.0)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        if hint.weight().allow_light_points() { Vec::new() } else { self.ticks.clone() }
    }

    fn range(&self) -> Range<f64> {
        self.range.clone()
    }
}

/// log10 of `steps`·10^k in [low, high].
fn decades(low: f64, high: f64, steps: &[f64]) -> Vec<f64> {
    let powers = low.floor() as i32..=high.ceil() as i32;
    let all = powers.flat_map(|power| steps.iter().map(move |step| f64::from(power) + step.log10()));
    all.filter(|tick| (low..=high).contains(tick)).collect()
}

/// The smallest of 1, 2, 5 times a power of ten that is not below `at_least`.
fn nice_step(at_least: f64) -> f64 {
    let power = 10f64.powf(at_least.log10().floor());
    [1.0, 2.0, 5.0].into_iter().map(|step| step * power).find(|&step| step >= at_least).unwrap_or(10.0 * power)
}

/// A plot of curves over the blocks of a model.
#[derive(Debug)]
pub struct Plot<'a> {
    /// Width and height in CSS pixels, for text of its natural size.
    pub size: (u32, u32),
    /// Blocks of the model.
    pub blocks: usize,
    /// The vertical axis.
    pub axis: &'a Axis,
    /// The curves, drawn in this order: the last one is on top.
    pub curves: &'a [Curve],
    /// A description for readers who do not see the plot.
    pub description: &'a str,
}

impl Plot<'_> {
    /// The SVG element. Errors: `Error::Shape` if there is no room for the axes.
    pub fn svg(&self) -> Result<String> {
        let mut text = String::new();
        self.draw(&mut text).map_err(failed)?;
        let body = text.split_once('>').map_or("", |(_, body)| body);
        let (width, height) = self.size;
        let name = Escaped(self.description);
        let frame = format!("0 0 {} {}", width * FINE, height * FINE);
        Ok(format!("<svg class=\"plot\" viewBox=\"{frame}\" role=\"img\" aria-label=\"{name}\">{}", classes(body)))
    }

    fn draw(&self, text: &mut String) -> std::result::Result<(), DrawingAreaErrorKind<std::io::Error>> {
        let (width, height) = self.size;
        let area = SVGBackend::with_string(text, (width * FINE, height * FINE)).into_drawing_area();
        let last = self.blocks.max(1) as f64 - 0.5;
        let step = nice_step(self.blocks as f64 / f64::from(width / 60)).max(1.0) as usize;
        let blocks = (0..self.blocks.max(1)).step_by(step).map(|block| block as f64).collect();
        let across = Scale { range: -0.5..last, ticks: blocks };
        let up = Scale { range: self.axis.low..self.axis.high, ticks: self.axis.ticks.clone() };
        let mut chart = ChartBuilder::on(&area)
            .margin(8 * FINE)
            .x_label_area_size(38 * FINE)
            .y_label_area_size(46 * FINE)
            .build_cartesian_2d(across, up)?;
        let label = ("sans-serif", FONT).into_font().color(&Ink::Label.colour());
        chart
            .configure_mesh()
            .disable_x_mesh()
            .axis_style(Ink::Axis.colour().stroke_width(FINE))
            .bold_line_style(Ink::Grid.colour().stroke_width(FINE))
            .light_line_style(TRANSPARENT)
            .set_all_tick_mark_size(4 * FINE)
            .label_style(label.clone())
            .axis_desc_style(label)
            .x_desc("block")
            .x_label_formatter(&|block| format!("{block:.0}"))
            .y_label_formatter(&|place| self.axis.label(*place))
            .draw()?;
        for curve in self.curves {
            let colour = curve.ink.colour();
            let place = |&(block, value): &(usize, f64)| (block as f64, self.axis.place(value));
            for piece in curve.points.chunk_by(|a, b| b.0 == a.0 + 1) {
                chart.draw_series(LineSeries::new(piece.iter().map(place), colour.stroke_width(2 * FINE)))?;
            }
            chart.draw_series(curve.points.iter().map(|point| Circle::new(place(point), RADIUS, colour.filled())))?;
        }
        drop(chart);
        area.present()
    }
}

/// A horizontal bar without text that stretches to its box. `segments`: lengths from left to right as shares of the width.
///
/// Errors: `Error::Shape` if the bar cannot be drawn, which does not happen with shares in [0, 1].
pub fn bar(segments: &[(f64, Ink)]) -> Result<String> {
    const WIDTH: f64 = 10_000.0;
    let mut text = String::new();
    let mut draw = || {
        let area = SVGBackend::with_string(&mut text, (WIDTH as u32, FINE)).into_drawing_area();
        let mut from = 0.0;
        for &(share, ink) in segments {
            let to = from + share * WIDTH;
            area.draw(&Rectangle::new([(from as i32, 0), (to as i32, FINE as i32)], ink.colour().filled()))?;
            from = to;
        }
        area.present()
    };
    draw().map_err(failed)?;
    let body = text.split_once('>').map_or("", |(_, body)| body);
    let open =
        format!("<svg class=\"bar\" viewBox=\"0 0 {WIDTH} {FINE}\" preserveAspectRatio=\"none\" aria-hidden=\"true\">");
    Ok(open + &classes(body))
}

/// Replaces colours by classes. Quotation marks in text are escaped, so only attributes match.
fn classes(svg: &str) -> String {
    // Browsers assume these values anyway. They would add up in a page with many points.
    let mut svg = svg.replace(" opacity=\"1\"", "").replace(" stroke=\"none\" stroke-width=\"1\"", "");
    for ink in Ink::all() {
        let RGBColor(r, g, b) = ink.colour();
        for attribute in ["stroke", "fill"] {
            let colour = format!("{attribute}=\"#{r:02X}{g:02X}{b:02X}\"");
            svg = svg.replace(&colour, &format!("class=\"{attribute} {}\"", ink.class()));
        }
    }
    svg
}

fn failed(error: impl Display) -> Error {
    Error::shape("plot", error.to_string())
}
