//! What became of each layer: its error before and after the correction, and its α, kind by kind over the blocks.

use super::numbers::{self, optional, significant};
use super::table::Table;
use super::{Escaped, Page, legend};
use crate::Result;
use crate::quant::Alpha;
use crate::report::plots::{Axis, Curve, Ink, Plot};
use crate::report::{LayerReport, Run};

const SIZE: (u32, u32) = (420, 165);
const STORED: Ink = Ink::Series(0);
/// This many runs are shown at once; the others are folded away.
const OPEN: usize = 2;

/// The section.
pub fn section(page: &Page<'_>) -> Result<String> {
    let drawn: Vec<_> = page.drawn().filter(|(run, ..)| !run.report.layers.is_empty()).collect();
    let layers = || drawn.iter().flat_map(|(run, ..)| &run.report.layers);
    let errors = layers().flat_map(|layer| [Some(error(layer)), layer.error_held_out_uncorrected]).flatten();
    let axes = Axes {
        error: Axis::fitting(errors.collect::<Vec<_>>().into_iter()),
        alpha: Axis::from_zero(1.0),
        blocks: layers().filter_map(place).map(|(block, _)| block.saturating_add(1)).max().unwrap_or(0),
    };
    if drawn.is_empty() {
        return Ok(super::section("Layers", "<p>No layer was measured.</p>\n"));
    }
    let mut body = page.selection();
    if drawn.len() > 1 {
        body += "<p>The scales are the same for all runs.</p>\n";
    }
    for (position, (run, label, _)) in drawn.iter().enumerate() {
        let one = run_body(run, &axes)?;
        body += &if drawn.len() == 1 {
            one
        } else {
            let open = if position < OPEN { " open" } else { "" };
            format!("<details{open}>\n<summary>{label}</summary>\n{one}</details>\n")
        };
    }
    Ok(super::section("Layers", &body))
}

/// The same for all runs of a page, so that they can be compared.
struct Axes {
    error: Axis,
    alpha: Axis,
    blocks: usize,
}

/// The error on held-out tokens, or else on those that were fitted: [`basis`] says which.
fn error(layer: &LayerReport) -> f64 {
    layer.error_held_out.unwrap_or(layer.error_fitted)
}

/// Block and kind of a layer: its path has the number of the block, and ends in the kind.
fn place(layer: &LayerReport) -> Option<(usize, &str)> {
    let block = layer.name.split('.').find_map(|part| part.parse().ok())?;
    Some((block, layer.name.rsplit('.').next()?))
}

/// The kinds of layers, in execution order, each with its layers by block.
fn kinds(layers: &[LayerReport]) -> Vec<(&str, Vec<(usize, &LayerReport)>)> {
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

fn run_body(run: &Run, axes: &Axes) -> Result<String> {
    let layers = &run.report.layers;
    let corrected = layers.iter().any(|layer| layer.alpha_requested != Alpha::Off);
    let mut rows = String::new();
    for (kind, members) in kinds(layers) {
        let name = kind.strip_suffix("_proj").unwrap_or(kind);
        let errors = figure(&format!("{name}: error"), &error_curves(&members), &axes.error, axes.blocks)?;
        let alphas = if corrected {
            figure(&format!("{name}: α"), &alpha_curves(&members), &axes.alpha, axes.blocks)?
        } else {
            String::new()
        };
        rows += &format!("<div class=\"pair\">\n{errors}{alphas}</div>\n");
    }
    let name = |text| Escaped(text);
    let errors = [(STORED, name("error of the stored layer"), String::new())].into_iter();
    let tried = layers.iter().any(|layer| layer.error_held_out_uncorrected.is_some());
    let before = tried.then(|| (Ink::Reference, name("error had it not been corrected"), String::new()));
    let entries: Vec<_> = if corrected {
        let measured = layers.iter().any(|layer| layer.alpha_optimal.is_some());
        let alphas = (STORED, name("α of the stored layer"), String::new());
        let best = measured.then(|| (Ink::Reference, name("α*, best for this layer alone"), String::new()));
        errors.chain(before).chain([alphas]).chain(best).collect()
    } else {
        errors.chain(before).collect()
    };
    let scale = if axes.error.is_logarithmic() { " Logarithmic scale." } else { "" };
    Ok(format!(
        "<p>{}{scale}</p>\n{}<div class=\"{}\">\n{rows}</div>\n{}",
        basis(run, corrected),
        legend(entries),
        if corrected { "pairs" } else { "pairs single" },
        figures(layers)
    ))
}

/// What the errors are measured on, and what is not there.
fn basis(run: &Run, corrected: bool) -> String {
    let report = &run.report;
    let held_out = report.layers.iter().all(|layer| layer.error_held_out.is_some());
    let mut text = "‖WX − QX̂‖² / ‖WX‖² ".to_string();
    text += &if held_out {
        format!("on {} held-out tokens.", report.held_out_tokens)
    } else {
        "on the tokens that the layer was fitted on: none were held out, so this is too favourable.".to_string()
    };
    if !corrected {
        text += " No correction was asked for, so there is no α to show, and nothing to compare with.";
    }
    text
}

fn error_curves(members: &[(usize, &LayerReport)]) -> [Curve; 2] {
    let before = members.iter().filter_map(|(block, layer)| Some((*block, layer.error_held_out_uncorrected?)));
    let stored = members.iter().map(|(block, layer)| (*block, error(layer)));
    [Curve { ink: Ink::Reference, points: before.collect() }, Curve { ink: STORED, points: stored.collect() }]
}

fn alpha_curves(members: &[(usize, &LayerReport)]) -> [Curve; 2] {
    let best = members.iter().filter_map(|(block, layer)| Some((*block, layer.alpha_optimal?)));
    let used = members.iter().map(|(block, layer)| (*block, layer.alpha));
    [Curve { ink: Ink::Reference, points: best.collect() }, Curve { ink: STORED, points: used.collect() }]
}

fn figure(caption: &str, curves: &[Curve], axis: &Axis, blocks: usize) -> Result<String> {
    let description = format!("{caption}, over the blocks; the figures are in the table below");
    let plot = Plot { size: SIZE, blocks, axis, curves, description: &description };
    Ok(format!("<figure>\n<figcaption>{}</figcaption>\n{}</figure>\n", Escaped(caption), plot.svg()?))
}

/// All figures, folded away.
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
