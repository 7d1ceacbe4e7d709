//! Whole GGUF files: a model with random codes is written and read back, with every type, and with the names, the order of
//! rows and the norms of several families. What is read back is compared with what went in, tensor by tensor.

use aquatint::checkpoint::formats::named;
use aquatint::checkpoint::gguf::mixtures::Mixture;
use aquatint::checkpoint::gguf::model::{grid_of, type_of};
use aquatint::checkpoint::gguf::types::BlockType;
use aquatint::checkpoint::{
    Checkpoint, CheckpointWriter, Existing, FileSink, LayerPlan, QuantizationSettings, WritePlan,
};
use aquatint::stored::QuantizedLinear;
use aquatint::{Error, Result};
use pollster::block_on;
use serde_json::{Value, json};

use crate::small_model::{Model, open, random_on};

const TOKENIZER: &[u8] = include_bytes!("../fixtures/tiny-llama/tokenizer.json");
const VOCABULARY: usize = 1024;

/// A model with the configuration `config` and with the tokenizer of the bundled model.
fn model(config: Value) -> Checkpoint {
    let model = Model::new(|own| {
        *own = config;
        own["vocab_size"] = VOCABULARY.into();
    });
    let files = vec![
        ("config.json", model.config.to_string().into_bytes()),
        ("model.safetensors", model.weights()),
        ("tokenizer.json", TOKENIZER.to_vec()),
    ];
    block_on(open(files)).unwrap()
}

fn llama(hidden: usize, tied: bool) -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden, "intermediate_size": 2 * hidden,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "hidden_act": "silu", "max_position_embeddings": 64, "tie_word_embeddings": tied,
    })
}

fn settings(mixture: Option<Mixture>, bits: u32, symmetric: bool) -> QuantizationSettings {
    QuantizationSettings { bits, group_size: None, symmetric, mixture, damping: 0.01 }
}

/// Writes `source` as a GGUF file with random layers, and opens it. Returns the layers, too.
fn write(source: &Checkpoint, settings: QuantizationSettings) -> (Checkpoint, Vec<QuantizedLinear>) {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("model.gguf");
    let all = LayerPlan::all(source.config(), settings.bits);
    let plan = block_on(WritePlan::new(source, named("gguf").unwrap(), settings, &all, 1 << 30)).unwrap();
    let planned = plan.bytes();
    let layers: Vec<QuantizedLinear> = source
        .config()
        .linears()
        .iter()
        .enumerate()
        .map(|(seed, spec)| {
            random_on(plan.grid(&spec.name).unwrap(), &spec.name, [spec.rows, spec.columns], seed as u64)
        })
        .collect();
    let sink = FileSink::new(&path, Existing::Refuse, None).unwrap();
    let mut writer = CheckpointWriter::new(source, plan, Box::new(sink)).unwrap();
    for layer in &layers {
        block_on(writer.put_linear(&layer.clone().into())).unwrap();
    }
    block_on(writer.finish()).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().len(), planned, "the planned size");
    (block_on(Checkpoint::open(&path)).unwrap(), layers)
}

/// Checks every tensor of `read` against the layers and against those of `source` that are not quantized. The matrices outside
/// the blocks, whose numbers lie in [−1, 1], may be off by `rounding` in the root of the mean square.
fn compare(source: &Checkpoint, read: &Checkpoint, layers: &[QuantizedLinear], rounding: f32) {
    let names = source.config().expected_tensors().into_iter().zip(read.config().expected_tensors());
    for ((name, shape), (theirs, _)) in names {
        let values = block_on(read.read(&theirs)).unwrap();
        if let Some(layer) = layers.iter().find(|layer| name == format!("{}.weight", layer.name)) {
            assert_eq!(values, layer.dequantize(), "{name}");
            continue;
        }
        let expected = block_on(source.read(&name)).unwrap();
        // Norms lose a bit where 1 is added and taken away; matrices outside the blocks are rounded.
        let most = if shape.len() == 1 { 2e-7 } else { rounding };
        let squares: f32 = values.iter().zip(&expected).map(|(a, b)| (a - b) * (a - b)).sum();
        let apart = (squares / values.len() as f32).sqrt();
        assert!(apart <= most, "{name} is {apart} apart");
        let rows = block_on(read.read_rows(&theirs, 0..1)).unwrap();
        assert_eq!(rows, values[..rows.len()], "rows of {name}");
    }
}

#[test]
fn every_type_is_written_and_read_back() {
    let source = model(llama(256, false));
    for mixture in Mixture::ALL {
        let block_type = mixture.default_type();
        let Some(grid) = grid_of(block_type) else { continue };
        assert_eq!(type_of(&grid), Some(block_type));
        let (read, layers) = write(&source, settings(Some(mixture), 4, true));
        assert!(layers.iter().any(|layer| layer.grid == grid), "{mixture}");
        assert_eq!(read.quantized_layout(), Some("GGUF"));
        // Codes of 2 bits have steps of two thirds.
        compare(&source, &read, &layers, if block_type == BlockType::Q2K { 0.22 } else { 0.1 });
    }
}

#[test]
fn rows_norms_and_ties_of_families_are_undone() {
    let gemma = json!({
        "architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2", "hidden_size": 64, "intermediate_size": 96,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0, "hidden_activation": "gelu_pytorch_tanh", "max_position_embeddings": 64,
        "query_pre_attn_scalar": 16, "sliding_window": 32, "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0, "tie_word_embeddings": true,
    });
    let bloom = json!({
        "architectures": ["BloomForCausalLM"], "model_type": "bloom", "hidden_size": 64, "n_layer": 2, "n_head": 4,
        "layer_norm_epsilon": 1e-5, "seq_length": 64,
    });
    let neox = json!({
        "architectures": ["GPTNeoXForCausalLM"], "model_type": "gpt_neox", "hidden_size": 64, "intermediate_size": 128,
        "num_hidden_layers": 2, "num_attention_heads": 4, "rotary_pct": 0.25, "rotary_emb_base": 10000,
        "layer_norm_eps": 1e-5, "hidden_act": "gelu_new", "use_parallel_residual": true, "max_position_embeddings": 64,
        "tie_word_embeddings": false,
    });
    for config in [llama(64, true), llama(64, false), gemma, bloom, neox] {
        let source = model(config);
        let (read, layers) = write(&source, settings(Some(Mixture::Q4_1), 4, true));
        assert_eq!(read.config().tie_word_embeddings, source.config().tie_word_embeddings);
        compare(&source, &read, &layers, 0.05);
    }
}

#[test]
fn the_tokenizer_is_in_the_file() {
    let source = model(llama(64, true));
    let (read, _) = write(&source, settings(None, 4, true));
    let [ours, theirs] = [&source, &read].map(|model| block_on(model.tokenizer()).unwrap());
    let text = "The river rose 1,204 metres; naïve façade — 東京\n\n  two  spaces";
    assert_eq!(ours.encode(text).unwrap(), theirs.encode(text).unwrap());
}

#[test]
fn bits_become_types_and_other_wishes_are_refused() {
    let types = |hidden: usize, bits: u32, symmetric: bool| -> Result<Vec<BlockType>> {
        let source = model(llama(hidden, true));
        let all = LayerPlan::all(source.config(), bits);
        let plan =
            block_on(WritePlan::new(&source, named("gguf").unwrap(), settings(None, bits, symmetric), &all, 1 << 30))?;
        let mut types: Vec<BlockType> = all.iter().filter_map(|layer| type_of(&plan.grid(&layer.name)?)).collect();
        types.sort_by_key(|block_type| block_type.id());
        types.dedup();
        Ok(types)
    };
    assert_eq!(types(64, 4, true).unwrap(), [BlockType::Q4_0]);
    assert_eq!(types(64, 4, false).unwrap(), [BlockType::Q4_1]);
    assert_eq!(types(64, 2, false).unwrap(), [BlockType::Q2_0]);
    assert_eq!(types(64, 8, true).unwrap(), [BlockType::Q8_0]);
    assert!(types(256, 4, true).unwrap().contains(&BlockType::Q4K));
    assert!(types(256, 2, true).unwrap().contains(&BlockType::Q2K));
    let refused = |result: Result<Vec<BlockType>>, expected: &str| match result {
        Err(error @ Error::Input { .. }) => assert!(error.to_string().contains(expected), "{error}"),
        other => panic!("{other:?}"),
    };
    refused(types(64, 3, false), "2, 4 or 8 for a GGUF file of a model whose rows are no multiples of 256");
}
