//! Every family: random tiny models against the published implementation (tests/fixtures/families/make.py), token by token with a
//! cache, and quantized results that are written and read back.

use std::collections::BTreeSet;
use std::path::Path;

use aquatint::Checkpoint;
use aquatint::checkpoint::{CheckpointWriter, DEFAULT_SHARD_LIMIT, DirectorySink, Dtype, Existing, WritePlan};
use aquatint::device::{Device, Memory, Place};
use aquatint::engine::Decoder;
use aquatint::engine::network::Network;
use aquatint::eval::logits;
use aquatint::family::{Block, FAMILIES};
use aquatint::pipeline::{Treatment, quantize};
use aquatint::quant::{GroupSize, Method, QuantizeOptions};
use aquatint::stored::Replacements;
use aquatint::study::checkpoint_run::CheckpointRun;
use pollster::block_on;
use safetensors::SafeTensors;

use crate::common::{device_tests, random, recorder, relative_error};

/// The tests of one fixture. `takes`: for each different block, the groups whose input can be scaled for AWQ.
macro_rules! families {
    ($($name:ident: $folder:literal, takes $takes:expr;)*) => {
        /// All fixtures.
        const FIXTURES: &[&str] = &[$($folder),*];

        $(mod $name {
            use super::*;

            device_tests!(logits: cpu, software_gpu);
            fn logits(device: Device) {
                logits_are_those_of_transformers(&device, $folder);
            }

            device_tests!(token_by_token: cpu, software_gpu);
            fn token_by_token(device: Device) {
                a_cache_changes_nothing(&device, $folder);
            }

            #[test]
            fn takes_scales() {
                let model = open($folder);
                let takes = |block: &Block| {
                    let stops = block.stops().filter(|&stop| block.fold(stop).is_some());
                    stops.map(|stop| block.label(stop)).collect::<Vec<_>>().join(" | ")
                };
                let found: Vec<String> = model.config().distinct_blocks().map(takes).collect();
                assert_eq!(found, $takes);
            }

            #[test]
            fn quantized() {
                is_quantized_written_and_read_back($folder);
            }
        })*
    };
}

families! {
    llama: "llama", takes ["q, k, v | gate, up | down"];
    llama3_scaling: "llama-scaled", takes ["q, k, v | gate, up | down"];
    linear_scaling: "llama-linear", takes ["q, k, v | gate, up | down"];
    yarn: "llama-yarn", takes ["q, k, v | gate, up | down"];
    yarn_with_mscale: "llama-yarn-mscale", takes ["q, k, v | gate, up | down"];
    fp8_in_blocks: "fp8-block", takes ["q, k, v | gate, up | down"];
    fp8_by_tensor: "fp8-tensor", takes ["q, k, v | gate, up | down"];
    mxfp4: "mxfp4", takes ["q, k, v | gate, up | down"];
    mistral: "mistral", takes ["q, k, v | gate, up | down"];
    ministral3: "ministral3", takes ["q, k, v | gate, up | down"];
    ministral3_in_a_wrapper: "mistral3-wrapper", takes ["q, k, v | gate, up | down"];
    qwen2: "qwen2", takes ["q, k, v | gate, up | down"];
    qwen3: "qwen3", takes ["q, k, v | gate, up | down"];
    smollm3: "smollm3", takes ["q, k, v | gate, up | down"; 2];
    granite: "granite", takes ["q, k, v | gate, up | down"; 2];
    seed_oss: "seed_oss", takes ["q, k, v | gate, up | down"];
    // Nothing can be folded through the square.
    arcee: "arcee", takes ["q, k, v | up"];
    helium: "helium", takes ["q, k, v | gate, up | down"];
    // The branches read the residual stream itself, which takes no scales.
    olmo2: "olmo2", takes ["down"];
    olmo3: "olmo3", takes ["down"; 2];
    phi3: "phi3", takes ["qkv | gate_up | down"];
    phi3_short_factors: "phi3-long", takes ["qkv | gate_up | down"];
    phi3_long_factors: "phi3-longer", takes ["qkv | gate_up | down"];
    glm4: "glm4", takes ["q, k, v | gate_up | down"];
    gemma: "gemma", takes ["q, k, v | gate, up | down"; 2];
    gemma2: "gemma2", takes ["q, k, v | gate, up | down"; 2];
    gemma3: "gemma3", takes ["q, k, v | gate, up | down"; 2];
    gemma3_in_a_wrapper: "gemma3-wrapper", takes ["q, k, v | gate, up | down"; 2];
    gemma4: "gemma4", takes ["q, k, v | gate, up | down", "q, k | gate, up | down"];
    gemma4_in_a_wrapper: "gemma4-wrapper", takes ["q, k, v | gate, up | down", "q, k | gate, up | down"];
    gemma4_unified: "gemma4-unified", takes ["q, k, v | gate, up | down", "q, k | gate, up | down"];
    gemma4_unified_in_a_wrapper: "gemma4-unified-wrapper", takes ["q, k, v | gate, up | down", "q, k | gate, up | down"];
    muse_glimmer: "muse_glimmer", takes ["q, k, v, gate | gate, up | down"; 2];
    // One norm feeds two groups, so it can take the scales of neither.
    cohere: "cohere", takes ["down"];
    cohere_with_head_norms: "cohere-qk", takes ["down"];
    cohere2: "cohere2", takes ["down"; 2];
    // All query heads share one value, and GELU passes no factor.
    falcon: "falcon", takes [""];
    falcon_with_two_norms: "falcon-new", takes ["query_key_value | dense_h_to_4h"];
    falcon_with_one_norm: "falcon-one-norm", takes [""];
    stablelm: "stablelm", takes ["q, k, v | gate, up | down"];
    // Here every query head has a value of its own.
    stablelm_parallel: "stablelm-parallel", takes ["o | down"];
    stablelm_with_head_norms: "stablelm-heads", takes ["down"];
    starcoder2: "starcoder2", takes ["q, k, v | c_fc"];
    // ReLU passes a factor, and the first block differs from the others.
    opt: "opt", takes ["q, k, v | out | fc1 | fc2"; 2];
    opt_350m: "opt-350m", takes ["out | fc2", "out | fc2 | project_out"];
    bloom: "bloom", takes ["query_key_value | dense | dense_h_to_4h"; 2];
    gpt2: "gpt2", takes ["c_attn | c_proj | c_fc"; 2];
    gpt_neox: "gpt_neox", takes ["query_key_value | dense | dense_h_to_4h"];
    gpt_neox_serial: "gpt_neox-serial", takes ["query_key_value | dense | dense_h_to_4h"];
    gptj: "gptj", takes ["out"];
}

fn open(family: &str) -> Checkpoint {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/families").join(family);
    block_on(Checkpoint::open(&folder)).unwrap()
}

#[test]
fn every_family_names_its_fixtures() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/families");
    let mut named = BTreeSet::new();
    for family in &FAMILIES {
        assert!(!family.about.fixtures.is_empty(), "{}", family.architecture);
        for fixture in family.about.fixtures {
            let config = std::fs::read_to_string(folder.join(fixture).join("config.json")).unwrap();
            let config: serde_json::Value = serde_json::from_str(&config).unwrap();
            assert_eq!(config["architectures"][0], family.architecture, "{fixture}");
            assert_eq!(config["model_type"], family.model_type, "{fixture}");
            assert!(named.insert(fixture.to_string()), "{fixture}");
        }
    }
    let folders = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let fixtures = folders.filter(|path| path.join("config.json").exists());
    let found: BTreeSet<String> =
        fixtures.map(|path| path.file_name().unwrap().to_str().unwrap().to_string()).collect();
    assert_eq!(found, named);
    assert_eq!(found, FIXTURES.iter().map(|fixture| fixture.to_string()).collect());
}

/// Windows of tokens and their logits in float64, as the published implementation has them.
struct Expected {
    windows: Vec<Vec<u32>>,
    logits: Vec<f64>,
}

fn expected(family: &str) -> Expected {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/families").join(family);
    let bytes = std::fs::read(folder.join("expected.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let ids = file.tensor("input_ids").unwrap();
    let seq_len = ids.shape()[1];
    let ids: Vec<u32> = ids.data().chunks(4).map(|b| u32::from_le_bytes(b.try_into().unwrap())).collect();
    let logits = file.tensor("logits").unwrap();
    let value = |bytes: &[u8]| f64::from(f32::from_le_bytes(bytes.try_into().unwrap()));
    Expected {
        windows: ids.chunks(seq_len).map(<[u32]>::to_vec).collect(),
        logits: logits.data().chunks(4).map(value).collect(),
    }
}

fn logits_are_those_of_transformers(device: &Device, family: &str) {
    let Expected { windows, logits: values } = expected(family);
    let checkpoint = open(family);
    let mut rec = recorder(device);
    let network = Network::new(&mut rec, &checkpoint, None, windows[0].len()).unwrap();
    let ours = block_on(logits(&mut rec, &network, &windows)).unwrap();
    let error = relative_error(&ours, &values);
    assert!(error < 1e-5, "{family} on {}: {error}", device.name());
    let largest = values.iter().fold(0.0f64, |a, b| a.max(b.abs()));
    let worst = ours.iter().zip(&values).fold(0.0f64, |a, (&o, v)| a.max((f64::from(o) - v).abs()));
    assert!(worst < 1e-4 * largest, "{family} on {}: {worst} of {largest}", device.name());
}

/// Reads the second window in pieces of 1, 4, 1, 1, 7 … tokens. Every piece must give the logits of its last token.
fn a_cache_changes_nothing(device: &Device, family: &str) {
    let Expected { windows, logits: values } = expected(family);
    let (window, checkpoint) = (&windows[1], open(family));
    let vocab = checkpoint.config().vocab_size;
    let values = &values[window.len() * vocab..];
    let mut rec = recorder(device);
    let mut decoder = block_on(Decoder::load(&mut rec, &checkpoint, None, window.len())).unwrap();
    let mut start = 0;
    for size in [1, 4, 1, 1, 7].into_iter().cycle() {
        let end = (start + size).min(window.len());
        let ours = block_on(decoder.extend(&mut rec, &window[start..end])).unwrap();
        let error = relative_error(&ours, &values[(end - 1) * vocab..end * vocab]);
        assert!(error < 2e-5, "{family} on {}, token {end}: {error}", device.name());
        start = end;
        if end == window.len() {
            return;
        }
    }
}

/// Windows of 16 random tokens.
fn windows(model: &Checkpoint, count: usize) -> Vec<Vec<u32>> {
    let vocab = model.config().vocab_size;
    let token = |value: &f32| ((value.abs() * vocab as f32) as u32).min(vocab as u32 - 1);
    (0..count).map(|window| random(window as u64, 16).iter().map(token).collect()).collect()
}

fn is_quantized_written_and_read_back(family: &str) {
    let model = open(family);
    let text = windows(&model, 8);
    let mut rec = recorder(&Device::Cpu);
    let network = Network::new(&mut rec, &model, None, 16).unwrap();
    let full: Vec<f64> = block_on(logits(&mut rec, &network, &text)).unwrap().into_iter().map(f64::from).collect();
    // GPTQ stores codes of a column in whole words. Some of the odd shapes do not fill them.
    let odd = model.config().linears().iter().any(|linear| !linear.rows.is_multiple_of(4));
    for method in Method::ALL {
        let options = QuantizeOptions {
            format: odd.then(|| "float".to_string()),
            method,
            bits: 8,
            group_size: GroupSize::PerChannel,
            samples: 8,
            seq_len: 16,
            ..Default::default()
        };
        let treatment = Treatment::new(&options, model.config());
        treatment.validate().unwrap();
        let (settings, layers, format) = (treatment.settings(), treatment.layers(), treatment.format().unwrap());
        let plan = block_on(WritePlan::new(&model, format, settings, &layers, DEFAULT_SHARD_LIMIT)).unwrap();
        let home = tempfile::tempdir().unwrap();
        let sink = DirectorySink::new(&home.path().join("out"), Existing::Refuse, None).unwrap();
        let mut writer = CheckpointWriter::new(&model, plan, Box::new(sink)).unwrap();
        let report = block_on(quantize(&mut rec, &model, &text, &options, &mut writer, &mut ())).unwrap();
        block_on(writer.finish()).unwrap();
        assert_eq!(report.layers.len(), layers.len());
        let scaled = report.layers.iter().filter(|layer| layer.awq_ratio.is_some()).count();
        let takes = |block: &Block| -> usize {
            let stops = block.stops().filter(|&stop| block.fold(stop).is_some());
            stops.map(|stop| block.group(stop).iter().filter(|linear| linear.quantizable).count()).sum()
        };
        let takes: usize = model.config().blocks.iter().map(|block| takes(block)).sum();
        assert_eq!(scaled, if method == Method::Awq { takes } else { 0 }, "{family}, {method}");
        let written = block_on(Checkpoint::open(&home.path().join("out"))).unwrap();
        let network = Network::new(&mut rec, &written, None, 16).unwrap();
        let error = relative_error(&block_on(logits(&mut rec, &network, &text)).unwrap(), &full);
        // QuIP's grid ends at 2.4 root mean squares, which cuts the tails of random weights.
        let bound = if method.quantizer().off_grid().is_some() { 0.3 } else { 0.05 };
        assert!(error < bound, "{family}, {method}: {error}");
    }
}

/// A run on a source in low precision in which some layers stay: they become ordinary floats.
#[test]
fn a_layer_that_stays_keeps_its_weights_in_the_type_of_the_config() {
    let skip = vec![regex::Regex::new("down_proj").unwrap()];
    for (family, layout) in [("fp8-block", "FP8"), ("fp8-tensor", "FP8"), ("mxfp4", "MXFP4")] {
        let model = open(family);
        assert_eq!((model.layout(), model.quantized_layout()), (Some(layout), None));
        let (bits, group_size, skip) = (8, GroupSize::PerChannel, skip.clone());
        let options = QuantizeOptions { bits, group_size, skip, samples: 8, seq_len: 16, ..Default::default() };
        let text = windows(&model, 8);
        let mut rec = recorder(&Device::Cpu);
        let home = tempfile::tempdir().unwrap();
        let out = home.path().join("out");
        let run = block_on(CheckpointRun::new(&model, &options)).unwrap();
        let writer = run.writer(Box::new(DirectorySink::new(&out, Existing::Refuse, None).unwrap())).unwrap();
        block_on(run.quantize(&mut rec, &text, writer, None, &mut ())).unwrap();
        let written = block_on(Checkpoint::open(&out)).unwrap();
        assert_eq!(written.quantized_layout(), Some("GPTQ"));
        for linear in model.config().linears() {
            let name = format!("{}.weight", linear.name);
            assert_eq!(written.is_packed(&name), !name.contains("down_proj"), "{name}");
            if name.contains("down_proj") {
                let weight = block_on(model.read(&name)).unwrap();
                let rounded: Vec<f32> = weight.into_iter().map(|w| half::bf16::from_f32(w).to_f32()).collect();
                assert_eq!(written.dtype(&name).unwrap(), Dtype::BF16);
                assert_eq!(block_on(written.read(&name)).unwrap(), rounded, "{name}");
            }
        }
        let outputs = [&model, &written].map(|model| {
            let network = Network::new(&mut rec, model, None, 16).unwrap();
            block_on(logits(&mut rec, &network, &text)).unwrap()
        });
        let full: Vec<f64> = outputs[0].iter().copied().map(f64::from).collect();
        let error = relative_error(&outputs[1], &full);
        assert!(error < 0.05, "{family}: {error}");
    }
}

device_tests!(where_hidden_states_are_changes_no_bit_of_any_family: cpu, software_gpu);
fn where_hidden_states_are_changes_no_bit_of_any_family(device: Device) {
    let families = [
        "qwen3",
        "stablelm",
        "stablelm-parallel",
        "smollm3",
        "granite",
        "olmo3",
        "gemma3",
        "falcon-new",
        "opt-350m",
        "bloom",
    ];
    for family in families {
        let model = open(family);
        let text = windows(&model, 5);
        // GPTQ's format stores codes of 3 bits in other shapes only.
        let format = Some("float".to_string());
        let options =
            QuantizeOptions { format, bits: 3, samples: 5, seq_len: 16, descent_passes: 1, ..Default::default() };
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
