//! One run of those in hand: its options, its stream, and what it has found so far.

use std::collections::BTreeMap;

use super::fold::{Finished, Producer};
use super::journal::{BlockRecord, Journal};
use super::stream::{Origin, Stream};
use super::sums::Sums;
use super::{Job, Output};
use crate::checkpoint::Checkpoint;
use crate::device::Recorder;
use crate::engine::block::{Block, Context, Stage};
use crate::family::LinearSpec;
use crate::observer::{Event, Observer};
use crate::ops::matmul::{Orientation, matmul};
use crate::ops::reduce::{squared_difference, sum_squares};
use crate::quant::methods::{Feasible, Layer};
use crate::quant::solve::{GroupSolver, GroupStatistics, Linear, RoundedLayer};
use crate::quant::{Quantities, QuantizeOptions, Statistics};
use crate::record::Phase;
use crate::record::{BlockReport, LayerReport, Report, group_name};
use crate::stored::StoredLinear;
use crate::tensor::Tensor;
use crate::{Error, Result};

/// A block in hand, with the names and original weights of its linears, and the full-precision stream inside it.
pub(super) struct Open<'a> {
    pub index: usize,
    pub checkpoint: &'a Checkpoint,
    pub block: &'a Block,
    pub specs: &'a [LinearSpec],
    pub weights: &'a [Tensor],
    pub full: Stream,
    /// The chunks from this one on are held out.
    pub held_out_from: usize,
}

/// A group of linears that read the same input, and that input in the full-precision stream.
pub(super) struct Group<'a> {
    /// For errors.
    pub place: String,
    /// Block and stage; `None` for the output matrix.
    pub at: Option<(usize, Stage)>,
    pub full: &'a Stream,
    /// Where that stream gets the input from.
    pub origin: Origin<'a>,
    /// The chunks from this one on are held out.
    pub held_out_from: usize,
}

impl Group<'_> {
    /// Whether any chunk is held out.
    fn holds_out(&self) -> bool {
        self.held_out_from < self.full.chunks()
    }

    fn begin(&self, phase: Phase, observer: &mut dyn Observer) {
        if let Some((block, stage)) = self.at {
            observer.event(&Event::Phase { block, stage, phase });
        }
    }
}

impl<'a> Open<'a> {
    fn group(&self, stage: Stage) -> Group<'_> {
        let (at, held_out_from) = (Some((self.index, stage)), self.held_out_from);
        Group { place: group_name(self.index, stage), at, full: &self.full, origin: self.origin(stage), held_out_from }
    }

    /// Where the full-precision stream gets the input of `stage` from.
    pub fn origin(&self, stage: Stage) -> Origin<'a> {
        self.full.origin(self.block, stage, &self.weights[Stage::GateUp.linears()])
    }

    /// Whether any chunk is held out.
    fn holds_out(&self) -> bool {
        self.held_out_from < self.full.chunks()
    }

    /// 0 for a chunk to fit on, 1 for one that is held out.
    pub fn part(&self, chunk: usize) -> usize {
        usize::from(chunk >= self.held_out_from)
    }
}

/// Numbers that the output matrix may make at a time, about: its rows are many.
const HEAD_OUTPUTS: usize = 1 << 24;

/// Rows `first..first + rows` of X times Wᵀ.
fn project_rows(rec: &mut Recorder, (x, weight): (&Tensor, &Tensor), first: usize, rows: usize) -> Result<Tensor> {
    let x = rec.copy_rows(x, first, rows)?;
    matmul(rec, Orientation::Nt, &x, weight)
}

/// A run between its first block and its last.
pub(super) struct Run<'a> {
    options: &'a QuantizeOptions,
    output: &'a mut dyn Output,
    /// Ŝ.
    pub stream: Stream,
    /// The weights of gate and up that Ŝ goes through, where what down reads is computed again.
    gate_up: Option<Vec<Tensor>>,
    pub report: Report,
    /// What the output has not been given yet.
    finished: Finished,
    journal: Option<&'a mut dyn Journal>,
    /// The record of the block in hand, if it was done before.
    recalled: Option<BlockRecord>,
    /// The weights of the block in hand that Ŝ went through, by module path, for the journal.
    stream_weights: Vec<(String, Vec<f32>)>,
    /// Seconds of the runs that made the records.
    earlier: BTreeMap<Phase, f64>,
    /// What it broke down of.
    failure: Option<Error>,
}

/// A run between the linears of one group and those of the next.
#[derive(Default)]
pub(super) struct Step {
    /// The linears that were quantized, each with its place in the group.
    layers: Vec<(usize, RoundedLayer)>,
    /// What takes the inverse scales of the input.
    producer: Option<Producer>,
    /// The group's dequantized weights; `None` where the run leaves the block alone.
    rounded: Option<Vec<Tensor>>,
    /// ‖WX − QX̂‖² of each linear.
    errors: Sums,
}

impl<'a> Run<'a> {
    pub fn new(job: Job<'a>, stream: Stream, report: Report) -> Self {
        Self {
            options: job.options,
            output: job.output,
            stream,
            gate_up: None,
            report,
            finished: Finished::default(),
            journal: job.journal,
            recalled: None,
            stream_weights: Vec::new(),
            earlier: BTreeMap::new(),
            failure: None,
        }
    }

    /// How many blocks were done before.
    pub fn recorded(&self) -> usize {
        self.journal.as_ref().map_or(0, |journal| journal.blocks())
    }

    /// Fetches the record of block `index`, if there is one.
    pub fn recall(&mut self, index: usize) -> Result<()> {
        self.recalled = match &mut self.journal {
            Some(journal) if index < journal.blocks() => Some(journal.read(index)?),
            _ => None,
        };
        Ok(())
    }

    /// Whether it has not broken down.
    pub fn goes_on(&self) -> bool {
        self.failure.is_none()
    }

    /// Keeps the numbers of this run that stopped being numbers from ending the others. Errors: everything else.
    pub fn survive<T: Default>(&mut self, result: Result<T>) -> Result<T> {
        match result {
            Err(error @ Error::NotFinite { .. }) => {
                self.failure = Some(error);
                self.stream = Stream::default();
                Ok(T::default())
            }
            other => other,
        }
    }

    /// The record, or what the run broke down of. `rest`: seconds that are not booked.
    pub fn finish(mut self, rest: f64) -> Result<Report> {
        self.report.seconds = self.seconds();
        self.report.total_seconds = self.report.seconds.values().sum::<f64>() + rest;
        self.failure.map_or(Ok(self.report), Err)
    }

    /// Seconds that are booked, without those of earlier runs.
    pub fn booked(&self) -> f64 {
        self.report.seconds.values().sum()
    }

    /// Seconds per phase, with those of earlier runs.
    fn seconds(&self) -> BTreeMap<Phase, f64> {
        let mut all = self.earlier.clone();
        for (&phase, seconds) in &self.report.seconds {
            *all.entry(phase).or_default() += seconds;
        }
        all
    }

    /// Quantizes the linears of `stage`, if this run quantizes the block.
    pub async fn quantize(
        &mut self,
        rec: &mut Recorder,
        open: &Open<'_>,
        stage: Stage,
        observer: &mut dyn Observer,
    ) -> Result<Step> {
        if self.options.blocks.is_some_and(|blocks| open.index >= blocks) {
            return Ok(Step::default());
        }
        let originals = &open.weights[stage.linears()];
        if let Some(record) = &self.recalled {
            let specs = open.specs[stage.linears()].iter().zip(originals);
            let weights = specs.map(|(spec, original)| match record.stream_weight(&spec.name) {
                Some(weight) => rec.upload(original.shape(), weight),
                None => rec.duplicate(original),
            });
            return Ok(Step { rounded: Some(weights.collect::<Result<_>>()?), ..Step::default() });
        }
        let group = open.specs[stage.linears()].iter().zip(originals).enumerate();
        let chosen = group.filter_map(|(place, (spec, weight))| Some((place, self.linear(&spec.name, weight)?)));
        let (places, linears): (Vec<usize>, Vec<Linear<'_>>) = chosen.unzip();
        if linears.is_empty() {
            return Ok(Step::default());
        }
        // A layer that keeps its weight would read the scaled input, too.
        let producer = if self.options.method.quantizer().scales_input() && linears.len() == originals.len() {
            Producer::of(open.checkpoint, open.index, stage, &self.finished).await?
        } else {
            None
        };
        let group = open.group(stage);
        let mut layers = self.quantize_group(rec, &group, producer.as_ref(), &linears, observer).await?;
        let mut rounded: Vec<Tensor> = originals.iter().map(|w| rec.duplicate(w)).collect::<Result<_>>()?;
        for (&place, layer) in places.iter().zip(&mut layers) {
            rounded[place] = super::take(rec, &mut layer.dequantized)?;
        }
        let layers = places.into_iter().zip(layers).collect();
        Ok(Step { layers, producer, rounded: Some(rounded), errors: Sums::default() })
    }

    /// The linear of that module path as this run is to treat it; `None` if it keeps its weight.
    fn linear<'w>(&self, name: &'w str, weight: &'w Tensor) -> Option<Linear<'w>> {
        let bits = self.options.bits_of(name)?;
        let group_size = self.report.group_size.unwrap_or(weight.shape()[1]);
        let layer = Layer { name, grid: self.options.grid_spec(group_size, bits) };
        Some(Linear { layer, weight, alpha: self.options.alpha.of(name) })
    }

    async fn quantize_group(
        &mut self,
        rec: &mut Recorder,
        group: &Group<'_>,
        producer: Option<&Producer>,
        linears: &[Linear<'_>],
        observer: &mut dyn Observer,
    ) -> Result<Vec<RoundedLayer>> {
        let feasible = producer.map(|producer| |wanted: &[f32]| producer.feasible(wanted));
        let solver = GroupSolver {
            options: self.options,
            feasible: feasible.as_ref().map(|feasible| feasible as Feasible<'_>),
            place: &group.place,
        };
        let to_round = match solver.quantities(linears) {
            None => solver.uncorrected(linears),
            Some(quantities) => {
                group.begin(Phase::Statistics, observer);
                let since = observer.seconds();
                let n = linears[0].weight.shape()[1];
                let statistics = self.gather(rec, group, n, quantities, observer)?;
                self.spent(rec, Phase::Statistics, since, observer).await?;
                group.begin(Phase::Correction, observer);
                let since = observer.seconds();
                let corrected = solver.correct(rec, linears, statistics).await?;
                self.spent(rec, Phase::Correction, since, observer).await?;
                corrected
            }
        };
        group.begin(Phase::Rounding, observer);
        let since = observer.seconds();
        let layers = to_round.round(rec).await?;
        self.spent(rec, Phase::Rounding, since, observer).await?;
        Ok(layers)
    }

    /// Accumulates the statistics of the group's input, which has `n` columns.
    fn gather(
        &self,
        rec: &mut Recorder,
        group: &Group<'_>,
        n: usize,
        quantities: Quantities,
        observer: &dyn Observer,
    ) -> Result<GroupStatistics> {
        let own = group.origin.through(self.gate_up.as_deref());
        let mut fitting = Statistics::zeros(rec, n, quantities)?;
        let mut held_out = if group.holds_out() { Some(Statistics::zeros(rec, n, quantities)?) } else { None };
        for chunk in 0..group.full.chunks() {
            observer.go_on()?;
            let part = if chunk < group.held_out_from { Some(&mut fitting) } else { held_out.as_mut() };
            if let Some(part) = part {
                let full = group.full.input(rec, chunk, group.origin)?;
                let quantized = self.stream.input(rec, chunk, own)?;
                part.accumulate(rec, &full, &quantized)?;
            }
        }
        Ok(GroupStatistics { fitting, held_out })
    }

    /// Takes chunk `chunk` past the linears of `stage`, through the weights of `step`; adds to the errors of the step.
    ///
    /// `exact`: WX of each linear.
    pub async fn advance(
        &mut self,
        rec: &mut Recorder,
        open: &Open<'_>,
        (stage, chunk): (Stage, usize),
        exact: &[Tensor],
        step: &mut Step,
        context: &mut Context<'_>,
    ) -> Result<()> {
        let origin = open.origin(stage).through(self.gate_up.as_deref());
        let mut lane = self.stream.take(rec, chunk, stage, origin)?;
        let weights = step.rounded.as_deref().unwrap_or(&open.weights[stage.linears()]);
        let approximate = open.block.project(rec, weights, &lane.input)?;
        for &(place, _) in &step.layers {
            let partials = squared_difference(rec, &exact[place], &approximate[place])?;
            step.errors.add(place, open.part(chunk), partials);
        }
        open.block.fold(rec, stage, approximate, context, &mut lane)?;
        self.stream.put_back(rec, chunk, stage, lane).await
    }

    /// Fills in the measured errors of the layers of `stage`.
    pub async fn settle(
        &mut self,
        rec: &mut Recorder,
        open: &Open<'_>,
        stage: Stage,
        step: Step,
        norms: &[[f64; 2]],
    ) -> Result<()> {
        let Step { layers, producer, rounded, errors } = step;
        let scales = layers.first().and_then(|(_, layer)| layer.input_scales.as_ref());
        if let Some((producer, scales)) = producer.zip(scales) {
            producer.fold(&scales.scales, &mut self.finished);
        }
        if self.journal.is_some() {
            for (place, layer) in &layers {
                let weight = &rounded.as_ref().expect("a group with quantized layers has weights")[*place];
                self.stream_weights.push((layer.stored.name().to_string(), rec.read(weight).await?));
            }
        }
        self.gate_up = rounded.filter(|_| stage == Stage::GateUp && self.stream.recomputes());
        let errors = errors.read(rec, norms.len()).await?;
        let measured = layers.into_iter().map(|(place, layer)| (layer, errors[place], norms[place]));
        self.record(measured.collect(), open.holds_out())
    }

    /// Fills in measured errors: ‖WX − QX̂‖² and ‖WX‖², each of the tokens to fit on and of those held out.
    fn record(&mut self, measured: Vec<(RoundedLayer, [f64; 2], [f64; 2])>, holds_out: bool) -> Result<()> {
        for (layer, errors, norms) in measured {
            let mut report = LayerReport::new(&layer, self.options.correction_damping);
            report.error_fitted = super::relative(errors[0], norms[0], &report.name)?;
            if holds_out {
                report.error_held_out = Some(super::relative(errors[1], norms[1], &report.name)?);
                let before = layer.alpha.score_gain.map(|gain| (errors[1] + gain) / norms[1]);
                report.error_held_out_uncorrected = before.filter(|error| error.is_finite());
            }
            self.report.layers.push(report);
            self.finished.linears.push(layer.stored);
        }
        Ok(())
    }

    /// Gives the output what is ready.
    pub async fn hand_over(&mut self) -> Result<()> {
        let Finished { tensors, linears } = std::mem::take(&mut self.finished);
        for (name, values) in tensors {
            self.output.put_tensor(name, values)?;
        }
        for linear in linears {
            self.output.put(linear).await?;
        }
        Ok(())
    }

    /// Keeps the block that is done.
    fn keep(&mut self, block: &BlockReport) -> Result<()> {
        let seconds = self.seconds();
        let Some(journal) = &mut self.journal else { return Ok(()) };
        let Finished { tensors, linears } = self.finished.clone();
        let is_stored = |name: &str, weight: &[f32]| {
            let stored = linears.iter().find(|linear| linear.name() == name).map(StoredLinear::dequantize);
            stored.is_some_and(|stored| same_bits(&stored, weight))
        };
        let mut stream = std::mem::take(&mut self.stream_weights);
        stream.retain(|(name, weight)| !is_stored(name, weight));
        let layers = self.report.layers[self.report.layers.len() - linears.len()..].to_vec();
        journal.write(&BlockRecord { block: block.clone(), layers, seconds, tensors, linears, stream })
    }

    /// Takes a block over that was done before. Returns the error after it.
    fn take_over(&mut self, record: BlockRecord) -> f64 {
        let BlockRecord { block, layers, seconds, tensors, linears, stream: _ } = record;
        let error = block.error;
        self.report.blocks.push(block);
        self.report.layers.extend(layers);
        self.earlier = seconds;
        self.finished = Finished { tensors, linears };
        error
    }

    /// Quantizes the output matrix `weight`, if this run does. The inputs of all lanes are normalised.
    pub async fn head(
        &mut self,
        rec: &mut Recorder,
        group: &Group<'_>,
        weight: &Tensor,
        observer: &mut dyn Observer,
    ) -> Result<()> {
        let linear = self.linear(&group.place, weight);
        let Some(linear) = linear.filter(|_| self.quantizes_head()) else { return Ok(()) };
        let layer = self.quantize_group(rec, group, None, &[linear], observer).await?.swap_remove(0);
        let since = observer.seconds();
        let (mut errors, mut norms) = (Sums::default(), Sums::default());
        for chunk in 0..group.full.chunks() {
            let part = usize::from(chunk >= group.held_out_from);
            let full = group.full.input(rec, chunk, group.origin)?;
            let quantized = self.stream.input(rec, chunk, group.origin)?;
            let tokens = full.shape()[0];
            let piece = (HEAD_OUTPUTS / weight.shape()[0]).max(1);
            for first in (0..tokens).step_by(piece) {
                let rows = piece.min(tokens - first);
                let exact = project_rows(rec, (&full, weight), first, rows)?;
                let approximate = project_rows(rec, (&quantized, &layer.dequantized), first, rows)?;
                errors.add(0, part, squared_difference(rec, &exact, &approximate)?);
                norms.add(0, part, sum_squares(rec, &exact)?);
            }
        }
        let (errors, norms) = (errors.read(rec, 1).await?[0], norms.read(rec, 1).await?[0]);
        self.spent(rec, Phase::Forward, since, observer).await?;
        self.record(vec![(layer, errors, norms)], group.holds_out())?;
        self.hand_over().await
    }

    /// Whether the output matrix is quantized in this run.
    pub fn quantizes_head(&self) -> bool {
        self.options.lm_head && self.options.blocks.is_none()
    }

    /// Records Δ_m = ‖S − Ŝ‖²/‖S‖² over all tokens, and keeps the block; the root of Δ_m.
    pub async fn measure(&mut self, rec: &mut Recorder, block: usize, full: &Stream, norm: f64) -> Result<Option<f64>> {
        if let Some(record) = self.recalled.take() {
            return Ok(Some(self.take_over(record)));
        }
        let mut error = Sums::default();
        for chunk in 0..full.chunks() {
            let (full, quantized) = (full.hidden(rec, chunk)?, self.stream.hidden(rec, chunk)?);
            error.add(0, 0, squared_difference(rec, &full, &quantized)?);
        }
        let error = error.read(rec, 1).await?[0][0];
        let delta = super::relative(error, norm, &format!("the hidden states after block {block}"))?;
        let report = BlockReport { block, delta, error: delta.sqrt() };
        self.keep(&report)?;
        self.report.blocks.push(report);
        Ok(Some(delta.sqrt()))
    }

    /// Books seconds under `phase`.
    pub fn book(&mut self, phase: Phase, seconds: f64) {
        *self.report.seconds.entry(phase).or_default() += seconds;
    }

    /// Waits for the device and books the time since `since`.
    async fn spent(&mut self, rec: &mut Recorder, phase: Phase, since: f64, observer: &mut dyn Observer) -> Result<()> {
        rec.finish().await?;
        self.book(phase, observer.seconds() - since);
        Ok(())
    }
}

/// Whether both are the same numbers, signs of zeros included.
fn same_bits(a: &[f32], b: &[f32]) -> bool {
    bytemuck::cast_slice::<f32, u32>(a) == bytemuck::cast_slice::<f32, u32>(b)
}
