//! One run in the block loop: its options, its quantized stream, its output and journal, and its report so far.
//!
//! `pipeline` holds one [`Run`] for each job and calls it at every stop of a block and at the end of the block. A run
//! gathers statistics, has the group solver of `quant` correct and round the weights, takes its stream on, and measures
//! errors.

use std::collections::BTreeMap;

use super::fold::{BlockResults, Producer};
use super::journal::{BlockRecord, Journal};
use super::stop::{Stop, WeightsByNode};
use super::stream::Stream;
use super::sums::{Sums, relative};
use super::{Job, Output, Treatment};
use crate::device::{Recorder, Tensor};
use crate::observer::Observer;
use crate::ops::matmul::{Orientation, matmul};
use crate::ops::reduce::{squared_difference, sum_squares};
use crate::quant::methods::{Feasible, Layer};
use crate::quant::solve::{GroupSolver, GroupStatistics, Linear, RoundedLayer};
use crate::quant::{Quantities, QuantizeOptions, Statistics};
use crate::record::{BlockReport, LayerReport, Phase, Report};
use crate::stored::StoredLinear;
use crate::{Error, Result};

/// About the number of logits that are computed at a time when the output matrix is measured. The matrix has many rows,
/// so the logits of a whole chunk would take too much memory.
const LOGITS_AT_ONCE: usize = 1 << 24;

/// Computes X·Wᵀ for the rows `first..first + rows` of X. `x`: X, `[tokens, columns]`; `weight`: W, `[m, columns]`.
/// Returns `[rows, m]`.
fn project_rows(rec: &mut Recorder, (x, weight): (&Tensor, &Tensor), first: usize, rows: usize) -> Result<Tensor> {
    let x = rec.copy_rows(x, first, rows)?;
    matmul(rec, Orientation::Nt, &x, weight)
}

/// A run on its way through the blocks.
pub(super) struct Run<'a> {
    options: &'a QuantizeOptions,
    output: &'a mut dyn Output,
    journal: Option<&'a mut dyn Journal>,
    /// Ŝ, the quantized stream.
    pub stream: Stream,
    pub report: Report,
    block: BlockInHand,
    /// Seconds per phase of the earlier runs that this run continues, from the last record that was read.
    earlier_seconds: BTreeMap<Phase, f64>,
    /// The error that ended this run.
    failure: Option<Error>,
}

/// The results of a run in the current block.
#[derive(Default)]
struct BlockInHand {
    /// The record of the block, if an earlier run finished it.
    record: Option<BlockRecord>,
    /// The results that are not handed to the output yet.
    results: BlockResults,
    /// The weights of those earlier stops through which Ŝ passes again, by node.
    weights: WeightsByNode,
    /// The weights that Ŝ passed through, by module path, for the journal.
    stream_weights: Vec<(String, Vec<f32>)>,
}

impl BlockInHand {
    /// The weights of the earlier stop at `node` that Ŝ passes through.
    fn earlier_weights<'w>(&'w self, stop: &'w Stop<'_>, node: usize) -> &'w [Tensor] {
        self.weights.get(&node).unwrap_or(&stop.earlier[&node])
    }
}

/// The linear layers of one stop after quantization in one run. The default is a group that keeps its original weights.
#[derive(Default)]
pub(super) struct QuantizedGroup {
    /// The quantized layers, each with its index in the group.
    layers: Vec<(usize, RoundedLayer)>,
    /// The norm or linear layer that takes the inverse scales of the input.
    producer: Option<Producer>,
    /// The weights of all layers of the stop that Ŝ passes through, `[rows, columns]` each. `None` if the run keeps the
    /// original weights.
    weights: Option<Vec<Tensor>>,
}

impl QuantizedGroup {
    /// The weights that the quantized stream passes through at `stop`.
    fn weights<'a>(&'a self, stop: &'a Stop<'_>) -> &'a [Tensor] {
        self.weights.as_deref().unwrap_or(stop.weights)
    }
}

impl<'a> Run<'a> {
    /// A run before its first block. `stream`: Ŝ, which equals S there.
    pub fn new(job: Job<'a>, stream: Stream, report: Report) -> Self {
        Self {
            options: job.options,
            output: job.output,
            journal: job.journal,
            stream,
            report,
            block: BlockInHand::default(),
            earlier_seconds: BTreeMap::new(),
            failure: None,
        }
    }

    /// The number of blocks that have a record from an earlier run.
    pub fn recorded(&self) -> usize {
        self.journal.as_ref().map_or(0, |journal| journal.blocks())
    }

    /// Begins block `layer`, and reads its record if there is one.
    pub fn begin_block(&mut self, layer: usize) -> Result<()> {
        let record = match &mut self.journal {
            Some(journal) if layer < journal.blocks() => Some(journal.read(layer)?),
            _ => None,
        };
        self.block = BlockInHand { record, ..BlockInHand::default() };
        Ok(())
    }

    /// Whether no error has ended the run.
    pub fn is_active(&self) -> bool {
        self.failure.is_none()
    }

    /// Ends this run if `result` is an `Error::NotFinite`, and frees its stream. The other runs of the session
    /// continue. Errors: all other errors, which end the whole session.
    pub fn absorb_failure<T: Default>(&mut self, result: Result<T>) -> Result<T> {
        match result {
            Err(error @ Error::NotFinite { .. }) => {
                self.failure = Some(error);
                self.stream = Stream::default();
                Ok(T::default())
            }
            other => other,
        }
    }

    /// Returns the report, or the error that ended the run. `unbooked`: seconds of this run that are booked under no
    /// phase.
    pub fn finish(mut self, unbooked: f64) -> Result<Report> {
        self.report.seconds = self.seconds();
        self.report.total_seconds = self.report.seconds.values().sum::<f64>() + unbooked;
        self.failure.map_or(Ok(self.report), Err)
    }

    /// Booked seconds, without those of earlier runs.
    pub fn booked(&self) -> f64 {
        self.report.seconds.values().sum()
    }

    /// Seconds per phase, including those of earlier runs.
    fn seconds(&self) -> BTreeMap<Phase, f64> {
        let mut all = self.earlier_seconds.clone();
        for (&phase, seconds) in &self.report.seconds {
            *all.entry(phase).or_default() += seconds;
        }
        all
    }

    /// Quantizes the linear layers of `stop`. If the block has a record, takes the weights from the record. If the
    /// options leave the block or all layers of the stop alone, returns the default group.
    pub async fn quantize(
        &mut self,
        rec: &mut Recorder,
        stop: &Stop<'_>,
        full: &Stream,
        observer: &mut dyn Observer,
    ) -> Result<QuantizedGroup> {
        if self.options.blocks.is_some_and(|blocks| stop.layer >= blocks) {
            return Ok(QuantizedGroup::default());
        }
        if let Some(record) = &self.block.record {
            let layers = stop.specs.iter().zip(stop.weights);
            let weights = layers.map(|(spec, original)| match record.stream_weight(&spec.name) {
                Some(weight) => rec.upload(original.shape(), weight),
                None => rec.duplicate(original),
            });
            return Ok(QuantizedGroup { weights: Some(weights.collect::<Result<_>>()?), ..QuantizedGroup::default() });
        }
        let treatment = Treatment::new(self.options, stop.checkpoint.config());
        let (mut places, mut linears) = (Vec::new(), Vec::new());
        for (place, (spec, weight)) in stop.specs.iter().zip(stop.weights).enumerate() {
            if let Some(bits) = treatment.bits_of(spec) {
                let plain = || treatment.settings().grid(spec.columns, bits);
                let grid = self.output.grid(&spec.name).unwrap_or_else(plain);
                let alpha = self.options.alpha.of(&spec.name);
                places.push(place);
                linears.push(Linear { layer: Layer { name: &spec.name, grid }, weight, alpha });
            }
        }
        if linears.is_empty() {
            return Ok(QuantizedGroup::default());
        }
        let fold = match stop.group {
            Some(_) => treatment.fold(stop.layer, stop.cut.node),
            // The head has no producer to fold scales into.
            None => None,
        };
        let producer = match fold {
            Some(fold) => Producer::read(stop.checkpoint, stop.layer, &fold, &self.block.results).await?,
            None => None,
        };
        let mut layers = self.quantize_linears(rec, stop, full, producer.as_ref(), &linears, observer).await?;
        let mut weights: Vec<Tensor> = stop.weights.iter().map(|w| rec.duplicate(w)).collect::<Result<_>>()?;
        for (&place, layer) in places.iter().zip(&mut layers) {
            weights[place] = std::mem::replace(&mut layer.dequantized, rec.empty(&[0])?);
        }
        Ok(QuantizedGroup { layers: places.into_iter().zip(layers).collect(), producer, weights: Some(weights) })
    }

    /// Gathers statistics if they are needed, and corrects and rounds `linears`, the layers of `stop` that this run
    /// quantizes. Books the time of each phase. `producer`: what takes the inverse scales of the input, if the input
    /// can take scales.
    async fn quantize_linears(
        &mut self,
        rec: &mut Recorder,
        stop: &Stop<'_>,
        full: &Stream,
        producer: Option<&Producer>,
        linears: &[Linear<'_>],
        observer: &mut dyn Observer,
    ) -> Result<Vec<RoundedLayer>> {
        let feasible = producer.map(|producer| |wanted: &[f32]| producer.feasible(wanted));
        let solver = GroupSolver {
            options: self.options,
            feasible: feasible.as_ref().map(|feasible| feasible as Feasible<'_>),
            place: &stop.place,
        };
        let to_round = match solver.quantities(linears) {
            None => solver.uncorrected(linears),
            Some(quantities) => {
                stop.announce(Phase::Statistics, observer);
                let since = observer.seconds();
                let n = linears[0].weight.shape()[1];
                let statistics = self.gather(rec, stop, full, (n, quantities), observer)?;
                self.book_since(rec, Phase::Statistics, since, observer).await?;
                stop.announce(Phase::Correction, observer);
                let since = observer.seconds();
                let corrected = solver.correct(rec, linears, statistics).await?;
                self.book_since(rec, Phase::Correction, since, observer).await?;
                corrected
            }
        };
        stop.announce(Phase::Rounding, observer);
        let since = observer.seconds();
        let layers = to_round.round(rec).await?;
        self.book_since(rec, Phase::Rounding, since, observer).await?;
        Ok(layers)
    }

    /// Accumulates the statistics of the input of `stop` over all chunks, separately for the fitting tokens and the
    /// held-out tokens. `n`: columns of the input.
    fn gather(
        &self,
        rec: &mut Recorder,
        stop: &Stop<'_>,
        full: &Stream,
        (n, quantities): (usize, Quantities),
        observer: &dyn Observer,
    ) -> Result<GroupStatistics> {
        let mut fitting = Statistics::zeros(rec, n, quantities)?;
        let mut held_out = if stop.holds_out() { Some(Statistics::zeros(rec, n, quantities)?) } else { None };
        for chunk in 0..stop.chunks {
            observer.go_on()?;
            let part = if chunk < stop.held_out_from { Some(&mut fitting) } else { held_out.as_mut() };
            if let Some(part) = part {
                let exact = full.input(rec, chunk, stop, |node| &stop.earlier[&node])?;
                let quantized = self.stream.input(rec, chunk, stop, |node| self.block.earlier_weights(stop, node))?;
                part.accumulate(rec, &exact, &quantized)?;
            }
        }
        Ok(GroupStatistics { fitting, held_out })
    }

    /// Takes chunk number `chunk` from `stop` to the next cut, through the weights of `group`. Adds ‖WX − QX̂‖² of each
    /// quantized layer to `errors`. `exact`: WX of each linear layer, from the full-precision stream.
    pub async fn advance(
        &mut self,
        rec: &mut Recorder,
        stop: &Stop<'_>,
        chunk: usize,
        (exact, group): (&[Tensor], &QuantizedGroup),
        errors: &mut Sums,
    ) -> Result<()> {
        let Self { stream, block, .. } = self;
        let lane = stream.take_lane(rec, chunk, stop, |node| block.earlier_weights(stop, node))?;
        let approximate = stop.block.project(rec, group.weights(stop), lane.get(stop.input()))?;
        for &(place, _) in &group.layers {
            errors.add(place, stop.part(chunk), squared_difference(rec, &exact[place], &approximate[place])?);
        }
        let arrived = stop.run_to_next_cut(rec, approximate, lane)?;
        stream.keep(rec, chunk, arrived).await
    }

    /// Finishes a group: folds the scales of its input, records the measured errors of its layers, and keeps its
    /// weights if chunks pass through them again (`again`). `errors`: the sums ‖WX − QX̂‖² of the quantized layers;
    /// `norms`: ‖WX‖² of every layer of the stop, over the fitting and over the held-out tokens.
    pub async fn finish_group(
        &mut self,
        rec: &mut Recorder,
        stop: &Stop<'_>,
        group: QuantizedGroup,
        (errors, norms): (Sums, &[[f64; 2]]),
        again: bool,
    ) -> Result<()> {
        let QuantizedGroup { layers, producer, weights } = group;
        let scales = layers.first().and_then(|(_, layer)| layer.input_scales.as_ref());
        if let Some((producer, scales)) = producer.zip(scales) {
            producer.fold(&scales.scales, &mut self.block.results);
        }
        if self.journal.is_some() && stop.group.is_some() {
            for (place, layer) in &layers {
                let weight = &weights.as_ref().expect("a group with quantized layers has weights")[*place];
                self.block.stream_weights.push((layer.stored.name().to_string(), rec.read(weight).await?));
            }
        }
        if let Some(weights) = weights.filter(|_| again) {
            self.block.weights.insert(stop.cut.node, weights);
        }
        let errors = errors.read(rec, norms.len()).await?;
        let measured = layers.into_iter().map(|(place, layer)| (layer, errors[place], norms[place]));
        self.record_layers(measured.collect(), stop.holds_out())
    }

    /// Adds the layers to the report and to the results of the block. Each layer comes with ‖WX − QX̂‖² and ‖WX‖², over
    /// the fitting and over the held-out tokens.
    ///
    /// Errors: `Error::NotFinite` naming the layer if a relative error is not finite.
    fn record_layers(&mut self, measured: Vec<(RoundedLayer, [f64; 2], [f64; 2])>, holds_out: bool) -> Result<()> {
        for (layer, errors, norms) in measured {
            let mut report = LayerReport::new(&layer, self.options.correction_damping);
            report.error_fitted = relative(errors[0], norms[0], &report.name)?;
            if holds_out {
                report.error_held_out = Some(relative(errors[1], norms[1], &report.name)?);
                let before = layer.alpha.score_gain.map(|gain| (errors[1] + gain) / norms[1]);
                report.error_held_out_uncorrected = before.filter(|error| error.is_finite());
            }
            self.report.layers.push(report);
            self.block.results.linears.push(layer.stored);
        }
        Ok(())
    }

    /// Hands the results of the block to the output.
    pub async fn hand_over(&mut self) -> Result<()> {
        let BlockResults { tensors, linears } = std::mem::take(&mut self.block.results);
        for (name, values) in tensors {
            self.output.put_tensor(name, values)?;
        }
        for linear in linears {
            self.output.put(linear).await?;
        }
        Ok(())
    }

    /// Writes the record of the finished block to the journal, if there is one.
    fn journal_block(&mut self, block: &BlockReport) -> Result<()> {
        let seconds = self.seconds();
        let Some(journal) = &mut self.journal else { return Ok(()) };
        let BlockResults { tensors, linears } = self.block.results.clone();
        let is_stored = |name: &str, weight: &[f32]| {
            let stored = linears.iter().find(|linear| linear.name() == name).map(StoredLinear::dequantize);
            stored.is_some_and(|stored| same_bits(&stored, weight))
        };
        let mut stream = std::mem::take(&mut self.block.stream_weights);
        stream.retain(|(name, weight)| !is_stored(name, weight));
        let layers = self.report.layers[self.report.layers.len() - linears.len()..].to_vec();
        journal.write(&BlockRecord { block: block.clone(), layers, seconds, tensors, linears, stream })
    }

    /// Takes the results of a block from its record. Returns the error of the quantized stream after the block.
    fn adopt_record(&mut self, record: BlockRecord) -> f64 {
        let BlockRecord { block, layers, seconds, tensors, linears, stream: _ } = record;
        let error = block.error;
        self.report.blocks.push(block);
        self.report.layers.extend(layers);
        self.earlier_seconds = seconds;
        self.block.results = BlockResults { tensors, linears };
        error
    }

    /// Whether this run quantizes the output matrix.
    pub fn quantizes_head(&self) -> bool {
        self.options.lm_head && self.options.blocks.is_none()
    }

    /// Quantizes the output matrix, which is the one linear layer of `stop`, and hands it to the output. Does nothing
    /// if this run does not quantize it. No stream moves on. The logits are computed for a few tokens at a time, only
    /// to measure the errors.
    pub async fn quantize_head(
        &mut self,
        rec: &mut Recorder,
        stop: &Stop<'_>,
        full: &Stream,
        observer: &mut dyn Observer,
    ) -> Result<()> {
        if !self.quantizes_head() {
            return Ok(());
        }
        self.block = BlockInHand::default();
        let group = self.quantize(rec, stop, full, observer).await?;
        if group.layers.is_empty() {
            return Ok(());
        }
        let ([weight], [rounded]) = (stop.weights, group.weights(stop)) else { unreachable!("the head has one layer") };
        let since = observer.seconds();
        let (mut errors, mut norms) = (Sums::default(), Sums::default());
        for chunk in 0..stop.chunks {
            let exact_input = full.input(rec, chunk, stop, |node| &stop.earlier[&node])?;
            let quantized_input = self.stream.input(rec, chunk, stop, |node| &stop.earlier[&node])?;
            let tokens = exact_input.shape()[0];
            let piece = (LOGITS_AT_ONCE / weight.shape()[0]).max(1);
            for first in (0..tokens).step_by(piece) {
                let rows = piece.min(tokens - first);
                let exact = project_rows(rec, (&exact_input, weight), first, rows)?;
                let approximate = project_rows(rec, (&quantized_input, rounded), first, rows)?;
                errors.add(0, stop.part(chunk), squared_difference(rec, &exact, &approximate)?);
                norms.add(0, stop.part(chunk), sum_squares(rec, &exact)?);
            }
        }
        let norms = norms.read(rec, 1).await?;
        self.book_since(rec, Phase::Forward, since, observer).await?;
        self.finish_group(rec, stop, group, (errors, &norms), false).await?;
        self.hand_over().await
    }

    /// Measures Δ_m = ‖S − Ŝ‖²/‖S‖² over all calibration tokens after block number `block`, adds it to the report, and
    /// writes the record of the block. For a recorded block, takes the results from the record instead. `norm`: ‖S‖².
    /// Returns the square root of Δ_m.
    pub async fn measure_block(
        &mut self,
        rec: &mut Recorder,
        block: usize,
        full: &Stream,
        norm: f64,
    ) -> Result<Option<f64>> {
        if let Some(record) = self.block.record.take() {
            return Ok(Some(self.adopt_record(record)));
        }
        let mut error = Sums::default();
        for chunk in 0..full.chunks() {
            let (full, quantized) = (full.hidden(rec, chunk)?, self.stream.hidden(rec, chunk)?);
            error.add(0, 0, squared_difference(rec, &full, &quantized)?);
        }
        let error = error.read(rec, 1).await?[0][0];
        let delta = relative(error, norm, &format!("the hidden states after block {block}"))?;
        let report = BlockReport { block, delta, error: delta.sqrt() };
        self.journal_block(&report)?;
        self.report.blocks.push(report);
        Ok(Some(delta.sqrt()))
    }

    /// Books seconds under `phase`.
    pub fn book(&mut self, phase: Phase, seconds: f64) {
        *self.report.seconds.entry(phase).or_default() += seconds;
    }

    /// Waits for the device and books the time since `since` under `phase`.
    async fn book_since(
        &mut self,
        rec: &mut Recorder,
        phase: Phase,
        since: f64,
        observer: &mut dyn Observer,
    ) -> Result<()> {
        rec.finish().await?;
        self.book(phase, observer.seconds() - since);
        Ok(())
    }
}

/// Whether both slices have the same bits, including the signs of zeros.
fn same_bits(a: &[f32], b: &[f32]) -> bool {
    bytemuck::cast_slice::<f32, u32>(a) == bytemuck::cast_slice::<f32, u32>(b)
}
