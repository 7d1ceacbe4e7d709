//! The error of the hidden states after each block, one curve per run.

use super::numbers::significant;
use super::{Page, legend};
use crate::Result;
use crate::report::plots::{Axis, Curve, Plot};

/// Classes and sizes of the plot for a wide page and for a phone.
const SIZES: [(&str, (u32, u32)); 2] = [("wide", (740, 330)), ("narrow", (370, 300))];
/// The legend of up to this many curves is beside the plot; that of more is below it.
const BESIDE: usize = 6;

/// The section of error growth.
pub fn section(page: &Page<'_>) -> Result<String> {
    let body = if page.drawn.is_empty() { "<p>No block was measured.</p>\n".to_string() } else { figure(page)? };
    Ok(super::section("Error growth", &body))
}

fn figure(page: &Page<'_>) -> Result<String> {
    let curves: Vec<Curve> = page
        .drawn()
        .map(|(run, _, ink)| Curve { ink, points: run.report.blocks.iter().map(|b| (b.block, b.error)).collect() })
        .collect();
    let points = || curves.iter().flat_map(|curve| &curve.points);
    let errors: Vec<f64> = points().map(|point| point.1).collect();
    let axis = Axis::fitting(&errors, errors.iter().copied().fold(f64::INFINITY, f64::min));
    let blocks = points().map(|point| point.0).max().unwrap_or(0).saturating_add(1);
    let last = page.drawn().map(|(run, label, _)| format!("{}: {}", label.0, significant(run.report.last_error())));
    let last = last.collect::<Vec<_>>().join("; ");
    let description = format!("Relative error of the hidden states after each block; after the last, {last}");
    let mut plots = String::new();
    for (class, size) in SIZES {
        let plot = Plot { size, blocks, axis: &axis, curves: &curves, description: &description };
        plots += &format!("<div class=\"{class}\">{}</div>\n", plot.svg()?);
    }
    let class = if page.drawn.len() > BESIDE { "growth many" } else { "growth" };
    let scale = if axis.is_logarithmic() { ", logarithmic scale" } else { "" };
    let entries = page.drawn().map(|(run, label, ink)| (ink, label, significant(run.report.last_error())));
    Ok(format!(
        "{}<figure class=\"{class}\">\n<figcaption>‖S − Ŝ‖ / ‖S‖ after each block, on all calibration tokens{scale}. S: the \
         original model's hidden states, Ŝ: the quantized model's.</figcaption>\n{plots}<div>\n\
         <p class=\"legend-head\"><span>run</span><span>after the last block</span></p>\n{}</div>\n</figure>\n",
        page.selection(),
        legend("legend", entries)
    ))
}
