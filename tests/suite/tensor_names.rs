//! The names of tensors in the files of real releases: the reader finds the language model under each of them.

use aquatint::ModelConfig;

use crate::real_configs::release;

/// The model of `file` with the names of a file that has these tensors.
fn named(file: &str, tensors: &[&str]) -> ModelConfig {
    release(file).with_names_of(|name| tensors.contains(&name))
}

/// Checks the embedding, a tensor of the last block, the final norm, and the output matrix, whose names are `expected`.
#[track_caller]
fn check(file: &str, tensors: &[&str], expected: [&str; 4]) {
    let model = named(file, tensors);
    let last = model.blocks.len() - 1;
    let block = model.blocks[last].tensors(last);
    let head: Vec<String> = model.head.tensors(0).into_iter().map(|(name, _)| name).collect();
    assert_eq!(model.embedding, expected[0]);
    assert!(block.iter().any(|(name, _)| name == expected[1]), "no {} in {block:?}", expected[1]);
    assert_eq!((head[0].as_str(), model.head_linear().weight().as_str()), (expected[2], expected[3]));
    let linear = model.block_linears(last).remove(0).name;
    assert!(block.iter().any(|(name, _)| *name == format!("{linear}.weight")), "{linear}");
}

#[test]
fn names_of_the_description_stay() {
    check(
        "llama-3.1-8b",
        &["model.embed_tokens.weight", "lm_head.weight"],
        ["model.embed_tokens.weight", "model.layers.31.mlp.down_proj.weight", "model.norm.weight", "lm_head.weight"],
    );
    check(
        "falcon-7b",
        &["transformer.word_embeddings.weight", "lm_head.weight"],
        [
            "transformer.word_embeddings.weight",
            "transformer.h.31.self_attention.dense.weight",
            "transformer.ln_f.weight",
            "lm_head.weight",
        ],
    );
    check(
        "pythia-70m",
        &["gpt_neox.embed_in.weight", "embed_out.weight"],
        [
            "gpt_neox.embed_in.weight",
            "gpt_neox.layers.5.attention.dense.weight",
            "gpt_neox.final_layer_norm.weight",
            "embed_out.weight",
        ],
    );
    check(
        "gpt-j-6b",
        &["transformer.wte.weight", "lm_head.weight"],
        ["transformer.wte.weight", "transformer.h.27.mlp.fc_out.weight", "transformer.ln_f.weight", "lm_head.weight"],
    );
    // A file without any of the names is refused later, with those of the description.
    assert_eq!(named("llama-3.1-8b", &["wte.weight"]), release("llama-3.1-8b"));
}

#[test]
fn a_language_model_is_found_below_the_prefix_of_its_wrapper() {
    // Gemma 4, Muse Glimmer, and what transformers 5 saves.
    let inner = ["model.language_model.embed_tokens.weight", "lm_head.weight"];
    check(
        "gemma-4-31b",
        &inner[..1],
        [inner[0], "model.language_model.layers.59.layer_scalar", "model.language_model.norm.weight", "lm_head.weight"],
    );
    check(
        "muse-glimmer-30b",
        &inner,
        [
            inner[0],
            "model.language_model.layers.51.self_attn.gate_proj.weight",
            "model.language_model.norm.weight",
            inner[1],
        ],
    );
    // Gemma 3 and Mistral Small 3.1.
    let outer = ["language_model.model.embed_tokens.weight", "language_model.lm_head.weight"];
    check(
        "gemma-3-4b",
        &outer[..1],
        [
            outer[0],
            "language_model.model.layers.33.self_attn.q_norm.weight",
            "language_model.model.norm.weight",
            outer[1],
        ],
    );
    check(
        "mistral-small-3.1-24b",
        &outer,
        [outer[0], "language_model.model.layers.39.mlp.up_proj.weight", "language_model.model.norm.weight", outer[1]],
    );
    // A wrapper saved without its head, and a language model alone that kept the prefix of its wrapper.
    check(
        "gemma-3-12b",
        &["language_model.embed_tokens.weight"],
        [
            "language_model.embed_tokens.weight",
            "language_model.layers.47.mlp.gate_proj.weight",
            "language_model.norm.weight",
            "lm_head.weight",
        ],
    );
    check(
        "gemma-3-1b",
        &outer[..1],
        [outer[0], "language_model.model.layers.25.mlp.gate_proj.weight", "language_model.model.norm.weight", outer[1]],
    );
}

#[test]
fn the_output_matrix_may_have_another_prefix_than_the_layers() {
    let head = |tensors: &[&str]| named("mistral-small-3.1-24b", tensors).head_linear().weight();
    let (inner, outer) = ("model.language_model.embed_tokens.weight", "language_model.model.embed_tokens.weight");
    for (embedding, weight) in [
        (inner, "lm_head.weight"),
        (inner, "language_model.lm_head.weight"),
        (outer, "lm_head.weight"),
        (outer, "language_model.lm_head.weight"),
        ("model.embed_tokens.weight", "language_model.lm_head.weight"),
    ] {
        assert_eq!(head(&[embedding, weight]), weight, "{embedding}");
    }
    // transformers calls the output matrix of GPT-NeoX `lm_head` in memory.
    let neox = named("pythia-70m", &["gpt_neox.embed_in.weight", "lm_head.weight"]);
    assert_eq!(neox.output_weight(), "lm_head.weight");
    // A bias goes with its weight.
    let tensors = named("gpt-j-6b", &["wte.weight", "lm_head.weight"]).expected_tensors();
    assert_eq!(tensors.last().unwrap().0, "lm_head.bias");
}

#[test]
fn older_files_lack_the_outermost_prefix() {
    check("gpt2", &["wte.weight"], ["wte.weight", "h.11.attn.c_attn.bias", "ln_f.weight", "lm_head.weight"]);
    check(
        "bloom-560m",
        &["word_embeddings.weight"],
        ["word_embeddings.weight", "h.23.self_attention.query_key_value.weight", "ln_f.weight", "lm_head.weight"],
    );
    check(
        "opt-125m",
        &["decoder.embed_tokens.weight"],
        [
            "decoder.embed_tokens.weight",
            "decoder.layers.11.fc2.bias",
            "decoder.final_layer_norm.weight",
            "lm_head.weight",
        ],
    );
    // A model saved without its head.
    check(
        "qwen3-0.6b",
        &["embed_tokens.weight"],
        ["embed_tokens.weight", "layers.27.self_attn.k_norm.weight", "norm.weight", "lm_head.weight"],
    );
    // Tensors outside of the blocks follow.
    let names = |file: &str, embedding: &str| -> Vec<String> {
        named(file, &[embedding]).expected_tensors().into_iter().map(|(name, _)| name).collect()
    };
    let opt = names("opt-350m", "decoder.embed_tokens.weight");
    for name in ["decoder.project_in.weight", "decoder.embed_positions.weight", "decoder.project_out.weight"] {
        assert!(opt.iter().any(|tensor| tensor == name), "{name}");
    }
    assert!(names("bloom-560m", "word_embeddings.weight").contains(&"word_embeddings_layernorm.bias".to_owned()));
    assert!(names("gpt2", "wte.weight").contains(&"wpe.weight".to_owned()));
}
