//! How the error of the first blocks grows through the others, with and without propagation (Fig. 2 of arXiv 2504.09629).

use crate::device::Recorder;
use crate::observer::Observer;
use crate::pipeline::{Job, quantize_together};
use crate::quant::{Alpha, QuantizeOptions};
use crate::report::Run;
use crate::stored::Replacements;
use crate::{Checkpoint, Result};

/// Quantizes `model` twice at once, without correction and with that of `options`, and discards the layers. `options.blocks` is
/// the number of blocks to quantize; errors are measured after all of them.
///
/// Returns the run without correction, then the corrected one. Errors: those of [`quantize_together`].
pub async fn error_growth(
    rec: &mut Recorder,
    model: &Checkpoint,
    windows: &[Vec<u32>],
    options: &QuantizeOptions,
    observer: &mut dyn Observer,
) -> Result<[Run; 2]> {
    let mut plain = options.clone();
    plain.alpha.default = Alpha::Off;
    plain.alpha.overrides.clear();
    let (mut layers, mut corrected_layers) = (Replacements::new(), Replacements::new());
    let jobs = vec![Job::new(&plain, &mut layers), Job::new(options, &mut corrected_layers)];
    let mut reports = quantize_together(rec, model, windows, jobs, observer).await?;
    let (corrected, plain) = (reports.swap_remove(1), reports.swap_remove(0));
    let label = format!("α {}", options.alpha.default);
    Ok([Run::new("α off", model.name(), plain?), Run::new(label, model.name(), corrected?)])
}
