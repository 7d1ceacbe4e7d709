//! The error of each layer before and after the correction, and its α: a plot over the blocks for each kind of layer.

use super::numbers::{self, optional, significant};
use super::table::Table;
use super::{Escaped, Page, legend};
use crate::Result;
use crate::quant::Alpha;
use crate::record::LayerReport;
use crate::report::Run;
use crate::report::plots::{Axis, Curve, Ink, Plot};

const SIZE: (u32, u32) = (420, 165);

/// The section of layers: all runs in the same plots, then each run by itself.
pub fn section(page: &Page<'_>) -> Result<String> {
    let drawn: Vec<_> = page.drawn().filter(|(run, ..)| !run.report.layers.is_empty()).collect();
    if drawn.is_empty() {
        return Ok(super::section("Layers", "<p>No layer was measured.</p>\n"));
    }
    let axes = Axes::new(drawn.iter().flat_map(|(run, ..)| &run.report.layers));
    let mut body = page.selection();
    if let [(run, _, ink)] = drawn[..] {
        body += &alone(run, ink, &axes)?;
        return Ok(super::section("Layers", &body));
    }
    body += &together(&drawn, &axes)?;
    for (run, label, ink) in drawn {
        body += &format!("<details>\n<summary>{label}</summary>\n{}</details>\n", alone(run, ink, &axes)?);
    }
    Ok(super::section("Layers", &body))
}

/// The axes that all runs of a page share, so that they can be compared.
struct Axes<'a> {
    /// The axis of errors for each kind of layer, in execution order.
    errors: Vec<(&'a str, Axis)>,
    alpha: Axis,
    blocks: usize,
}

impl<'a> Axes<'a> {
    fn new(layers: impl Iterator<Item = &'a LayerReport> + Clone) -> Self {
        let axis = |(kind, members): (&'a str, Vec<(usize, &LayerReport)>)| {
            let both = |(_, layer): &(usize, &LayerReport)| [Some(error(layer)), layer.error_held_out_uncorrected];
            let mut errors: Vec<f64> = members.iter().flat_map(both).flatten().collect();
            errors.sort_by(f64::total_cmp);
            (kind, Axis::fitting(&errors, errors[errors.len() / 2]))
        };
        Self {
            errors: kinds(layers.clone()).into_iter().map(axis).collect(),
            alpha: Axis::from_zero(1.0),
            blocks: layers.filter_map(place).map(|(block, _)| block.saturating_add(1)).max().unwrap_or(0),
        }
    }

    fn error_plot(&self, kind: &str, curves: &[Curve]) -> Result<String> {
        let Some((_, axis)) = self.errors.iter().find(|(name, _)| *name == kind) else { return Ok(String::new()) };
        let scale = if axis.is_logarithmic() { ", logarithmic scale" } else { "" };
        figure(&format!("{}: error{scale}", short(kind)), curves, axis, self.blocks)
    }
}

/// The error on held-out tokens, or on the fitted ones if none were held out. The text above the plots says which it is.
fn error(layer: &LayerReport) -> f64 {
    layer.error_held_out.unwrap_or(layer.error_fitted)
}

/// Block and kind of a layer, from its path, which has the number of the block in it and ends in the kind.
fn place(layer: &LayerReport) -> Option<(usize, &str)> {
    let block = layer.name.split('.').find_map(|part| part.parse().ok())?;
    Some((block, layer.name.rsplit('.').next()?))
}

/// The kinds of layers, in execution order, each with its layers and their blocks.
fn kinds<'a>(layers: impl Iterator<Item = &'a LayerReport>) -> Vec<(&'a str, Vec<(usize, &'a LayerReport)>)> {
    let mut kinds: Vec<(&str, Vec<(usize, &LayerReport)>)> = Vec::new();
    for layer in layers {
        let Some((block, kind)) = place(layer) else { continue };
        match kinds.iter_mut().find(|(name, _)| *name == kind) {
            Some((_, members)) => members.push((block, layer)),
            None => kinds.push((kind, vec![(block, layer)])),
        }
    }
    kinds
}

fn short(kind: &str) -> &str {
    kind.strip_suffix("_proj").unwrap_or(kind)
}

fn curve(ink: Ink, members: &[(usize, &LayerReport)], value: impl Fn(&LayerReport) -> Option<f64>) -> Curve {
    let mut points: Vec<_> = members.iter().filter_map(|(block, layer)| Some((*block, value(layer)?))).collect();
    points.sort_by_key(|point| point.0);
    Curve { ink, points }
}

/// Plots of the stored layers of all runs, one for each kind.
fn together(drawn: &[(&Run, Escaped<'_>, Ink)], axes: &Axes<'_>) -> Result<String> {
    let mut plots = String::new();
    for (kind, _) in &axes.errors {
        let of_kind = |&(run, _, ink): &(&Run, Escaped<'_>, Ink)| {
            let kinds = kinds(run.report.layers.iter());
            let (_, members) = kinds.into_iter().find(|(name, _)| name == kind)?;
            Some(curve(ink, &members, |layer| Some(error(layer))))
        };
        let curves: Vec<Curve> = drawn.iter().filter_map(of_kind).collect();
        plots += &axes.error_plot(kind, &curves)?;
    }
    let fitted = |&(run, label, _): &(&Run, Escaped<'_>, Ink)| (!held_out(run)).then(|| label.to_string());
    let fitted: Vec<String> = drawn.iter().filter_map(fitted).collect();
    let exception = match fitted.is_empty() {
        true => String::new(),
        false => format!(", but on the tokens that were fitted in {}", fitted.join(", ")),
    };
    let entries = drawn.iter().map(|&(_, label, ink)| (ink, label, String::new()));
    Ok(format!(
        "<p>‖WX − QX̂‖² / ‖WX‖² of the stored layers on held-out tokens{exception}. The scales are those of the plots \
         of single runs below.</p>\n{}<div class=\"pairs single\">\n{plots}</div>\n",
        legend("legend", entries)
    ))
}

/// Plots of one run: for each kind the errors before and after the correction, and α. Then all figures.
fn alone(run: &Run, ink: Ink, axes: &Axes<'_>) -> Result<String> {
    let layers = &run.report.layers;
    let corrected = layers.iter().any(|layer| layer.alpha_requested != Alpha::Off);
    let mut plots = String::new();
    for (kind, members) in kinds(layers.iter()) {
        let before = curve(Ink::Reference, &members, |layer| layer.error_held_out_uncorrected);
        let stored = curve(ink, &members, |layer| Some(error(layer)));
        plots += &axes.error_plot(kind, &[before, stored])?;
        if corrected {
            let best = curve(Ink::Reference, &members, |layer| layer.alpha_optimal);
            let used = curve(ink, &members, |layer| Some(layer.alpha));
            plots += &figure(&format!("{}: α", short(kind)), &[best, used], &axes.alpha, axes.blocks)?;
        }
    }
    let class = if corrected { "pairs" } else { "pairs single" };
    Ok(format!("{}<div class=\"{class}\">\n{plots}</div>\n{}", introduction(run, ink, corrected), figures(layers)))
}

fn held_out(run: &Run) -> bool {
    run.report.layers.iter().all(|layer| layer.error_held_out.is_some())
}

/// The text above the plots of a run: the tokens of the measurement, the legend, and what is missing.
fn introduction(run: &Run, ink: Ink, corrected: bool) -> String {
    let basis = match held_out(run) {
        true => format!("on {} held-out tokens", run.report.held_out_tokens),
        false => "on the tokens that were fitted: none were held out, so it is too favourable".to_string(),
    };
    let absence = match corrected {
        true => "",
        false => " No correction was asked for, so there is no α, and no error to compare with.",
    };
    let has =
        |value: &dyn Fn(&LayerReport) -> Option<f64>| run.report.layers.iter().any(|layer| value(layer).is_some());
    let before = has(&|layer| layer.error_held_out_uncorrected).then_some("its error had it not been corrected");
    let best = has(&|layer| layer.alpha_optimal).then_some("α*, the best for this layer alone");
    let reference: Vec<&str> = before.into_iter().chain(best).collect();
    let stored = if corrected { "the stored layer: its error, its α" } else { "the stored layer" };
    let reference = reference.join("; ");
    let entries =
        [(ink, stored), (Ink::Reference, reference.as_str())].into_iter().filter(|(_, text)| !text.is_empty());
    let entries = entries.map(|(ink, text)| (ink, Escaped(text), String::new()));
    format!("<p>Error: ‖WX − QX̂‖² / ‖WX‖² {basis}.{absence}</p>\n{}", legend("legend", entries))
}

fn figure(caption: &str, curves: &[Curve], axis: &Axis, blocks: usize) -> Result<String> {
    let description = format!("{caption}, over the blocks; the figures are in the table below");
    let plot = Plot { size: SIZE, blocks, axis, curves, description: &description };
    Ok(format!("<figure>\n<figcaption>{}</figcaption>\n{}</figure>\n", Escaped(caption), plot.svg()?))
}

/// All figures as a table that is folded at first.
fn figures(layers: &[LayerReport]) -> String {
    let head = [
        "layer",
        "α asked for",
        "α*",
        "α",
        "guarded",
        "error",
        "uncorrected",
        "error, fitted",
        "ridge of the correction",
        "ridge of the rounding",
    ];
    let row = |layer: &LayerReport| {
        vec![
            layer.name.clone(),
            numbers::alpha(layer.alpha_requested),
            optional(layer.alpha_optimal),
            significant(layer.alpha),
            if layer.guarded { "yes" } else { "no" }.to_string(),
            optional(layer.error_held_out),
            optional(layer.error_held_out_uncorrected),
            significant(layer.error_fitted),
            layer.correction_damping.to_string(),
            layer.rounding_damping.map_or("–".to_string(), |value| value.to_string()),
        ]
    };
    let table = Table { head: head.map(String::from).to_vec(), rows: layers.iter().map(row).collect() };
    format!(
        "<details class=\"figures\">\n<summary>All layers in figures</summary>\n{}</details>\n",
        table.html("layers")
    )
}
