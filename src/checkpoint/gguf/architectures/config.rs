//! Makes the `config.json` of a model from the metadata and the tensor names of its GGUF file.

use serde_json::{Map, Value as Json, json};

use super::contents::Contents;
use super::keys;
use super::rope;
use super::table::{ARCHITECTURES, Architecture, Tables, Windows};
use crate::{Error, Result};

/// The `config.json` of the model in a file, in the form of Hugging Face. It describes what llama.cpp computes.
///
/// Errors: `Error::Input` if the architecture is none of those that this crate reads, or if a key is missing or cannot be
/// used.
pub fn config_of(file: &Contents<'_>) -> Result<Map<String, Json>> {
    let architecture = named(file)?;
    let mut config = keys::config_of(architecture.all_keys(), |key| file.json(key));
    let [class, model_type] = (architecture.read_as)(file);
    let sizes = Sizes::read(file)?;
    let mut set = |key: &str, value: Json| config.insert(key.to_owned(), value);
    set("model_type", model_type.into());
    // llama.cpp computes with factors that are not rounded to a type of weights.
    set("dtype", "float32".into());
    set("tie_word_embeddings", (!file.has("output.weight")).into());
    set("vocab_size", sizes.vocabulary.into());
    let names: Vec<&str> = architecture.all_keys().map(|key| key.config).collect();
    for (key, size) in [("head_dim", sizes.head_dim), ("num_key_value_heads", sizes.kv_heads[0])] {
        if names.contains(&key) {
            set(key, size.into());
        }
    }
    for (key, stem) in architecture.bias_keys {
        set(key, file.has(&format!("blk.0.{stem}.bias")).into());
    }
    let windows = windows(file, architecture, sizes.layers)?;
    if architecture.windows != Windows::Never {
        let kind = |window: &Option<usize>| if window.is_some() { "sliding_attention" } else { "full_attention" };
        if let Some(width) = windows.iter().flatten().next() {
            set("sliding_window", (*width).into());
        }
        set("layer_types", windows.iter().map(kind).collect());
    }
    if let Some(parameters) = rope_parameters(file, architecture, &sizes)? {
        set("rope_parameters", parameters);
    }
    for (key, value) in of_family(file, architecture, &sizes, &windows)? {
        set(key, value);
    }
    Ok(with_class(config, class, model_type))
}

/// The row of the architecture that the file names.
fn named(file: &Contents<'_>) -> Result<&'static Architecture> {
    let name = file.architecture()?;
    ARCHITECTURES.iter().find(|row| row.name == name).ok_or_else(|| {
        let known: Vec<&str> = ARCHITECTURES.iter().map(|row| row.name).collect();
        let expected = format!("one of {}", known.join(", "));
        Error::input(file.subject, format!("the architecture \"{name}\""), expected, "choose a model of one of these")
    })
}

/// The whole `config.json`. `keys`: those of the language model.
fn with_class(mut keys: Map<String, Json>, class: &str, model_type: &str) -> Map<String, Json> {
    if model_type == "muse_glimmer" {
        keys.insert("model_type".to_owned(), "muse_glimmer_text".into());
        keys = Map::from_iter([("text_config".to_owned(), Json::Object(keys))]);
        keys.insert("model_type".to_owned(), model_type.into());
    }
    keys.insert("architectures".to_owned(), json!([class]));
    keys
}

/// Greatest number of blocks. A file with more is broken, and lists of its layers would fill the memory.
const MOST_LAYERS: usize = 1000;

/// Sizes that other keys follow from.
struct Sizes {
    layers: usize,
    hidden: usize,
    heads: usize,
    /// Key heads of every layer.
    kv_heads: Vec<usize>,
    /// Columns of a head of the layers without a window, or of all layers.
    head_dim: usize,
    vocabulary: usize,
}

impl Sizes {
    fn read(file: &Contents<'_>) -> Result<Self> {
        let layers = file.required_count("block_count")?;
        let hidden = file.required_count("embedding_length")?;
        let heads = file.required_count("attention.head_count")?;
        if layers == 0 || layers > MOST_LAYERS {
            return Err(file.refuse("block_count", &format!("a whole number from 1 to {MOST_LAYERS}")));
        }
        if heads == 0 {
            return Err(file.refuse("attention.head_count", "a whole number of at least 1"));
        }
        let kv_heads = file.counts("attention.head_count_kv", layers)?.unwrap_or_else(|| vec![heads; layers]);
        let head_dim = file.count("attention.key_length")?.unwrap_or(hidden / heads);
        let rows = file.shapes.get("token_embd.weight").and_then(|shape| shape.first().copied());
        let vocabulary = rows.map_or_else(|| file.required_count("vocab_size"), Ok)?;
        Ok(Self { layers, hidden, heads, kv_heads, head_dim, vocabulary })
    }
}

impl Contents<'_> {
    /// Whether the file speaks of windows.
    pub(super) fn has_windows(&self) -> bool {
        self.count("attention.sliding_window").is_ok_and(|window| window.is_some_and(|window| window > 0))
    }
}

/// The window of every layer.
fn windows(file: &Contents<'_>, architecture: &Architecture, layers: usize) -> Result<Vec<Option<usize>>> {
    let key = "attention.sliding_window";
    let slides = match architecture.windows {
        Windows::Never => vec![false; layers],
        Windows::Period(usual) => {
            let period = match file.flags("attention.sliding_window_pattern", layers)? {
                // llama.cpp reads a number and passes over a list.
                Some(_) => usual,
                None => file.count("attention.sliding_window_pattern")?.unwrap_or(usual),
            };
            (0..layers).map(|layer| period == 0 || layer % period + 1 < period).collect()
        }
        Windows::List => match file.flags("attention.sliding_window_pattern", layers)? {
            Some(flags) => flags,
            None if architecture.name == "gemma4" => {
                return Err(file.refuse("attention.sliding_window_pattern", "true or false for every layer"));
            }
            None => (0..layers).map(|layer| file.has_windows() && layer % 4 < 3).collect(),
        },
    };
    let usual = if architecture.name == "gemma2" { Some(4096) } else { None };
    let width = file.count(key)?.or(usual).filter(|&width| width > 0);
    match width {
        _ if !slides.contains(&true) => Ok(vec![None; layers]),
        Some(width) => Ok(slides.into_iter().map(|slides| slides.then_some(width)).collect()),
        // Gemma 3 without the key has no windows.
        None if architecture.name == "gemma3" => Ok(vec![None; layers]),
        None => Err(file.refuse(key, "the number of keys that a sliding layer sees")),
    }
}

/// The key `rope_parameters`, if the architecture rotates.
fn rope_parameters(file: &Contents<'_>, architecture: &Architecture, sizes: &Sizes) -> Result<Option<Json>> {
    let mut full = match architecture.tables {
        Tables::None => return Ok(None),
        _ => rope::parameters(file, architecture, sizes.head_dim)?,
    };
    if let Some(beta) = file.float("attention.temperature_scale")?.filter(|&beta| beta != 0.0) {
        full.insert("llama_4_scaling_beta".to_owned(), beta.into());
    }
    let head_dim = file.count("attention.key_length_swa")?.unwrap_or(sizes.head_dim);
    let sliding = match architecture.tables {
        Tables::ByWindow(default) => rope::sliding_parameters(file, head_dim, default)?,
        Tables::SameBase if file.has_windows() => {
            let rotated = &full["partial_rotary_factor"];
            json!({ "rope_type": "default", "rope_theta": full["rope_theta"], "partial_rotary_factor": rotated })
        }
        _ => return Ok(Some(Json::Object(full))),
    };
    Ok(Some(json!({ "full_attention": full, "sliding_attention": sliding })))
}

/// The keys that a single family has.
fn of_family(
    file: &Contents<'_>,
    architecture: &Architecture,
    sizes: &Sizes,
    windows: &[Option<usize>],
) -> Result<Vec<(&'static str, Json)>> {
    let &Sizes { layers, hidden, heads, head_dim, .. } = sizes;
    let has_norms = file.has("blk.0.attn_q_norm.weight");
    Ok(match architecture.name {
        // llama.cpp knows the largest models of Gemma by their layers, and scales their scores in another way.
        "gemma2" => vec![("query_pre_attn_scalar", (if layers == 46 { hidden / heads } else { head_dim }).into())],
        "gemma3" => vec![("query_pre_attn_scalar", (if layers == 62 { hidden / heads } else { head_dim }).into())],
        "gemma4" => gemma4(file, sizes, windows)?,
        // llama.cpp knows the models with these norms by their layers.
        "command-r" => vec![("use_qk_norm", (layers >= 64).into())],
        "stablelm" => vec![
            ("qk_layernorm", has_norms.into()),
            ("use_parallel_residual", (!file.has("blk.0.ffn_norm.weight")).into()),
        ],
        "falcon" => {
            let (kv_heads, two) = (sizes.kv_heads[0], file.has("blk.0.attn_norm_2.weight"));
            let new = two || kv_heads != 1 && kv_heads != heads;
            vec![
                ("new_decoder_architecture", new.into()),
                ("multi_query", (kv_heads == 1).into()),
                ("num_ln_in_parallel_attn", (if two { 2 } else { 1 }).into()),
            ]
        }
        "muse-glimmer" => muse(file, windows)?,
        _ => Vec::new(),
    })
}

/// The two kinds of layers of Gemma 4.
fn gemma4(file: &Contents<'_>, sizes: &Sizes, windows: &[Option<usize>]) -> Result<Vec<(&'static str, Json)>> {
    for key in ["attention.shared_kv_layers", "embedding_length_per_layer_input"] {
        if file.count(key)?.is_some_and(|count| count > 0) {
            return Err(file.refuse(key, "0, as shared keys and per-layer inputs are not implemented"));
        }
    }
    if file.has("blk.0.ffn_gate_inp.weight") {
        return Err(file.refuse("blk.0.ffn_gate_inp.weight", "no such tensor, as experts are not implemented"));
    }
    let full = windows.iter().rposition(Option::is_none).unwrap_or(sizes.layers - 1);
    let sliding = windows.iter().position(Option::is_some).unwrap_or(full);
    let narrow = file.count("attention.key_length_swa")?.unwrap_or(sizes.head_dim);
    Ok(vec![
        ("hidden_size_per_layer_input", 0.into()),
        ("head_dim", narrow.into()),
        ("global_head_dim", sizes.head_dim.into()),
        ("num_key_value_heads", sizes.kv_heads[sliding].into()),
        ("num_global_key_value_heads", sizes.kv_heads[full].into()),
        ("attention_k_eq_v", (!file.has(&format!("blk.{full}.attn_v.weight"))).into()),
    ])
}

/// What llama.cpp has in its code for Muse Glimmer, and the factor of the queries.
fn muse(file: &Contents<'_>, windows: &[Option<usize>]) -> Result<Vec<(&'static str, Json)>> {
    let theta = file.float("rope.freq_base")?.unwrap_or(10_000.0);
    let bases = windows.iter().map(|window| if window.is_some() { theta } else { 0.0 });
    let factor = file.values(super::MUSE_FACTOR).and_then(|values| values.first().copied());
    let factor = factor.ok_or_else(|| file.refuse(super::MUSE_FACTOR, "a tensor with the factor of the queries"))?;
    Ok(vec![
        ("layer_rope_theta", bases.collect()),
        ("post_norm_eps", 1e-8.into()),
        ("qk_scale_factor", f64::from(factor).into()),
    ])
}
