//! What a configuration means, family by family, and how a wrong one is refused.

use std::path::Path;

use aquatint::ModelConfig;
use aquatint::family::{Attention, Norm, Op, Rope, RopeScaling};
use serde_json::{Value, json};

/// A configuration of the given architecture with `fields` on top.
fn parse(architecture: &str, fields: Value) -> Result<ModelConfig, String> {
    let mut config = json!({
        "architectures": [architecture], "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 100, "max_position_embeddings": 512,
    });
    config.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    ModelConfig::parse(&config.to_string(), "m/config.json").map_err(|error| error.to_string())
}

fn llama(fields: Value) -> Result<ModelConfig, String> {
    parse("LlamaForCausalLM", fields)
}

#[track_caller]
fn refused(result: Result<ModelConfig, String>, parts: &[&str]) {
    let message = result.expect_err("an error");
    for part in ["m/config.json"].iter().chain(parts) {
        assert!(message.contains(part), "no {part:?} in: {message}");
    }
}

/// A table of heads 16 wide without scaling.
fn plain(theta: f64) -> Rope {
    Rope { rotated: 16, theta, scaling: RopeScaling::None, growth: None }
}

/// The attention of the first block.
fn attention(config: &ModelConfig) -> Attention {
    config.blocks[0].attentions().next().expect("an attention node").1
}

/// The norms of the first block.
fn norms(config: &ModelConfig) -> impl Iterator<Item = &Norm> {
    config.blocks[0].nodes.iter().filter_map(|node| match &node.op {
        Op::Norm(norm) => Some(norm),
        _ => None,
    })
}

#[test]
fn defaults_are_those_of_the_published_implementation() {
    let config = llama(json!({"num_key_value_heads": null, "head_dim": null})).unwrap();
    assert_eq!((attention(&config).kv_heads, attention(&config).head_dim), (4, 16));
    let epsilons = norms(&config).map(|norm| norm.epsilon);
    assert!(epsilons.eq([1e-6; 2]) && !config.tie_word_embeddings);
    assert_eq!(config.ropes, [plain(10_000.0)]);
    assert_eq!(attention(&parse("Qwen3ForCausalLM", json!({})).unwrap()).head_dim, 128);
    let by_type = llama(json!({"architectures": null, "model_type": "qwen2"})).unwrap();
    assert_eq!(by_type.model_type, "qwen2");
}

#[test]
fn biases_and_norms_follow_the_family() {
    let bits = |architecture, fields| {
        let config = parse(architecture, fields).unwrap();
        let biases: Vec<bool> = config.block_linears(0).iter().map(|linear| linear.bias).collect();
        assert!(biases[0] == biases[1] && biases[1] == biases[2] && biases[4] == biases[5] && biases[5] == biases[6]);
        let head_dim = attention(&config).head_dim;
        (biases[0], biases[3], biases[4], norms(&config).filter(|norm| norm.width == head_dim).count() == 2)
    };
    let both = || json!({"attention_bias": true, "mlp_bias": true});
    let neither = || json!({"attention_bias": false, "mlp_bias": false});
    assert_eq!(bits("LlamaForCausalLM", json!({})), (false, false, false, false));
    assert_eq!(bits("LlamaForCausalLM", both()), (true, true, true, false));
    assert_eq!(bits("MistralForCausalLM", neither()), (false, false, false, false));
    assert_eq!(bits("Qwen2ForCausalLM", json!({})), (true, false, false, false));
    assert_eq!(bits("Qwen3ForCausalLM", json!({"attention_bias": true})), (true, true, false, true));
}

#[test]
fn tensors_are_listed_in_the_order_in_which_they_are_used() {
    let fields = json!({"num_hidden_layers": 1, "head_dim": 24, "attention_bias": true});
    let tensors = parse("Qwen3ForCausalLM", fields).unwrap().expected_tensors();
    let block: [(&str, &[usize]); 15] = [
        ("input_layernorm.weight", &[64]),
        ("self_attn.q_proj.weight", &[96, 64]),
        ("self_attn.q_proj.bias", &[96]),
        ("self_attn.k_proj.weight", &[48, 64]),
        ("self_attn.k_proj.bias", &[48]),
        ("self_attn.v_proj.weight", &[48, 64]),
        ("self_attn.v_proj.bias", &[48]),
        ("self_attn.q_norm.weight", &[24]),
        ("self_attn.k_norm.weight", &[24]),
        ("self_attn.o_proj.weight", &[64, 96]),
        ("self_attn.o_proj.bias", &[64]),
        ("post_attention_layernorm.weight", &[64]),
        ("mlp.gate_proj.weight", &[96, 64]),
        ("mlp.up_proj.weight", &[96, 64]),
        ("mlp.down_proj.weight", &[64, 96]),
    ];
    let mut expected = vec![("model.embed_tokens.weight".to_owned(), vec![100, 64])];
    expected.extend(block.map(|(name, shape)| (format!("model.layers.0.{name}"), shape.to_vec())));
    expected.push(("model.norm.weight".to_owned(), vec![64]));
    expected.push(("lm_head.weight".to_owned(), vec![100, 64]));
    assert_eq!(tensors, expected);

    let tied = llama(json!({"tie_word_embeddings": true})).unwrap();
    assert_eq!(tied.expected_tensors().last().unwrap().0, "model.norm.weight");
    assert_eq!(tied.linear_names().len(), 14);
    assert_eq!(tied.linear_names()[7], "model.layers.1.self_attn.q_proj");
}

#[test]
fn rope_reads_alike_in_both_forms() {
    let llama3 = json!({
        "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    });
    let mut parameters = llama3.clone();
    parameters["rope_theta"] = 500000.0.into();
    let old = llama(json!({"rope_theta": 500000.0, "rope_scaling": llama3})).unwrap().ropes;
    let new = llama(json!({"rope_parameters": parameters})).unwrap().ropes;
    let both = llama(json!({"rope_theta": 500000.0, "rope_scaling": llama3, "rope_parameters": parameters}));
    let scaling = RopeScaling::Llama3 {
        factor: 32.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 8192,
    };
    let expected = [Rope { scaling, ..plain(500_000.0) }];
    assert_eq!([old, new, both.unwrap().ropes], [&expected; 3]);
    let scaling = |fields| llama(fields).unwrap().ropes.remove(0).scaling;
    let linear = scaling(json!({"rope_scaling": {"type": "linear", "factor": 2}}));
    assert_eq!(linear, RopeScaling::Linear { factor: 2.0 });
    let outer_theta = llama(json!({"rope_theta": 7.0, "rope_parameters": {"rope_type": "default"}})).unwrap().ropes;
    assert_eq!(outer_theta, [plain(7.0)]);
}

#[test]
fn factors_that_a_file_leaves_out_are_computed_as_in_transformers() {
    let scaling = |fields| llama(fields).unwrap().ropes.remove(0).scaling;
    let yarn = |more: Value, outer: Value| {
        let mut inner = json!({"rope_type": "yarn", "original_max_position_embeddings": 64});
        inner.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let mut fields = json!({"rope_parameters": inner});
        fields.as_object_mut().unwrap().extend(outer.as_object().unwrap().clone());
        match scaling(fields) {
            RopeScaling::Yarn { factor, attention_factor, original_max_position_embeddings: original, .. } => {
                (factor, attention_factor, original)
            }
            other => panic!("{other:?}"),
        }
    };
    let magnitude = |factor: f64, mscale: f64| 0.1 * mscale * factor.ln() + 1.0;
    // 512 positions in all are 8 times 64.
    assert_eq!(yarn(json!({}), json!({})), (8.0, magnitude(8.0, 1.0), 64));
    assert_eq!(yarn(json!({"factor": 4}), json!({})), (4.0, magnitude(4.0, 1.0), 64));
    assert_eq!(yarn(json!({"factor": 4, "attention_factor": 1.5}), json!({})), (4.0, 1.5, 64));
    let both = json!({"factor": 4, "mscale": 0.7, "mscale_all_dim": 0.4});
    assert_eq!(yarn(both, json!({})), (4.0, magnitude(4.0, 0.7) / magnitude(4.0, 0.4), 64));
    assert_eq!(yarn(json!({"factor": 4, "mscale": 0.7}), json!({})), (4.0, magnitude(4.0, 1.0), 64));
    let nowhere = yarn(json!({"original_max_position_embeddings": null}), json!({}));
    assert_eq!(nowhere, (1.0, 1.0, 512));
    let outside = json!({"original_max_position_embeddings": 128});
    assert_eq!(yarn(json!({"original_max_position_embeddings": null}), outside).0, 4.0);

    let long =
        json!({"type": "su", "short_factor": [1, 1, 1, 1, 1, 1, 1, 1], "long_factor": [1, 1, 1, 1, 2, 2, 3, 4.5]});
    let long = scaling(json!({"rope_scaling": long, "original_max_position_embeddings": 32}));
    let RopeScaling::LongRope { attention_factor, long_factor, original_max_position_embeddings: 32, .. } = long else {
        panic!("{long:?}");
    };
    assert_eq!((attention_factor, long_factor[7]), ((1.0 + 16f64.ln() / 32f64.ln()).sqrt(), 4.5));
}

#[test]
fn rope_that_is_not_implemented_is_refused() {
    for (kind, part) in [("dynamic", "change with the length of the text"), ("mrope", "not implemented")] {
        let scaling = json!({"rope_type": kind, "factor": 4.0});
        refused(llama(json!({"rope_scaling": scaling})), &[kind, "\"llama3\"", part]);
        refused(llama(json!({"rope_parameters": scaling})), &[kind, "\"linear\"", part]);
    }
    refused(llama(json!({"partial_rotary_factor": 0.5})), &["partial_rotary_factor", "0.5"]);
    let nested = json!({"full_attention": {"rope_type": "default"}});
    refused(llama(json!({"rope_parameters": nested})), &["full_attention", "one description"]);
}

#[test]
fn rope_that_makes_no_sense_is_named() {
    let both = |rope_type: &str, fields: Value| {
        let mut all = json!({"rope_type": rope_type, "factor": 2.0, "original_max_position_embeddings": 64});
        all.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        llama(json!({"rope_scaling": all}))
    };
    refused(llama(json!({"rope_scaling": {"type": "linear"}})), &["no \"factor\""]);
    refused(llama(json!({"rope_theta": 2.0, "rope_parameters": {"rope_theta": 3.0}})), &["2.0 beside", "3.0", "same"]);
    refused(llama(json!({"rope_theta": 1})), &["base of 1"]);
    let linear = json!({"type": "linear", "factor": 2});
    refused(llama(json!({"rope_scaling": linear, "rope_parameters": {"rope_type": "default"}})), &["differ"]);
    refused(both("linear", json!({"type": "yarn"})), &["\"type\": \"yarn\" beside \"rope_type\": \"linear\""]);
    refused(both("llama3", json!({"low_freq_factor": 4, "high_freq_factor": 1})), &["\"high_freq_factor\": 1"]);
    refused(both("yarn", json!({"beta_fast": 1, "beta_slow": 32})), &["\"beta_fast\": 1", "32"]);
    refused(both("yarn", json!({"truncate": 1})), &["\"truncate\": 1"]);
    let eight = || json!([1, 1, 1, 1, 1, 1, 1, 1]);
    refused(both("longrope", json!({"short_factor": eight()})), &["no \"long_factor\"", "a list of 8 numbers"]);
    refused(both("longrope", json!({"short_factor": eight(), "long_factor": [1, 2]})), &["\"long_factor\": [1,2]"]);
    let one = json!({"short_factor": eight(), "long_factor": eight(), "original_max_position_embeddings": 1});
    refused(both("longrope", one), &["\"original_max_position_embeddings\": 1"]);
    let stablelm = |share: Value| parse("StableLmForCausalLM", json!({"partial_rotary_factor": share}));
    assert_eq!(stablelm(json!(0.51)).unwrap().ropes[0].rotated, 8);
    assert_eq!(stablelm(json!(null)).unwrap().ropes[0].rotated, 4);
    for share in [0.01, 0.2, 1.2] {
        refused(stablelm(json!(share)), &["partial_rotary_factor", "16 columns"]);
    }
}

#[test]
fn a_sliding_window_counts_only_where_the_family_uses_it() {
    let window = |architecture, fields| parse(architecture, fields).map(|config| attention(&config).window);
    let on = |fields: Value| {
        let mut all = json!({"use_sliding_window": true, "sliding_window": 32});
        all.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        window("Qwen2ForCausalLM", all)
    };
    assert_eq!(window("LlamaForCausalLM", json!({"sliding_window": null})), Ok(None));
    refused(llama(json!({"sliding_window": 32})), &["\"sliding_window\": 32", "expected null"]);
    assert_eq!(window("MistralForCausalLM", json!({"sliding_window": 32})), Ok(Some(32)));
    assert_eq!(window("MistralForCausalLM", json!({"sliding_window": null})), Ok(None));
    assert_eq!(window("Qwen2ForCausalLM", json!({"sliding_window": 32, "max_window_layers": 1})), Ok(None));
    assert_eq!(on(json!({"max_window_layers": 0})), Ok(Some(32)));
    assert_eq!(on(json!({"max_window_layers": 2})), Ok(None));
    assert_eq!(on(json!({"layer_types": ["sliding_attention", "sliding_attention"]})), Ok(Some(32)));
    assert_eq!(on(json!({"layer_types": ["full_attention", "full_attention"]})), Ok(None));
    // Windows by layer.
    let windows = |fields: Value| {
        let all = json!({"use_sliding_window": true, "sliding_window": 32});
        let all: serde_json::Map<_, _> =
            all.as_object().unwrap().clone().into_iter().chain(fields.as_object().unwrap().clone()).collect();
        let config = parse("Qwen2ForCausalLM", Value::Object(all))?;
        Ok::<_, String>(
            config.blocks.iter().map(|block| block.attentions().next().unwrap().1.window).collect::<Vec<_>>(),
        )
    };
    assert_eq!(windows(json!({"max_window_layers": 1})), Ok(vec![None, Some(32)]));
    let kinds = |kinds: [&str; 2]| windows(json!({ "layer_types": kinds }));
    assert_eq!(kinds(["sliding_attention", "full_attention"]), Ok(vec![Some(32), None]));
    assert!(kinds(["full_attention", "linear_attention"]).unwrap_err().contains("linear_attention"));
    assert!(windows(json!({"layer_types": ["full_attention"]})).unwrap_err().contains("each of the 2 layers"));
}

#[test]
fn fields_that_make_no_sense_are_named() {
    refused(llama(json!({"hidden_size": null})), &["\"hidden_size\"", "at least 1"]);
    refused(llama(json!({"vocab_size": "many"})), &["\"vocab_size\": \"many\""]);
    refused(llama(json!({"intermediate_size": 0})), &["\"intermediate_size\": 0"]);
    refused(llama(json!({"num_attention_heads": 5, "num_key_value_heads": 5})), &["a divisor of the hidden width 64"]);
    refused(llama(json!({"num_key_value_heads": 3})), &["a divisor of the 4 attention heads"]);
    refused(llama(json!({"head_dim": 15})), &["heads 15 columns wide", "even"]);
    refused(llama(json!({"num_hidden_layers": 4_000_000_000u32})), &["num_hidden_layers", "at most 1000"]);
    refused(llama(json!({"num_attention_heads": 5000})), &["num_attention_heads", "at most 4096"]);
    refused(llama(json!({"hidden_size": 1 << 21})), &["hidden_size", "at most 1048576"]);
    refused(llama(json!({"vocab_size": 4_000_000_000u32})), &["vocab_size", "at most"]);
    refused(llama(json!({"head_dim": 514})), &["\"head_dim\": 514", "at most 512"]);
    refused(llama(json!({"hidden_size": 4096})), &["num_attention_heads", "heads of at most 512 columns"]);
    refused(llama(json!({"hidden_act": "tanh"})), &["\"hidden_act\": \"tanh\"", "silu"]);
    refused(llama(json!({"rms_norm_eps": -1.0})), &["rms_norm_eps"]);
    refused(llama(json!({"tie_word_embeddings": "yes"})), &["true or false"]);
    refused(llama(json!({"architectures": null})), &["neither", "Llama"]);
    refused(llama(json!({"architectures": null, "model_type": "t5"})), &["t5", "Qwen3"]);
}

#[test]
fn fixtures_have_no_unknown_key() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/families");
    let mut fixtures = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let Ok(text) = std::fs::read_to_string(entry.unwrap().path().join("config.json")) else { continue };
        let config = ModelConfig::parse(&text, "config.json").unwrap();
        assert_eq!(config.unknown_keys, [""; 0], "{text}");
        fixtures += 1;
    }
    assert!(fixtures > 7);
}

#[test]
fn heads_that_do_not_rotate_may_have_an_odd_width() {
    // The family has no keys for key heads and widths of heads, so these are told to be unknown.
    let gpt2 =
        parse("GPT2LMHeadModel", json!({"n_embd": 60, "n_layer": 2, "n_head": 4, "n_positions": 64, "head_dim": 8}));
    let gpt2 = gpt2.unwrap();
    let Attention { heads, kv_heads, head_dim, .. } = attention(&gpt2);
    assert_eq!((heads, kv_heads, head_dim), (4, 4, 15));
    assert!(["num_key_value_heads", "head_dim"].iter().all(|key| gpt2.unknown_keys.iter().any(|other| other == key)));
    // The first columns rotate.
    let gptj = json!({"n_embd": 60, "n_layer": 2, "n_head": 4, "n_positions": 64, "rotary_dim": 6});
    assert_eq!(attention(&parse("GPTJForCausalLM", gptj.clone()).unwrap()).head_dim, 15);
    let too_many = json!({"n_embd": 60, "n_layer": 2, "n_head": 4, "n_positions": 64, "rotary_dim": 16});
    refused(parse("GPTJForCausalLM", too_many), &["\"rotary_dim\": 16"]);
}

#[test]
fn layers_of_gemma4_with_their_own_heads_agree_with_the_tables() {
    let gemma = |layers: Value| {
        parse(
            "Gemma4ForCausalLM",
            json!({
                "hidden_size_per_layer_input": 0, "head_dim": 12, "num_hidden_layers": 3, "per_layer_config": layers,
                "layer_types": ["sliding_attention", "full_attention", "full_attention"],
                "rope_parameters": {"full_attention": {"rope_type": "proportional"}, "sliding_attention": {}},
            }),
        )
    };
    let widths = |model: ModelConfig| model.ropes.iter().map(|rope| rope.rotated).collect::<Vec<_>>();
    let own = |width: usize| json!({"0": {"head_dim": 8}, "1": {"head_dim": 16}, "2": {"head_dim": width}});
    assert_eq!(widths(gemma(own(16)).unwrap()), [16, 8]);
    refused(gemma(own(14)), &["per_layer_config", "one head_dim for all layers with a window"]);
    refused(gemma(json!({"1": {"head_dim": 1000}})), &["\"head_dim\": 1000", "at most 512"]);
    refused(gemma(json!({"1": {"num_key_value_heads": 3}})), &["\"num_key_value_heads\": 3", "a divisor of the 4"]);
}

#[test]
fn keys_that_nobody_reads_are_listed_with_the_names_of_their_objects() {
    let config = llama(json!({
        "wings": 2, "note": null, "attention_dropout": 0.1, "nest": {"egg": 1, "model_type": "llama"}, "add_gates": {},
        "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "warp": 9},
    }));
    assert_eq!(config.unwrap().unknown_keys, ["wings", "nest", "add_gates", "rope_scaling.warp"]);
    assert_eq!(llama(json!({"rope_parameters": {"warp": 9}})).unwrap().unknown_keys, ["rope_parameters.warp"]);
}

#[test]
fn keys_that_would_change_the_results_are_refused() {
    let neutral = json!({
        "clip_qkv": null, "num_experts": 0, "logit_scale": 1, "embedding_multiplier": 1.0, "rope_interleaved": false,
        "layer_types": ["full_attention", "full_attention"], "scale_attn_weights": true, "no_rope_layers": [],
        "pruned_heads": {},
    });
    assert_eq!(llama(neutral).unwrap().unknown_keys, [""; 0]);
    for (key, value) in [
        ("clip_qkv", json!(8)),
        ("num_experts", json!(8)),
        ("logit_scale", json!(0.0625)),
        ("rope_interleaved", json!(true)),
        ("hidden_activation", json!("gelu")),
        ("layer_types", json!(["full_attention", "sliding_attention"])),
        ("scale_attn_weights", json!(false)),
        ("no_rope_layers", json!([1, 0])),
        ("query_pre_attn_scalar", json!(256)),
        ("alibi", json!("yes")),
    ] {
        refused(llama(json!({key: value})), &[&format!("\"{key}\": {value}"), "expected"]);
    }
    let yarn = json!({"type": "yarn", "factor": 2.0, "llama_4_scaling_beta": 0.1});
    refused(llama(json!({"rope_scaling": yarn})), &["\"rope_scaling.llama_4_scaling_beta\": 0.1"]);
    refused(parse("MistralForCausalLM", json!({"attention_bias": true})), &["\"attention_bias\": true"]);
    let windows = json!({"use_sliding_window": false, "sliding_window": 32, "layer_types": ["sliding_attention"]});
    assert_eq!(parse("Qwen2ForCausalLM", windows).unwrap().unknown_keys, [""; 0]);
}
