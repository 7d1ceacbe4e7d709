//! Runs that share the full-precision stream: the same bytes as alone, and what happens when one of them breaks down.
//! Runs of the first blocks only.

use crate::common::recorder;
use aquatint::device::{Device, Recorder};
use aquatint::error::Phrase;
use aquatint::pipeline::{Job, Output, quantize, quantize_together};
use aquatint::quant::{Alpha, Method, QuantizeOptions};
use aquatint::record::Report;
use aquatint::stored::Replacements;
use aquatint::stored::StoredLinear;
use aquatint::{Calibration, Checkpoint, Error, Result, bundled};
use futures::future::LocalBoxFuture;
use pollster::block_on;

fn options(bits: u32, method: Method, alpha: Alpha) -> QuantizeOptions {
    let mut options = QuantizeOptions { bits, method, samples: 4, seq_len: 64, ..QuantizeOptions::default() };
    options.alpha.default = alpha;
    options
}

fn windows(model: &Checkpoint, options: &QuantizeOptions) -> Vec<Vec<u32>> {
    let tokenizer = block_on(model.tokenizer()).unwrap();
    let text = Calibration::from_texts(&tokenizer, &[bundled::calibration_text()], model.config().vocab_size).unwrap();
    text.draw(options.samples, options.held_out(), options.seq_len, options.sampling, options.seed).unwrap()
}

fn alone(rec: &mut Recorder, model: &Checkpoint, options: &QuantizeOptions) -> (Report, Replacements) {
    let mut layers = Replacements::new();
    let windows = windows(model, options);
    (block_on(quantize(rec, model, &windows, options, &mut layers, &mut ())).unwrap(), layers)
}

fn together(
    rec: &mut Recorder,
    model: &Checkpoint,
    runs: &[QuantizeOptions],
) -> Result<Vec<(Result<Report>, Replacements)>> {
    let mut layers: Vec<Replacements> = runs.iter().map(|_| Replacements::new()).collect();
    let jobs = runs.iter().zip(&mut layers).map(|(options, output)| Job::new(options, output)).collect();
    let reports = block_on(quantize_together(rec, model, &windows(model, &runs[0]), jobs, &mut ()))?;
    Ok(reports.into_iter().zip(layers).collect())
}

/// All that was measured, to the bit.
fn measured(report: &Report) -> String {
    serde_json::to_string(&(&report.layers, &report.blocks)).unwrap()
}

#[test]
fn together_and_alone_give_the_same_bytes_and_the_same_errors() {
    let model = block_on(bundled::checkpoint()).unwrap();
    let mut rec = recorder(&Device::Cpu);
    let mut runs = vec![
        options(2, Method::Gptq, Alpha::Auto),
        options(3, Method::Rtn, Alpha::Off),
        options(3, Method::Rtn, Alpha::Fixed(0.5)),
    ];
    runs[2].blocks = Some(3);
    for (options, (report, layers)) in runs.iter().zip(together(&mut rec, &model, &runs).unwrap()) {
        let (report_alone, layers_alone) = alone(&mut rec, &model, options);
        assert_eq!(layers, layers_alone, "{options:?}");
        assert_eq!(measured(&report.unwrap()), measured(&report_alone), "{options:?}");
    }
}

#[test]
fn a_run_of_the_first_blocks_begins_as_a_whole_one_and_leaves_the_others_alone() {
    let model = block_on(bundled::checkpoint()).unwrap();
    let mut rec = recorder(&Device::Cpu);
    let whole = options(2, Method::Gptq, Alpha::Auto);
    let first = QuantizeOptions { blocks: Some(2), ..whole.clone() };
    let ((whole, all), (first, some)) = (alone(&mut rec, &model, &whole), alone(&mut rec, &model, &first));
    assert_eq!((all.len(), some.len()), (56, 14));
    assert!(some.iter().all(|(name, layer)| all[name] == *layer));
    assert_eq!(first.blocks.len(), 8);
    let errors = |report: &Report| report.blocks.iter().map(|block| block.error).collect::<Vec<_>>();
    let (whole, first) = (errors(&whole), errors(&first));
    assert_eq!(whole[..2], first[..2]);
    assert!(first[2..].iter().zip(&whole[2..]).all(|(first, whole)| first < whole), "{first:?}, {whole:?}");
    assert!(first[7] > 0.01, "the error of the first blocks is gone: {first:?}");
}

/// Takes some layers, and then says that a number is none.
struct Breaking(usize);

impl Output for Breaking {
    fn put_tensor(&mut self, _: String, _: Vec<f32>) -> Result<()> {
        Ok(())
    }

    fn put(&mut self, linear: StoredLinear) -> LocalBoxFuture<'_, Result<()>> {
        let broken = Error::NotFinite { place: linear.name().to_string(), remedy: Phrase::default() };
        let result = self.0.checked_sub(1).map(|left| self.0 = left).ok_or(broken);
        Box::pin(async { result })
    }
}

#[test]
fn a_run_that_breaks_down_leaves_the_others_as_they_are() {
    let model = block_on(bundled::checkpoint()).unwrap();
    let mut rec = recorder(&Device::Cpu);
    let options = options(3, Method::Gptq, Alpha::Fixed(0.5));
    let (mut breaking, mut layers) = (Breaking(10), Replacements::new());
    let jobs = vec![Job::new(&options, &mut breaking), Job::new(&options, &mut layers)];
    let windows = windows(&model, &options);
    let mut reports = block_on(quantize_together(&mut rec, &model, &windows, jobs, &mut ())).unwrap();
    let (report_alone, layers_alone) = alone(&mut rec, &model, &options);
    assert_eq!(layers, layers_alone);
    assert_eq!(measured(&reports.pop().unwrap().unwrap()), measured(&report_alone));
    let Some(Err(Error::NotFinite { place, .. })) = reports.pop() else { panic!("it broke down") };
    assert_eq!(place, "model.layers.1.self_attn.o_proj");
    let mut breaking = Breaking(10);
    let jobs = vec![Job::new(&options, &mut breaking)];
    let reports = block_on(quantize_together(&mut rec, &model, &windows, jobs, &mut ())).unwrap();
    assert!(matches!(reports[..], [Err(Error::NotFinite { .. })]));
}

#[test]
fn runs_of_other_windows_do_not_go_together() {
    let model = block_on(bundled::checkpoint()).unwrap();
    let mut rec = recorder(&Device::Cpu);
    let one = options(4, Method::Rtn, Alpha::Off);
    for other in [QuantizeOptions { samples: 3, ..one.clone() }, QuantizeOptions { seq_len: 32, ..one.clone() }] {
        assert!(matches!(together(&mut rec, &model, &[one.clone(), other]), Err(Error::Shape { .. })));
    }
}
