//! Plans of memory: runs that keep hidden states elsewhere give the same bytes, and no run takes more than was planned.

use aquatint::checkpoint::random;
use aquatint::device::{Device, Memory, Place, Recorder};
use aquatint::engine::network::Network;
use aquatint::eval::evaluate;
use aquatint::observer::{Event, Observer};
use aquatint::pipeline::{plan, quantize};
use aquatint::quant::{Method, QuantizeOptions};
use aquatint::record::Report;
use aquatint::stored::Replacements;
use aquatint::study::trial::{NoOutput, random_windows};
use aquatint::{Calibration, Checkpoint, Error, Result, bundled};
use pollster::block_on;
use proptest::prelude::*;

use crate::common::device_tests;

fn windows(model: &Checkpoint, options: &QuantizeOptions) -> Vec<Vec<u32>> {
    let tokenizer = block_on(model.tokenizer()).unwrap();
    let text = Calibration::from_texts(&tokenizer, &[bundled::calibration_text()], model.config().vocab_size).unwrap();
    text.draw(options.samples, options.held_out(), options.seq_len, options.sampling, options.seed).unwrap()
}

fn run(rec: &mut Recorder, model: &Checkpoint, options: &QuantizeOptions) -> Result<(Report, Replacements)> {
    let mut layers = Replacements::new();
    let report = block_on(quantize(rec, model, &windows(model, options), options, &mut layers, &mut ()))?;
    Ok((report, layers))
}

/// Options with one pass of descent, which is enough here.
fn options(bits: u32, samples: usize, seq_len: usize) -> QuantizeOptions {
    QuantizeOptions { bits, samples, seq_len, descent_passes: 1, ..QuantizeOptions::default() }
}

fn with(device: &Device, memory: Memory) -> Recorder {
    let mut rec = Recorder::new(device);
    rec.set_memory(memory);
    rec
}

device_tests!(hidden_states_elsewhere_change_no_byte: cpu, software_gpu);
fn hidden_states_elsewhere_change_no_byte(device: Device) {
    let model = block_on(bundled::checkpoint()).unwrap();
    let gpu = !matches!(device, Device::Cpu);
    let mut options = options(3, 6, 24);
    (options.lm_head, options.blocks) = (!gpu, gpu.then_some(2));
    let mut expected = None;
    let places = Place::Device.and_below(&device).iter().flat_map(|place| [(place, false), (place, true)]);
    for (streams, recompute) in places {
        // A chunk has two sequences.
        let (streams, recompute) = (*streams, Some(recompute));
        let memory = Memory { streams, recompute, chunk_tokens: 48, ..Memory::default() };
        let (report, layers) = run(&mut with(&device, memory), &model, &options).unwrap();
        let plan = report.plan.unwrap();
        assert_eq!((plan.streams, Some(plan.recompute)), (streams, recompute));
        assert_eq!(plan.host_bytes > 0, streams == Place::Host);
        assert_eq!(plan.file_bytes > 0, streams == Place::File);
        let measured = serde_json::to_string(&(&report.layers, &report.blocks)).unwrap();
        let (layers_expected, measured_expected) = expected.get_or_insert((layers.clone(), measured.clone()));
        assert!(layers == *layers_expected, "{streams:?} on {}", device.name());
        assert_eq!(measured, *measured_expected);
    }
    assert!(expected.is_some());
}

device_tests!(a_gpu_holds_no_more_than_was_planned: software_gpu);
fn a_gpu_holds_no_more_than_was_planned(device: Device) {
    let model = block_on(bundled::checkpoint()).unwrap();
    let (hidden, inner) = (model.config().hidden_size, model.config().widest());
    for (method, recompute) in [(Method::Gptq, false), (Method::Gptq, true), (Method::Quip, false)] {
        let options = QuantizeOptions { method, blocks: Some(1), ..options(3, 4, 64) };
        let memory = Memory { recompute: Some(recompute), ..Memory::default() };
        let planned = plan(model.config(), &[&options], &with(&device, memory.clone())).unwrap();
        let (report, _) = run(&mut with(&device, memory), &model, &options).unwrap();
        assert_eq!(report.plan, Some(planned));
        let peak = report.peak_device_bytes.unwrap();
        assert!(peak <= planned.device_bytes, "{method:?}: {peak} of {}", planned.device_bytes);
        // When the statistics of down are complete, these are there at once: its weight, those of gate and up in both streams where
        // chunks go through them again, both streams, and H and D of the windows to fit on and of those held out. Beyond that, arrays
        // that are not in use fill the plan.
        assert!(options.held_out() > 0);
        let tokens = options.samples * options.seq_len;
        let weights = hidden * inner * if recompute { 1 + 2 * 2 } else { 1 };
        let streams = 2 * tokens * (hidden + if recompute { 0 } else { inner });
        let statistics = 2 * (inner * inner / 2 + inner * inner);
        let least = 4 * (weights + streams + statistics) as u64;
        assert!(peak >= least, "{method:?}: {peak}, where {least} must have been there at once");
    }
}

/// A family's model of random weights, four times as wide as its fixture, with 64 positions.
fn wider(family: &str) -> Checkpoint {
    let file = format!("{}/tests/fixtures/families/{family}/config.json", env!("CARGO_MANIFEST_DIR"));
    let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    for key in [
        "hidden_size",
        "intermediate_size",
        "ffn_dim",
        "word_embed_proj_dim",
        "num_attention_heads",
        "n_embd",
        "n_head",
    ] {
        if let Some(size) = config[key].as_u64() {
            config[key] = (4 * size).into();
        }
    }
    for key in ["max_position_embeddings", "n_positions"] {
        if config[key].is_u64() {
            config[key] = 64.into();
        }
    }
    block_on(random(family, &config, 0)).unwrap()
}

device_tests!(no_family_takes_more_than_was_planned: software_gpu);
fn no_family_takes_more_than_was_planned(device: Device) {
    for family in ["gemma3", "gemma4", "falcon-new", "opt-350m", "gpt2"] {
        let model = wider(family);
        // With few tokens the statistics and the solve take most of the memory, and with many the values of a chunk.
        for (samples, seq_len, recompute) in [(4, 32, false), (4, 32, true), (16, 64, false), (16, 64, true)] {
            // GPTQ's format stores codes of 3 bits in other shapes only.
            let format = Some("float".to_string());
            let options = QuantizeOptions { format, ..options(3, samples, seq_len) };
            let memory = Memory { recompute: Some(recompute), ..Memory::default() };
            let mut rec = with(&device, memory);
            let windows = random_windows(&options, model.config().vocab_size);
            let report = block_on(quantize(&mut rec, &model, &windows, &options, &mut NoOutput, &mut ())).unwrap();
            let (planned, peak) = (report.plan.unwrap().device_bytes, report.peak_device_bytes.unwrap());
            assert!(peak <= planned, "{family}, {samples} × {seq_len}, {recompute}: {peak} of {planned}");
        }
    }
}

device_tests!(a_device_with_less_memory_than_it_says_gets_less_to_do: software_gpu);
fn a_device_with_less_memory_than_it_says_gets_less_to_do(device: Device) {
    let model = block_on(bundled::checkpoint()).unwrap();
    let options = QuantizeOptions { blocks: Some(1), method: Method::Rtn, ..options(4, 10, 64) };
    let (report, expected) = run(&mut with(&device, Memory::default()), &model, &options).unwrap();
    let (planned, held) = (report.plan.unwrap().device_bytes, report.peak_device_bytes.unwrap());
    let mut tenths = 10;
    let (plan, layers) = loop {
        tenths -= 1;
        assert!(tenths > 0, "there was always enough");
        let mut memory = Memory { device: Some(planned), ..Memory::default() };
        // Another user of the device leaves less and less of it.
        let mut other = with(&device, memory.clone());
        other.trim();
        let _taken = other.zeros::<u32>(&[((planned - held / 10 * tenths) / 4) as usize]).unwrap();
        let mut attempts = 0;
        let (report, layers) = loop {
            attempts += 1;
            match run(&mut with(&device, memory.clone()), &model, &options) {
                Err(Error::OutOfMemory { .. }) => memory = memory.less(&device, options.seq_len).unwrap(),
                other => break other.unwrap(),
            }
        };
        if attempts > 1 {
            break (report.plan.unwrap(), layers);
        }
    };
    assert!(plan.streams != Place::Device && plan.sequences_per_chunk < 64, "{plan:?}");
    // Smaller chunks sum in another order, so codes may differ. No layer may be missing, or be there twice.
    assert_eq!(layers.len(), expected.len());
}

device_tests!(giving_up_comes_to_an_end: cpu, software_gpu);
fn giving_up_comes_to_an_end(device: Device) {
    let mut memory = Memory::default();
    let mut steps = 0;
    while let Some(less) = memory.less(&device, 1000) {
        assert!(less.chunk_tokens >= 1000 && less.chunk_tokens <= memory.chunk_tokens);
        memory = less;
        steps += 1;
    }
    assert!((2..10).contains(&steps), "{steps}");
    assert_eq!((memory.streams, memory.chunk_tokens), (Place::File, 1000));
}

#[test]
fn too_little_memory_is_told_before_anything_is_done() {
    let model = block_on(bundled::checkpoint()).unwrap();
    let options = options(3, 4, 64);
    let memory = Memory { device: Some(1 << 20), ..Memory::default() };
    match run(&mut with(&Device::Cpu, memory), &model, &options) {
        Err(error @ Error::Input { .. }) => {
            let message = error.to_string();
            assert!(message.starts_with("memory: found 1 MB, expected at least "), "{message}");
            let least = message.split(' ').nth(7).unwrap().parse::<u64>().unwrap() * 1_000_000;
            let enough = Memory { device: Some(least), ..Memory::default() };
            assert!(plan(model.config(), &[&options], &with(&Device::Cpu, enough)).is_ok(), "{least}");
        }
        other => panic!("{:?}", other.map(|(report, _)| report)),
    }
}

/// Counts the blocks that an evaluation passes through, and compares with the number that it announces.
#[derive(Default)]
struct Blocks {
    done: usize,
    announced: usize,
}

impl Observer for Blocks {
    fn event(&mut self, event: &Event) {
        if let Event::EvaluationBlock { block, blocks } = *event {
            self.done += 1;
            assert_eq!((block, self.announced.max(blocks)), (self.done, blocks));
            self.announced = blocks;
        }
    }

    fn seconds(&self) -> f64 {
        0.0
    }

    fn cancelled(&self) -> bool {
        false
    }
}

device_tests!(an_evaluation_with_less_memory_takes_fewer_windows_at_a_time_to_the_same_bits: cpu, software_gpu);
fn an_evaluation_with_less_memory_takes_fewer_windows_at_a_time_to_the_same_bits(device: Device) {
    let model = block_on(bundled::checkpoint()).unwrap();
    let all = windows(&model, &options(3, 7, 64));
    let config = model.config();
    let evaluate = |memory: Option<u64>| {
        // A chunk has two windows.
        let memory = Memory { device: memory, beside: 0, chunk_tokens: 128, ..Memory::default() };
        let mut rec = with(&device, memory);
        let network = Network::new(&mut rec, &model, None, 64).unwrap();
        let mut blocks = Blocks::default();
        let result = block_on(evaluate(&mut rec, &network, None, &all, &mut blocks)).unwrap();
        assert_eq!(blocks.done, blocks.announced);
        (result, blocks.done / config.blocks.len())
    };
    let (expected, passes) = evaluate(None);
    assert_eq!(passes, 1);
    let weights = config.largest_block();
    let head = (config.vocab_size * (config.hidden_size + 2 * 1024)) as u64;
    let within = (128 * (2 * config.hidden_size + 3 * config.widest())) as u64;
    let states = 4 * 128 * config.hidden_size as u64;
    let beside = 4 * (weights + head + within);
    let gpu = !matches!(device, Device::Cpu);
    let [beside, states] = [beside, states].map(|bytes| if gpu { bytes / 8 * 9 + 9 } else { bytes });
    for (chunks, passes) in [(4, 1), (3, 2), (2, 2), (1, 4)] {
        assert_eq!(evaluate(Some(beside + chunks * states)), (expected.clone(), passes), "{}", device.name());
    }
}

device_tests!(a_layer_that_cannot_be_bound_is_told_before_anything_is_done: software_gpu);
fn a_layer_that_cannot_be_bound_is_told_before_anything_is_done(device: Device) {
    // Packed, H of down takes a little more than half of n² elements.
    let inner = (device.largest_array() as f64 / 4.0).sqrt() as usize / 64 * 64;
    let shape = |inner: usize| {
        serde_json::json!({
            "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": inner, "num_hidden_layers": 1,
            "num_attention_heads": 1, "num_key_value_heads": 1, "vocab_size": 64, "max_position_embeddings": 64,
            "rms_norm_eps": 1e-5, "tie_word_embeddings": true
        })
    };
    let planned = |inner: usize, method: Method| {
        let model = block_on(random("wide", &shape(inner), 0)).unwrap();
        let options = QuantizeOptions { method, ..options(3, 2, 16) };
        plan(model.config(), &[&options], &with(&device, Memory::default())).map(|_| ())
    };
    assert!(planned(inner * 4 / 3, Method::Gptq).is_ok());
    for (inner, method) in [(inner * 3 / 2, Method::Gptq), (inner * 4 / 3, Method::Quip)] {
        let message = planned(inner, method).unwrap_err().to_string();
        assert!(message.starts_with("device: found ") && message.contains("can bind"), "{message}");
    }
}

proptest! {
    #[test]
    fn a_plan_keeps_to_what_it_was_given(device in 1u64 << 22..1 << 34, host in 0u64..1 << 32, samples in 1usize..600, seq_len in 1usize..5000) {
        let model = block_on(bundled::checkpoint()).unwrap();
        let options = QuantizeOptions { samples, seq_len, ..QuantizeOptions::default() };
        let memory = Memory { device: Some(device), host: Some(host), ..Memory::default() };
        if let Ok(plan) = plan(model.config(), &[&options], &with(&Device::Cpu, memory)) {
            prop_assert!(plan.device_bytes <= device);
            prop_assert!(plan.sequences_per_chunk * seq_len <= 4096.max(seq_len));
            prop_assert!(plan.streams != Place::Host);
        }
    }
}
