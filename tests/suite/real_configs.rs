//! The files config.json of real releases (tests/fixtures/configs): each is read, and means what the release is.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use aquatint::ModelConfig;
use aquatint::family::{Attention, FAMILIES, Op, Rope, RopeScaling};
use serde_json::{Value, json};

/// A release.
struct Release {
    /// Name of the fixture.
    file: &'static str,
    /// Number of parameters of the language model. A tied output matrix counts once.
    parameters: usize,
    tied: bool,
    /// Keys whose effect is not known.
    unknown: &'static [&'static str],
}

/// A release with an output matrix of its own.
const fn untied(file: &'static str, parameters: usize) -> Release {
    Release { file, parameters, tied: false, unknown: &[] }
}

/// A release whose output matrix is the embedding.
const fn tied(file: &'static str, parameters: usize) -> Release {
    Release { file, parameters, tied: true, unknown: &[] }
}

const RELEASES: [Release; 70] = [
    untied("llama-3.1-8b", 8_030_261_248),
    tied("llama-3.2-1b", 1_235_814_400),
    untied("tinyllama-1.1b", 1_100_048_384),
    tied("smollm2-360m", 361_822_080),
    untied("mistral-7b-v0.1", 7_241_732_096),
    untied("mistral-7b-v0.3", 7_248_023_552),
    untied("mistral-nemo-12b", 12_247_782_400),
    untied("devstral-2-123b", 125_025_988_608),
    untied("devstral-small-2-24b", 23_572_403_200),
    tied("ministral-3-3b", 3_429_006_336),
    untied("mistral-small-3.1-24b", 23_572_403_200),
    tied("qwen2.5-0.5b", 494_032_768),
    untied("qwen2.5-72b", 72_706_203_648),
    // Another kind of attention for texts of more than 262,144 tokens, which transformers does not compute.
    Release { unknown: &["dual_chunk_attention_config"], ..untied("qwen2.5-7b-1m", 7_615_616_512) },
    tied("qwen3-0.6b", 596_049_920),
    tied("smollm3-3b", 3_075_098_624),
    tied("granite-3.0-2b", 2_533_531_648),
    tied("granite-3.1-8b", 8_170_848_256),
    untied("seed-oss-36b", 36_151_104_512),
    untied("afm-4.5b", 4_619_184_640),
    untied("helium-1-2b", 2_172_643_840),
    untied("olmo-2-7b", 7_298_617_344),
    untied("olmo-3-7b", 7_298_011_136),
    untied("olmo-3.1-32b", 32_233_522_176),
    untied("phi-3-mini-4k", 3_821_079_552),
    untied("phi-3.5-mini", 3_821_079_552),
    untied("phi-4", 14_659_507_200),
    tied("phi-4-mini", 3_836_021_760),
    untied("glm-4-9b-0414", 9_400_279_040),
    untied("glm-4-32b-0414", 32_566_081_536),
    untied("muse-glimmer-30b", 27_854_780_928),
    tied("gemma-2b", 2_506_172_416),
    tied("gemma-1.1-7b", 8_537_680_896),
    tied("gemma-2-2b", 2_614_341_888),
    tied("gemma-2-27b", 27_227_128_320),
    tied("gemma-3-270m", 268_098_176),
    tied("gemma-3-1b", 999_885_952),
    tied("gemma-3-4b", 3_880_263_168),
    tied("gemma-3-12b", 11_766_034_176),
    tied("gemma-3-27b", 27_009_346_304),
    tied("gemma-4-31b", 30_697_345_340),
    tied("gemma-4-31b-text", 30_697_345_340),
    tied("gemma-4-12b", 11_907_350_320),
    tied("gemma-4-12b-text", 11_907_350_320),
    tied("command-r-35b", 34_980_831_232),
    tied("command-r-08-2024", 32_296_476_672),
    tied("command-r-plus", 103_810_674_688),
    tied("command-r7b", 8_028_033_024),
    tied("command-a", 111_057_580_032),
    tied("falcon-7b", 6_921_720_704),
    tied("falcon-40b", 41_303_293_952),
    untied("falcon-2-11b", 11_102_822_400),
    untied("stablelm-3b-4e1t", 2_795_443_200),
    untied("stablelm-2-1.6b", 1_644_515_328),
    untied("stablelm-2-12b", 12_143_185_920),
    tied("starcoder2-3b", 3_030_371_328),
    tied("starcoder2-7b", 7_173_923_840),
    untied("starcoder2-15b", 15_957_889_024),
    tied("opt-125m", 125_239_296),
    tied("opt-350m", 331_196_416),
    tied("opt-6.7b", 6_658_473_984),
    tied("bloom-560m", 559_214_592),
    tied("bloom-560m-saved", 559_214_592),
    tied("bloomz-3b", 3_002_557_440),
    tied("gpt2", 124_439_808),
    tied("distilgpt2", 81_912_576),
    untied("pythia-70m", 70_426_624),
    untied("pythia-1.4b", 1_414_647_808),
    untied("gpt-neox-20b", 20_554_567_680),
    untied("gpt-j-6b", 6_050_882_784),
];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/configs")
}

/// The configuration of a release as JSON.
fn value(file: &str) -> Value {
    let path = folder().join(format!("{file}.json"));
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// The model that a release describes.
pub(crate) fn release(file: &str) -> ModelConfig {
    ModelConfig::from_value(&value(file), file).unwrap()
}

/// The release with another value of `key`, next to the keys of the language model.
fn changed(file: &str, key: &str, new: Value) -> Result<ModelConfig, String> {
    let mut value = value(file);
    let object = if value.get("text_config").is_some() { &mut value["text_config"] } else { &mut value };
    object[key] = new;
    ModelConfig::from_value(&value, file).map_err(|error| error.to_string())
}

fn parameters(model: &ModelConfig) -> usize {
    model.expected_tensors().iter().map(|(_, shape)| shape.iter().product::<usize>()).sum()
}

fn attention(model: &ModelConfig, layer: usize) -> Attention {
    model.blocks[layer].attentions().next().unwrap().1
}

/// Index of the table of angles of every layer. `None`: the layer does not rotate.
fn tables(model: &ModelConfig) -> Vec<Option<usize>> {
    let table = |op: &Op| if let Op::Rope { table, .. } = op { Some(*table) } else { None };
    model.blocks.iter().map(|block| block.nodes.iter().find_map(|node| table(&node.op))).collect()
}

/// The factors and bounds of the head, in the order in which they act on the logits.
fn logits(model: &ModelConfig) -> Vec<f32> {
    let number = |op: &Op| match op {
        Op::Scale(number) | Op::Softcap(number) => Some(*number),
        _ => None,
    };
    model.head.nodes.iter().filter_map(|node| number(&node.op)).collect()
}

#[test]
fn every_release_is_read_with_its_size_and_without_a_key_that_is_not_understood() {
    for Release { file, parameters: count, tied, unknown } in RELEASES {
        let model = release(file);
        assert_eq!((parameters(&model), model.tie_word_embeddings), (count, tied), "{file}");
        assert_eq!(model.unknown_keys, *unknown, "{file}");
    }
    let read: BTreeSet<String> = RELEASES.iter().map(|release| format!("{}.json", release.file)).collect();
    let entries = std::fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let stored: BTreeSet<String> = entries.filter(|name| name.ends_with(".json")).collect();
    assert_eq!(read, stored);
}

#[test]
fn every_architecture_has_a_release() {
    let architectures: Vec<Value> =
        RELEASES.iter().map(|release| value(release.file)["architectures"][0].clone()).collect();
    for family in &FAMILIES {
        assert!(architectures.iter().any(|name| name == family.architecture), "{}", family.architecture);
    }
}

/// A tensor of a release, with its shape as `[outputs, inputs]`.
type Tensor = (&'static str, &'static str, &'static [usize]);

/// Tensors of the first and the last blocks in which sizes that are easily confused differ.
const TENSORS: [Tensor; 40] = [
    ("llama-3.1-8b", "model.layers.31.self_attn.k_proj.weight", &[1024, 4096]),
    ("mistral-nemo-12b", "model.layers.39.self_attn.q_proj.weight", &[4096, 5120]),
    ("devstral-2-123b", "model.layers.87.self_attn.o_proj.weight", &[12288, 12288]),
    ("ministral-3-3b", "model.layers.25.self_attn.q_proj.weight", &[4096, 3072]),
    ("mistral-small-3.1-24b", "model.layers.0.self_attn.o_proj.weight", &[5120, 4096]),
    ("qwen2.5-0.5b", "model.layers.23.self_attn.v_proj.bias", &[128]),
    ("qwen3-0.6b", "model.layers.27.self_attn.q_norm.weight", &[128]),
    ("smollm3-3b", "model.layers.35.self_attn.k_proj.weight", &[512, 2048]),
    ("seed-oss-36b", "model.layers.63.self_attn.q_proj.bias", &[10240]),
    ("afm-4.5b", "model.layers.35.mlp.up_proj.weight", &[18432, 2560]),
    ("helium-1-2b", "model.layers.23.mlp.down_proj.weight", &[2560, 7040]),
    ("olmo-2-7b", "model.layers.31.post_feedforward_layernorm.weight", &[4096]),
    ("olmo-3.1-32b", "model.layers.0.self_attn.k_norm.weight", &[1024]),
    ("phi-3-mini-4k", "model.layers.31.self_attn.qkv_proj.weight", &[9216, 3072]),
    ("phi-4", "model.layers.39.mlp.gate_up_proj.weight", &[35840, 5120]),
    ("phi-4-mini", "model.layers.31.self_attn.qkv_proj.weight", &[5120, 3072]),
    ("glm-4-9b-0414", "model.layers.39.self_attn.k_proj.bias", &[256]),
    ("glm-4-32b-0414", "model.layers.60.post_self_attn_layernorm.weight", &[6144]),
    ("muse-glimmer-30b", "model.layers.51.self_attn.gate_proj.weight", &[4096, 6656]),
    ("gemma-2b", "model.layers.17.self_attn.v_proj.weight", &[256, 2048]),
    ("gemma-2-27b", "model.layers.45.self_attn.q_proj.weight", &[4096, 4608]),
    ("gemma-3-4b", "model.layers.33.self_attn.q_proj.weight", &[2048, 2560]),
    ("gemma-3-4b", "model.embed_tokens.weight", &[262_208, 2560]),
    ("gemma-3-27b", "model.layers.61.self_attn.k_norm.weight", &[128]),
    ("gemma-4-31b", "model.layers.0.self_attn.v_proj.weight", &[4096, 5376]),
    ("gemma-4-31b", "model.layers.59.self_attn.k_proj.weight", &[2048, 5376]),
    ("gemma-4-12b", "model.layers.47.self_attn.k_proj.weight", &[512, 3840]),
    ("gemma-4-12b", "model.layers.47.layer_scalar", &[1]),
    ("command-r-plus", "model.layers.63.self_attn.q_norm.weight", &[96, 128]),
    ("falcon-7b", "transformer.h.31.self_attention.query_key_value.weight", &[4672, 4544]),
    ("falcon-40b", "transformer.h.59.ln_mlp.bias", &[8192]),
    ("falcon-2-11b", "transformer.h.59.input_layernorm.weight", &[4096]),
    ("stablelm-2-12b", "model.layers.39.self_attn.k_layernorm.norms.7.weight", &[160]),
    ("starcoder2-3b", "model.layers.29.mlp.c_fc.bias", &[12288]),
    ("opt-350m", "model.decoder.project_in.weight", &[1024, 512]),
    ("opt-350m", "model.decoder.embed_positions.weight", &[2050, 1024]),
    ("bloom-560m", "transformer.h.23.self_attention.query_key_value.bias", &[3072]),
    ("gpt2", "transformer.h.11.attn.c_attn.weight", &[2304, 768]),
    ("pythia-70m", "gpt_neox.layers.5.attention.query_key_value.weight", &[1536, 512]),
    ("gpt-j-6b", "lm_head.bias", &[50400]),
];

#[test]
fn tensors_have_the_shapes_of_the_release() {
    for (file, name, shape) in TENSORS {
        let tensors = release(file).expected_tensors();
        let found = tensors.iter().find(|(tensor, _)| tensor == name);
        assert_eq!(found.map(|(_, shape)| &shape[..]), Some(shape), "{file}: {name}");
    }
    let lacks = |file: &str, name: &str| !release(file).expected_tensors().iter().any(|(tensor, _)| tensor == name);
    // Values are keys in the global layers of Gemma 4.
    assert!(lacks("gemma-4-31b", "model.layers.59.self_attn.v_proj.weight"));
    assert!(lacks("glm-4-32b-0414", "model.layers.0.self_attn.q_proj.bias"));
    assert!(lacks("opt-350m", "model.decoder.final_layer_norm.weight"));
    assert!(lacks("falcon-2-11b", "transformer.h.0.ln_mlp.weight"));
}

#[test]
fn windows_are_in_the_layers_that_have_one() {
    let windows = |file: &str| -> Vec<Option<usize>> {
        let model = release(file);
        (0..model.blocks.len()).map(|layer| attention(&model, layer).window).collect()
    };
    for (file, window) in [
        ("mistral-7b-v0.1", Some(4096)),
        ("mistral-7b-v0.3", None),
        ("mistral-small-3.1-24b", None),
        ("ministral-3-3b", None),
        ("qwen2.5-72b", None),
        ("smollm3-3b", None),
        ("phi-3-mini-4k", Some(2047)),
        ("phi-3.5-mini", Some(262_144)),
        ("phi-4", None),
        ("starcoder2-15b", Some(4096)),
    ] {
        assert!(windows(file).iter().all(|&found| found == window), "{file}");
    }
    for (file, window, period) in [
        ("gemma-2-2b", 4096, 2),
        ("olmo-3-7b", 4096, 4),
        ("muse-glimmer-30b", 2048, 4),
        ("command-r7b", 4096, 4),
        ("command-a", 4096, 4),
        ("gemma-3-270m", 512, 6),
        ("gemma-3-1b", 512, 6),
        ("gemma-3-4b", 1024, 6),
        ("gemma-3-27b", 1024, 6),
        ("gemma-4-31b", 1024, 6),
        ("gemma-4-12b-text", 1024, 6),
    ] {
        let expected = |layer: usize| (!(layer + 1).is_multiple_of(period)).then_some(window);
        let found = windows(file);
        assert_eq!(found, (0..found.len()).map(expected).collect::<Vec<_>>(), "{file}");
    }
}

#[test]
fn angles_are_those_of_the_release() {
    let plain = |rotated, theta| Rope { rotated, theta, scaling: RopeScaling::None, growth: None };
    for (file, expected) in [
        ("tinyllama-1.1b", plain(64, 1e4)),
        ("mistral-small-3.1-24b", plain(128, 1e9)),
        ("qwen2.5-7b-1m", plain(128, 1e7)),
        ("smollm3-3b", plain(128, 5e6)),
        ("seed-oss-36b", plain(128, 1e7)),
        ("helium-1-2b", plain(128, 1e5)),
        ("phi-4", plain(128, 2.5e5)),
        ("glm-4-9b-0414", plain(64, 1e4)),
        ("gemma-2-27b", plain(128, 1e4)),
        ("command-r-plus", plain(128, 7.5e7)),
        ("falcon-2-11b", plain(128, 500_042.0)),
        ("stablelm-2-12b", plain(40, 1e4)),
        ("starcoder2-3b", plain(128, 999_999.442_035_881_3)),
        ("pythia-70m", plain(16, 1e4)),
        ("gpt-neox-20b", plain(24, 1e4)),
        ("gpt-j-6b", plain(64, 1e4)),
    ] {
        assert_eq!(release(file).ropes, [expected], "{file}");
    }
    let llama3 = RopeScaling::Llama3 {
        factor: 32.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 8192,
    };
    assert_eq!(release("llama-3.2-1b").ropes, [Rope { scaling: llama3, ..plain(64, 5e5) }]);
    let linear = RopeScaling::Linear { factor: 8.0 };
    let gemma = [Rope { scaling: linear, ..plain(256, 1e6) }, plain(256, 1e4)];
    assert_eq!(release("gemma-3-4b").ropes, gemma);
    assert_eq!(release("gemma-3-1b").ropes, [plain(256, 1e6), plain(256, 1e4)]);
    let proportional = RopeScaling::Proportional { turning: 128, factor: 1.0 };
    assert_eq!(release("gemma-4-31b").ropes, [Rope { scaling: proportional, ..plain(512, 1e6) }, plain(256, 1e4)]);
    for file in ["opt-125m", "bloom-560m", "gpt2"] {
        assert_eq!(release(file).ropes, [], "{file}");
    }
}

#[test]
fn scaled_angles_have_the_factors_of_the_release() {
    let yarn = |file: &str| match &release(file).ropes[0].scaling {
        RopeScaling::Yarn { factor, beta_fast, attention_factor, original_max_position_embeddings: length, .. } => {
            (*factor, *beta_fast, *attention_factor, *length)
        }
        other => panic!("{file}: {other:?}"),
    };
    // Two factors of magnitude that are alike cancel; a zero counts as none.
    assert_eq!(yarn("ministral-3-3b"), (16.0, 32.0, 1.0, 16384));
    assert_eq!(yarn("devstral-2-123b"), (64.0, 4.0, 0.1 * 64f64.ln() + 1.0, 4096));
    assert_eq!(yarn("afm-4.5b"), (20.0, 32.0, 0.1 * 20f64.ln() + 1.0, 4096));
    assert_eq!(yarn("olmo-3-7b"), (8.0, 32.0, 1.207_944_154_167_983_6, 8192));
    let olmo = release("olmo-3-7b");
    assert_eq!((&olmo.ropes[1].scaling, olmo.ropes[1].theta), (&RopeScaling::None, 5e5));
    // Queries of Ministral 3 grow with their position; those of Devstral 2 123B do not.
    let growing =
        |file: &str| release(file).ropes.iter().filter_map(|rope| rope.growth).map(|growth| growth.beta).sum::<f64>();
    assert_eq!(
        [growing("ministral-3-3b"), growing("devstral-small-2-24b"), growing("devstral-2-123b")],
        [0.1, 0.1, 0.0]
    );
    for (file, factors, last) in [("phi-3.5-mini", 48, 64.839_996_337_890_62), ("phi-4-mini", 48, 47.77)] {
        let RopeScaling::LongRope { short_factor, long_factor, attention_factor, original_max_position_embeddings } =
            release(file).ropes[0].scaling.clone()
        else {
            panic!("{file}")
        };
        assert_eq!((short_factor.len(), long_factor.len(), long_factor[47]), (factors, factors, last), "{file}");
        assert_eq!(attention_factor, (1.0 + 32f64.ln() / 4096f64.ln()).sqrt());
        assert_eq!(original_max_position_embeddings, 4096);
    }
}

#[test]
fn layers_turn_by_the_table_of_their_kind() {
    let every = |layers: usize, table: &dyn Fn(usize) -> Option<usize>| (0..layers).map(table).collect::<Vec<_>>();
    let fourth = |layer: usize| (layer + 1).is_multiple_of(4);
    let sixth = |layer: usize| (layer + 1).is_multiple_of(6);
    let turns = |layer| (!fourth(layer)).then_some(0);
    assert_eq!(tables(&release("smollm3-3b")), every(36, &turns));
    assert_eq!(tables(&release("command-a")), every(64, &turns));
    assert_eq!(tables(&release("muse-glimmer-30b")), every(52, &turns));
    assert_eq!(tables(&release("command-r-35b")), every(40, &|_| Some(0)));
    assert_eq!(tables(&release("olmo-3-7b")), every(32, &|layer| Some(usize::from(!fourth(layer)))));
    for (file, layers) in [("gemma-3-4b", 34), ("gemma-4-31b", 60), ("gemma-4-12b", 48)] {
        assert_eq!(tables(&release(file)), every(layers, &|layer| Some(usize::from(!sixth(layer)))), "{file}");
    }
}

#[test]
fn scores_and_logits_have_the_factors_and_bounds_of_the_release() {
    let scores = |file: &str| {
        let Attention { scale, softcap, .. } = attention(&release(file), 0);
        (scale, softcap)
    };
    assert_eq!(scores("gemma-2-27b"), (1.0 / 12.0, Some(50.0)));
    assert_eq!(scores("gemma-3-27b"), (1.0 / 168f32.sqrt(), None));
    assert_eq!(scores("gemma-4-31b"), (1.0, None));
    assert_eq!(scores("granite-3.1-8b"), (0.0078125, None));
    assert_eq!(attention(&release("bloom-560m"), 0).alibi, Some(1.0));
    for (file, expected) in [
        ("gemma-2-2b", &[30.0][..]),
        ("gemma-3-4b", &[]),
        ("gemma-4-12b", &[30.0]),
        ("granite-3.0-2b", &[0.125]),
        ("command-r-35b", &[0.0625]),
        ("command-r-plus", &[0.833_333_3]),
        ("command-r7b", &[0.25]),
        ("muse-glimmer-30b", &[0.196_116_14, 20.0]),
        ("llama-3.1-8b", &[]),
    ] {
        assert_eq!(logits(&release(file)), expected, "{file}");
    }
}

/// A release of every family, and whether its output matrix is tied where the file does not say, as in transformers.
const TIED_BY_DEFAULT: [(&str, bool); 28] = [
    ("llama-3.2-1b", false),
    ("mistral-7b-v0.3", false),
    ("devstral-2-123b", false),
    ("qwen2.5-0.5b", false),
    ("qwen3-0.6b", false),
    ("smollm3-3b", true),
    ("granite-3.0-2b", false),
    ("seed-oss-36b", false),
    ("afm-4.5b", false),
    ("helium-1-2b", false),
    ("olmo-2-7b", false),
    ("olmo-3-7b", false),
    ("phi-4-mini", false),
    ("glm-4-9b-0414", false),
    ("gemma-2b", true),
    ("gemma-2-2b", true),
    ("gemma-3-1b", true),
    ("gemma-4-31b-text", true),
    ("gemma-4-12b-text", true),
    ("command-r-35b", true),
    ("command-a", true),
    ("falcon-2-11b", true),
    ("stablelm-2-1.6b", false),
    ("starcoder2-15b", true),
    ("opt-125m", true),
    ("gpt2", true),
    ("gpt-neox-20b", false),
    ("gpt-j-6b", false),
];

#[test]
fn without_the_key_the_family_decides_whether_the_output_matrix_is_tied() {
    for (file, tied) in TIED_BY_DEFAULT {
        let mut value = value(file);
        value.as_object_mut().unwrap().remove("tie_word_embeddings");
        let model = ModelConfig::from_value(&value, file).unwrap();
        assert_eq!(model.tie_word_embeddings, tied, "{file}");
    }
    // The key of the language model counts more than that of the whole model.
    let both = |inner: Value, outer: Value| {
        let mut value = value("mistral-small-3.1-24b");
        value["text_config"]["tie_word_embeddings"] = inner;
        value["tie_word_embeddings"] = outer;
        ModelConfig::from_value(&value, "both").unwrap().tie_word_embeddings
    };
    assert_eq!([both(json!(null), json!(true)), both(json!(false), json!(true))], [true, false]);
}

#[test]
fn a_value_for_which_a_family_is_not_written_is_refused() {
    for (file, key, value) in [
        ("starcoder2-3b", "mlp_type", json!("gated")),
        ("starcoder2-3b", "norm_type", json!("rms_norm")),
        ("phi-4-mini", "full_attn_mod", json!(2)),
        ("phi-4-mini", "interpolate_factor", json!(2)),
        ("command-r7b", "layer_switch", json!(3)),
        ("command-r7b", "order_of_interleaved_layers", json!("global_attn_first")),
        ("command-r7b", "position_embedding_type", json!("rope")),
        ("command-r7b", "use_gated_activation", json!(false)),
        ("command-r7b", "use_parallel_block", json!(false)),
        ("command-r7b", "use_embedding_sharing", json!(false)),
        ("command-r7b", "rotary_pct", json!(0.5)),
        ("falcon-2-11b", "ff_factor", json!(3)),
        ("stablelm-2-12b", "use_norm_bias", json!(true)),
        ("stablelm-2-12b", "rotary_scaling_factor", json!(2)),
        ("gemma-2-27b", "sliding_window_size", json!(512)),
        ("gpt-j-6b", "rotary", json!(false)),
        ("gemma-4-31b", "use_double_wide_mlp", json!(true)),
        ("ministral-3-3b", "tie_word_embeddings", json!("yes")),
    ] {
        let message = changed(file, key, value).map(|_| ()).unwrap_err();
        assert!(message.contains(key) && message.contains("expected"), "{file}: {message}");
    }
    assert!(changed("falcon-2-11b", "ff_factor", json!(4.0)).is_ok());
    // Keys that clients do not read in these families.
    assert!(changed("starcoder2-7b", "activation_function", json!("relu")).is_ok());
    assert!(changed("bloom-560m", "offset_alibi", json!(7)).is_ok());
}

#[test]
fn a_wrapper_of_the_older_mistral_has_its_defaults() {
    let mut value = value("mistral-small-3.1-24b");
    let text = value["text_config"].as_object_mut().unwrap();
    text.retain(|key, _| !["model_type", "sliding_window", "head_dim"].contains(&key.as_str()));
    let model = ModelConfig::from_value(&value, "mistral3").unwrap();
    let Attention { window, head_dim, .. } = attention(&model, 0);
    assert_eq!((window, head_dim), (Some(4096), 160));
}

#[test]
fn fixtures_of_random_models_exist() {
    let families = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/families");
    for family in &FAMILIES {
        for name in family.about.fixtures {
            assert!(families.join(name).is_dir(), "{}: {name}", family.architecture);
        }
    }
}
