//! Every family: the logits of random tiny models against the published implementation (tests/fixtures/families/make.py), and
//! quantized results that are written and read back.

use std::path::Path;

use aquatint::Checkpoint;
use aquatint::checkpoint::{CheckpointWriter, DEFAULT_SHARD_LIMIT, DirectorySink, Existing, WritePlan};
use aquatint::device::{Device, Memory, Place};
use aquatint::engine::network::Network;
use aquatint::eval::logits;
use aquatint::pipeline::{Treatment, quantize};
use aquatint::quant::{GroupSize, Method, QuantizeOptions};
use aquatint::stored::Replacements;
use pollster::block_on;
use safetensors::SafeTensors;

use crate::common::{device_tests, random, recorder, relative_error};

fn check(device: Device, family: &str) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/families").join(family);
    let bytes = std::fs::read(folder.join("expected.safetensors")).unwrap();
    let expected = SafeTensors::deserialize(&bytes).unwrap();
    let ids = expected.tensor("input_ids").unwrap();
    let seq_len = ids.shape()[1];
    let ids: Vec<u32> = ids.data().chunks(4).map(|b| u32::from_le_bytes(b.try_into().unwrap())).collect();
    let windows: Vec<Vec<u32>> = ids.chunks(seq_len).map(<[u32]>::to_vec).collect();
    let logits_view = expected.tensor("logits").unwrap();
    let values = logits_view.data().chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()));
    let values: Vec<f64> = values.map(f64::from).collect();
    let checkpoint = block_on(Checkpoint::open(&folder)).unwrap();
    let mut rec = recorder(&device);
    let network = Network::new(&mut rec, &checkpoint, None, seq_len).unwrap();
    let ours = block_on(logits(&mut rec, &network, &windows)).unwrap();
    let error = relative_error(&ours, &values);
    assert!(error < 1e-5, "{family} on {}: {error}", device.name());
    let largest = values.iter().fold(0.0f64, |a, b| a.max(b.abs()));
    let worst = ours.iter().zip(&values).fold(0.0f64, |a, (&o, v)| a.max((f64::from(o) - v).abs()));
    assert!(worst < 1e-4 * largest, "{family} on {}: {worst} of {largest}", device.name());
}

macro_rules! families {
    ($($name:ident: $folder:literal),* $(,)?) => {
        $(device_tests!($name: cpu, software_gpu);
        fn $name(device: Device) {
            check(device, $folder);
        })*
    };
}

families! {
    llama: "llama",
    llama_with_llama3_scaling_and_biases: "llama-scaled",
    llama_with_linear_scaling_and_own_head_width: "llama-linear",
    mistral_with_a_window_that_bites: "mistral",
    qwen2_with_biases: "qwen2",
    qwen3_with_head_norms: "qwen3",
    stablelm_with_layer_norms_and_half_of_each_head_turned: "stablelm",
    stablelm_with_attention_and_mlp_on_one_norm: "stablelm-parallel",
    llama_in_fp8_with_scales_in_blocks: "fp8-block",
    llama_in_fp8_with_one_scale_per_weight: "fp8-tensor",
    llama_in_mxfp4: "mxfp4",
}

/// The fixtures, and how many of the four groups of a block have something before them that can take AWQ's scales.
const FIXTURES: [(&str, usize); 11] = [
    ("llama", 3),
    ("llama-scaled", 3),
    ("llama-linear", 3),
    ("mistral", 3),
    ("qwen2", 3),
    ("qwen3", 3),
    ("stablelm", 3),
    // One norm feeds two groups, so it can take the scales of neither; but every query head has values of its own.
    ("stablelm-parallel", 2),
    ("fp8-block", 3),
    ("fp8-tensor", 3),
    ("mxfp4", 3),
];

fn open(family: &str) -> Checkpoint {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/families").join(family);
    block_on(Checkpoint::open(&folder)).unwrap()
}

/// Windows of 16 random tokens.
fn windows(model: &Checkpoint, count: usize) -> Vec<Vec<u32>> {
    let token = |value: &f32| ((value.abs() * model.config().vocab_size as f32) as u32).min(63);
    (0..count).map(|window| random(window as u64, 16).iter().map(token).collect()).collect()
}

#[test]
fn every_family_is_quantized_written_and_read_back() {
    for (family, folds) in FIXTURES {
        let model = open(family);
        let text = windows(&model, 8);
        let mut rec = recorder(&Device::Cpu);
        let network = Network::new(&mut rec, &model, None, 16).unwrap();
        let full: Vec<f64> = block_on(logits(&mut rec, &network, &text)).unwrap().into_iter().map(f64::from).collect();
        for method in Method::ALL {
            let options = QuantizeOptions {
                method,
                bits: 8,
                group_size: GroupSize::PerChannel,
                samples: 8,
                seq_len: 16,
                ..Default::default()
            };
            let treatment = Treatment::new(&options, model.config());
            treatment.validate().unwrap();
            let (settings, layers) = (treatment.settings(), treatment.layers());
            let plan = WritePlan::new(&model, treatment.format(), settings, &layers, DEFAULT_SHARD_LIMIT).unwrap();
            let home = tempfile::tempdir().unwrap();
            let sink = DirectorySink::new(&home.path().join("out"), Existing::Refuse, None).unwrap();
            let mut writer = CheckpointWriter::new(&model, plan, Box::new(sink)).unwrap();
            let report = block_on(quantize(&mut rec, &model, &text, &options, &mut writer, &mut ())).unwrap();
            block_on(writer.finish()).unwrap();
            assert_eq!(report.layers.len(), layers.len());
            let scaled = report.layers.iter().filter(|layer| layer.awq_ratio.is_some()).count();
            let of_groups = |labels: &[&str]| {
                report.layers.iter().filter(|l| labels.iter().any(|label| l.name.contains(label))).count()
            };
            let expected = match (method, folds) {
                (Method::Awq, 3) => layers.len() - of_groups(&["o_proj"]),
                (Method::Awq, _) => of_groups(&["o_proj", "down_proj"]),
                _ => 0,
            };
            assert_eq!(scaled, expected, "{family}, {method}");
            let written = block_on(Checkpoint::open(&home.path().join("out"))).unwrap();
            let network = Network::new(&mut rec, &written, None, 16).unwrap();
            let error = relative_error(&block_on(logits(&mut rec, &network, &text)).unwrap(), &full);
            // QuIP's grid ends at 2.4 root mean squares, which cuts the tails of random weights.
            let bound = if method.quantizer().off_grid().is_some() { 0.3 } else { 0.05 };
            assert!(error < bound, "{family}, {method}: {error}");
        }
    }
}

device_tests!(where_hidden_states_are_changes_no_bit_of_any_family: cpu, software_gpu);
fn where_hidden_states_are_changes_no_bit_of_any_family(device: Device) {
    for family in ["qwen3", "stablelm", "stablelm-parallel"] {
        let model = open(family);
        let text = windows(&model, 5);
        let options = QuantizeOptions { bits: 3, samples: 5, seq_len: 16, descent_passes: 1, ..Default::default() };
        let run = |streams: Place, recompute: bool| {
            let memory = Memory { streams, recompute: Some(recompute), chunk_tokens: 32, ..Memory::default() };
            let mut rec = recorder(&device);
            rec.set_memory(memory);
            let mut layers = Replacements::new();
            block_on(quantize(&mut rec, &model, &text, &options, &mut layers, &mut ())).unwrap();
            layers
        };
        let expected = run(Place::Device, false);
        for (place, recompute) in [(Place::Device, true), (Place::File, false), (Place::File, true)] {
            assert!(run(place, recompute) == expected, "{family}, {place:?}, {recompute}");
        }
    }
}
