//! What follows from the description of a block: cuts, folds, tensors and counts, of today's families and of blocks as others have
//! them.

use aquatint::ModelConfig;
use aquatint::family::{Block, Cut, Fold, Gains, Name, Op, Value};
use serde_json::{Value as Json, json};

fn model(architecture: &str, fields: Json) -> ModelConfig {
    let mut config = json!({
        "architectures": [architecture], "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 100, "max_position_embeddings": 512,
    });
    config.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    ModelConfig::parse(&config.to_string(), "m/config.json").unwrap()
}

/// The widths of what is kept at each cut.
fn kept(block: &Block, remake: bool) -> Vec<Vec<usize>> {
    let widths = |cut: &Cut| cut.kept.iter().map(|value| block.widths[value.0]).collect();
    block.cuts(remake).iter().map(widths).collect()
}

#[test]
fn a_llama_block_stops_four_times_and_keeps_no_more_than_two_values() {
    for (architecture, between) in [("LlamaForCausalLM", 0), ("Qwen3ForCausalLM", 2)] {
        let model = model(architecture, json!({"head_dim": 32}));
        let block = &model.blocks[0];
        let labels: Vec<String> = block.stops().map(|stop| block.label(stop)).collect();
        assert_eq!(labels, ["q, k, v", "o", "gate, up", "down"]);
        assert_eq!(kept(block, false), [vec![64], vec![64, 128], vec![64], vec![64, 96], vec![64]]);
        assert_eq!(kept(block, true), [vec![64], vec![64, 128], vec![64], vec![64], vec![64]]);
        assert_eq!((block.kept_columns(false), block.kept_columns(true), block.widest()), (192, 192, 128));
        let cuts = block.cuts(false);
        let counts: Vec<(usize, usize)> = cuts.iter().map(|cut| (cut.remade.len(), cut.run.len())).collect();
        // Rope of q and k and attention; the residual connection; the gate; the residual connection.
        assert_eq!(counts, [(1, 3 + between), (0, 1), (1, 1), (0, 1), (0, 0)]);
        // With less memory what down reads comes through the norm, gate and up, and the gate again; nobody runs the gate before.
        let cuts = block.cuts(true);
        let counts: Vec<(usize, usize)> = cuts.iter().map(|cut| (cut.remade.len(), cut.run.len())).collect();
        assert_eq!(counts, [(1, 3 + between), (0, 1), (1, 0), (3, 1), (0, 0)]);
        assert!(cuts[3].remade.contains(&cuts[2].node));
    }
}

#[test]
fn every_value_that_is_read_was_kept_or_made_on_the_way() {
    for architecture in ["LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"] {
        let model = model(architecture, json!({}));
        for (block, remake) in [(&model.blocks[0], false), (&model.blocks[0], true), (&model.head, false)] {
            let cuts = block.cuts(remake);
            for pair in cuts.windows(2) {
                let mut there = pair[0].kept.clone();
                let way = pair[0].remade.iter().chain([&pair[0].node]).chain(&pair[0].run);
                for node in way.map(|&node| &block.nodes[node]) {
                    assert!(node.reads.iter().all(|read| there.contains(read)), "{architecture}: {node:?}");
                    there.extend(&node.makes);
                }
                assert!(pair[1].kept.iter().all(|value| there.contains(value)), "{architecture}");
            }
            assert_eq!(cuts.last().unwrap().kept, block.outputs);
        }
    }
}

#[test]
fn scales_go_into_norms_and_into_rows_that_feed_one_channel_each() {
    let name = |inside: &str| Name::new(format!("model.layers.{{layer}}.{inside}"));
    let norm = |inside: &str| {
        Some(Fold { tensors: vec![name(inside)], gains: Gains::Plain, linear: None, rows: (0..64).collect() })
    };
    let rows = |path: &str, bias: bool, width: usize| {
        let tensors = if bias { vec![name(path).with(".bias")] } else { Vec::new() };
        Some(Fold { tensors, gains: Gains::None, linear: Some(name(path)), rows: (0..width).collect() })
    };
    for (kv_heads, architecture, bias) in
        [(4, "LlamaForCausalLM", false), (2, "LlamaForCausalLM", false), (4, "Qwen2ForCausalLM", true)]
    {
        let model = model(architecture, json!({"num_key_value_heads": kv_heads}));
        let block = &model.blocks[0];
        let folds: Vec<Option<Fold>> = block.stops().map(|stop| block.fold(stop)).collect();
        let o = if kv_heads == 4 { rows("self_attn.v_proj", bias, 64) } else { None };
        let expected = [
            norm("input_layernorm.weight"),
            o,
            norm("post_attention_layernorm.weight"),
            rows("mlp.up_proj", false, 96),
        ];
        assert_eq!(folds, expected);
    }
}

#[test]
fn blocks_that_are_alike_share_one_description() {
    let model = model("LlamaForCausalLM", json!({"num_hidden_layers": 1000}));
    assert_eq!((model.blocks.len(), model.distinct_blocks().count()), (1000, 1));
    let first: Vec<String> = model.block_linears(999).into_iter().map(|linear| linear.name).collect();
    assert_eq!(first[0], "model.layers.999.self_attn.q_proj");
    assert_eq!(model.head_linear().name, "lm_head");
    assert_eq!(model.blocks[0].outputs.len(), 1);
    assert_ne!(model.blocks[0].outputs, [Value(0)]);
}

#[test]
fn work_counts_half_of_the_keys_or_those_of_the_window() {
    let whole = model("LlamaForCausalLM", json!({}));
    // Two products with 4 heads of 16, over 50 keys on average.
    assert_eq!(whole.blocks[0].work_between_linears(100), 2.0 * 2.0 * 64.0 * 50.0);
    let window = model("MistralForCausalLM", json!({"sliding_window": 20}));
    assert_eq!(window.blocks[0].work_between_linears(100), 2.0 * 2.0 * 64.0 * 10.0);
    assert_eq!(whole.largest_block(), 64 * 64 * 2 + 32 * 64 * 2 + 3 * 64 * 96);
}

#[test]
fn a_norm_that_two_groups_read_takes_no_scales_and_is_kept_once_its_input_is_gone() {
    let fields = json!({"use_parallel_residual": true, "num_key_value_heads": 4});
    let model = model("StableLmForCausalLM", fields);
    let block = &model.blocks[0];
    let folds: Vec<bool> = block.stops().map(|stop| block.fold(stop).is_some()).collect();
    assert_eq!(folds, [false, true, false, true]);
    // Before o the norm can be computed again from the residual stream; before gate and up that stream is another one.
    assert_eq!(kept(block, false), [vec![64], vec![64, 64], vec![64, 64], vec![64, 96], vec![64]]);
    let cuts = block.cuts(false);
    let norm = cuts[2].kept[0];
    assert!(!cuts[1].kept.contains(&norm) && cuts[1].remade == [0], "{cuts:?}");
    assert_eq!(block.nodes[0].makes, [norm]);
}

#[test]
fn scales_pass_to_the_rows_of_a_fused_layer() {
    let phi = model("Phi3ForCausalLM", json!({"num_key_value_heads": 4}));
    let block = &phi.blocks[0];
    let folds: Vec<Fold> = block.stops().filter_map(|stop| block.fold(stop)).collect();
    let [_, v, _, up] = &folds[..] else { panic!("{folds:?}") };
    let name = |path: &str| Some(Name::new(format!("model.layers.{{layer}}.{path}")));
    assert_eq!((&v.linear, &v.rows), (&name("self_attn.qkv_proj"), &(128..192).collect()));
    assert_eq!((&up.linear, &up.rows), (&name("mlp.gate_up_proj"), &(96..192).collect()));
    // The rows of BLOOM lie head by head: query, key and value of 16 columns each.
    let bloom = model("BloomForCausalLM", json!({"n_layer": 2, "n_head": 4}));
    let block = &bloom.blocks[1];
    let dense = block.stops().nth(1).and_then(|stop| block.fold(stop)).unwrap();
    let rows: Vec<usize> = (0..64).map(|channel| channel / 16 * 48 + 32 + channel % 16).collect();
    assert_eq!(dense.linear, Some(Name::new("transformer.h.{layer}.self_attention.query_key_value")));
    assert_eq!((dense.rows, dense.tensors.len()), (rows, 1));
}

#[test]
fn gains_of_one_plus_w_are_told_from_plain_ones() {
    let gains = |architecture| {
        let model = model(architecture, json!({}));
        let block = &model.blocks[0];
        block.fold(block.stops().next().unwrap()).unwrap().gains
    };
    assert_eq!(gains("GemmaForCausalLM"), Gains::PlusOne);
    assert_eq!(gains("LlamaForCausalLM"), Gains::Plain);
}

#[test]
fn the_embedding_of_gemma_is_scaled_by_a_number_of_the_type_of_the_weights() {
    let scale = |fields: Json| {
        let model = model("GemmaForCausalLM", fields);
        match model.blocks[0].nodes[0].op {
            Op::Scale(scale) => scale,
            ref other => panic!("{other:?}"),
        }
    };
    let hidden = |width: u32, dtype: &str| json!({"hidden_size": width, "dtype": dtype});
    assert_eq!(scale(json!({"hidden_size": 3072})), 3072f32.sqrt());
    // The published checkpoints: bf16 holds eight bits of 55.43.
    assert_eq!(scale(hidden(3072, "bfloat16")), 55.5);
    assert_eq!(scale(json!({"hidden_size": 2048, "torch_dtype": "bfloat16"})), 45.25);
    assert_eq!(scale(hidden(3072, "float16")), 55.4375);
    assert!(model("GemmaForCausalLM", json!({})).blocks[1].nodes.iter().all(|node| !matches!(node.op, Op::Scale(_))));
}
