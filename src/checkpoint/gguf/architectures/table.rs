//! The architectures of llama.cpp that this crate can write and read, one row each.

use super::contents::Contents;
use super::keys::{self, Key};
use super::write_refused;
use crate::Result;
use crate::family::Pairs;

/// An architecture of llama.cpp: how its files differ from those of others.
pub(super) struct Architecture {
    /// Value of `general.architecture`.
    pub name: &'static str,
    /// The values of `model_type` of the models that are written as this architecture.
    pub model_types: &'static [&'static str],
    /// `architectures` and `model_type` of a model that is read from such a file.
    pub read_as: fn(&Contents<'_>) -> [&'static str; 2],
    /// The columns of a head that llama.cpp turns together.
    pub pairs: Pairs,
    /// Name of the norm `post_attention_layernorm`.
    pub after_attention: &'static str,
    pub output: Output,
    pub biases: Biases,
    /// Keys of `config.json` that say whether there are biases, each with a linear layer that has one then.
    pub bias_keys: &'static [(&'static str, &'static str)],
    pub windows: Windows,
    pub tables: Tables,
    /// The ways of scaling angles that llama.cpp follows.
    pub scaling: &'static [Scaling],
    /// Keys of numbers.
    pub keys: &'static [&'static [Key]],
}

/// Where llama.cpp takes the output matrix from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Output {
    /// From a tensor of its own, or from the embedding if that is missing.
    Optional,
    /// From a tensor of its own.
    Required,
    /// From the embedding.
    Embedding,
}

/// The linear layers with biases, by their names in the file.
#[derive(Debug, Clone, Copy)]
pub(super) enum Biases {
    /// These may have biases, and no others.
    Allowed(&'static [&'static str]),
    /// All linear layers of the blocks have biases.
    Everywhere,
}

/// How a file says which layers have a sliding window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Windows {
    /// llama.cpp uses no windows.
    Never,
    /// All layers but every p-th one. The number p stands here, unless the file has another.
    Period(usize),
    /// A list of truth values, if there are windows at all.
    List,
}

/// A way of scaling the rotary angles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scaling {
    /// By one factor, and YaRN with its usual numbers of turns, 32 and 1.
    Factor,
    /// YaRN with the numbers of turns in the file.
    Turns,
    /// By a divisor of every frequency.
    Divisors,
    /// By a divisor of every frequency for short texts, and another one for long texts.
    ShortAndLong,
}

/// The tables of rotary angles.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Tables {
    /// Positions are learned, or ALiBi.
    None,
    /// One table for all layers.
    One,
    /// A table for layers without, and one for layers with a window. The base of the latter, where the file does not give
    /// it.
    ByWindow(f64),
    /// As `ByWindow` with the same base for both, if there are windows.
    SameBase,
}

const NO_BIAS: Biases = Biases::Allowed(&[]);
const QKV: Biases = Biases::Allowed(&["attn_q", "attn_k", "attn_v"]);
const LLAMA_BIASES: Biases =
    Biases::Allowed(&["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"]);

const ATTENTION_BIAS: (&str, &str) = ("attention_bias", "attn_q");

/// All rows have these values unless they say otherwise.
const LLAMA: Architecture = Architecture {
    name: "llama",
    model_types: &["llama", "mistral"],
    read_as: |_| ["LlamaForCausalLM", "llama"],
    pairs: Pairs::Neighbours,
    after_attention: "ffn_norm",
    output: Output::Optional,
    biases: LLAMA_BIASES,
    bias_keys: &[ATTENTION_BIAS, ("mlp_bias", "ffn_up")],
    windows: Windows::Never,
    tables: Tables::One,
    scaling: &[Scaling::Factor, Scaling::Divisors, Scaling::ShortAndLong],
    keys: &[keys::RMS_SIZES],
};

/// The row of a family like Qwen, whose rows of queries and keys stay in their order.
const HALVES: Architecture = Architecture {
    pairs: Pairs::Halves,
    biases: QKV,
    bias_keys: &[ATTENTION_BIAS],
    scaling: &[Scaling::Factor],
    ..LLAMA
};

/// The row of a family with LayerNorm and biases everywhere.
const OLDER: Architecture =
    Architecture { biases: Biases::Everywhere, bias_keys: &[], keys: &[keys::LAYER_SIZES], ..HALVES };

/// All architectures.
pub(super) static ARCHITECTURES: [Architecture; 24] = [
    LLAMA,
    Architecture {
        name: "mistral3",
        model_types: &["ministral3", "mistral3"],
        read_as: |_| ["Ministral3ForCausalLM", "ministral3"],
        biases: NO_BIAS,
        bias_keys: &[],
        keys: &[keys::RMS_SIZES, keys::MISTRAL3],
        scaling: &[Scaling::Factor, Scaling::Turns, Scaling::Divisors, Scaling::ShortAndLong],
        ..LLAMA
    },
    Architecture {
        name: "smollm3",
        model_types: &["smollm3"],
        read_as: |_| ["SmolLM3ForCausalLM", "smollm3"],
        biases: QKV,
        bias_keys: &[ATTENTION_BIAS],
        scaling: &[Scaling::Factor],
        ..LLAMA
    },
    Architecture {
        name: "granite",
        model_types: &["granite"],
        read_as: |_| ["GraniteForCausalLM", "granite"],
        keys: &[keys::RMS_SIZES, keys::GRANITE],
        ..LLAMA
    },
    Architecture {
        name: "arcee",
        model_types: &["arcee"],
        read_as: |_| ["ArceeForCausalLM", "arcee"],
        biases: QKV,
        bias_keys: &[ATTENTION_BIAS],
        scaling: &[Scaling::Factor, Scaling::Divisors],
        ..LLAMA
    },
    Architecture {
        name: "qwen2",
        model_types: &["qwen2"],
        read_as: |_| ["Qwen2ForCausalLM", "qwen2"],
        bias_keys: &[],
        ..HALVES
    },
    Architecture { name: "qwen3", model_types: &["qwen3"], read_as: |_| ["Qwen3ForCausalLM", "qwen3"], ..HALVES },
    Architecture {
        name: "seed_oss",
        model_types: &["seed_oss"],
        read_as: |_| ["SeedOssForCausalLM", "seed_oss"],
        after_attention: "post_attention_norm",
        ..HALVES
    },
    Architecture {
        name: "olmo2",
        model_types: &["olmo2", "olmo3"],
        read_as: |file| match file.has_windows() {
            true => ["Olmo3ForCausalLM", "olmo3"],
            false => ["Olmo2ForCausalLM", "olmo2"],
        },
        after_attention: "post_attention_norm",
        output: Output::Required,
        biases: NO_BIAS,
        bias_keys: &[],
        windows: Windows::List,
        tables: Tables::SameBase,
        ..HALVES
    },
    Architecture {
        name: "phi3",
        model_types: &["phi3"],
        read_as: |_| ["Phi3ForCausalLM", "phi3"],
        biases: NO_BIAS,
        bias_keys: &[],
        keys: &[keys::RMS_SIZES, keys::PHI3],
        scaling: &[Scaling::Factor, Scaling::ShortAndLong],
        ..HALVES
    },
    Architecture {
        name: "glm4",
        model_types: &["glm4"],
        read_as: |_| ["Glm4ForCausalLM", "glm4"],
        biases: QKV,
        bias_keys: &[ATTENTION_BIAS],
        scaling: &[Scaling::Factor],
        ..LLAMA
    },
    Architecture {
        name: "gemma",
        model_types: &["gemma"],
        read_as: |_| ["GemmaForCausalLM", "gemma"],
        biases: NO_BIAS,
        bias_keys: &[],
        output: Output::Embedding,
        ..HALVES
    },
    Architecture {
        name: "gemma2",
        model_types: &["gemma2"],
        read_as: |_| ["Gemma2ForCausalLM", "gemma2"],
        biases: NO_BIAS,
        bias_keys: &[],
        after_attention: "post_attention_norm",
        output: Output::Embedding,
        windows: Windows::Period(2),
        keys: &[keys::RMS_SIZES, keys::GEMMA2],
        ..HALVES
    },
    Architecture {
        name: "gemma3",
        model_types: &["gemma3_text", "gemma3"],
        read_as: |_| ["Gemma3ForCausalLM", "gemma3_text"],
        biases: NO_BIAS,
        bias_keys: &[],
        after_attention: "post_attention_norm",
        windows: Windows::Period(6),
        tables: Tables::ByWindow(10_000.0),
        keys: &[keys::RMS_SIZES, keys::GEMMA3],
        ..HALVES
    },
    Architecture {
        name: "gemma4",
        model_types: &["gemma4_text", "gemma4", "gemma4_unified_text", "gemma4_unified"],
        read_as: |_| ["Gemma4ForCausalLM", "gemma4_text"],
        after_attention: "post_attention_norm",
        biases: NO_BIAS,
        bias_keys: &[],
        windows: Windows::List,
        tables: Tables::ByWindow(10_000.0),
        keys: &[keys::RMS_SIZES, keys::GEMMA4],
        scaling: &[Scaling::Factor, Scaling::Divisors],
        ..HALVES
    },
    Architecture {
        name: "command-r",
        model_types: &["cohere"],
        read_as: |_| ["CohereForCausalLM", "cohere"],
        output: Output::Embedding,
        biases: QKV,
        bias_keys: &[ATTENTION_BIAS],
        keys: &[keys::LAYER_SIZES, keys::COHERE],
        scaling: &[Scaling::Factor],
        ..LLAMA
    },
    Architecture {
        name: "cohere2",
        model_types: &["cohere2"],
        read_as: |_| ["Cohere2ForCausalLM", "cohere2"],
        output: Output::Embedding,
        biases: NO_BIAS,
        bias_keys: &[],
        windows: Windows::Period(4),
        keys: &[keys::LAYER_SIZES, keys::COHERE],
        scaling: &[Scaling::Factor],
        ..LLAMA
    },
    Architecture {
        name: "muse-glimmer",
        model_types: &["muse_glimmer"],
        read_as: |_| ["MuseGlimmerForConditionalGeneration", "muse_glimmer"],
        after_attention: "post_attention_norm",
        output: Output::Required,
        biases: NO_BIAS,
        bias_keys: &[],
        windows: Windows::List,
        keys: &[keys::RMS_SIZES, keys::MUSE],
        scaling: &[],
        ..LLAMA
    },
    Architecture {
        name: "falcon",
        model_types: &["falcon"],
        read_as: |_| ["FalconForCausalLM", "falcon"],
        biases: NO_BIAS,
        bias_keys: &[],
        keys: &[keys::FALCON],
        ..HALVES
    },
    Architecture {
        name: "stablelm",
        model_types: &["stablelm"],
        read_as: |_| ["StableLmForCausalLM", "stablelm"],
        bias_keys: &[("use_qkv_bias", "attn_q")],
        output: Output::Required,
        keys: &[keys::LAYER_SIZES],
        ..HALVES
    },
    Architecture {
        name: "starcoder2",
        model_types: &["starcoder2"],
        read_as: |_| ["Starcoder2ForCausalLM", "starcoder2"],
        keys: &[keys::STARCODER2],
        ..OLDER
    },
    Architecture {
        name: "bloom",
        model_types: &["bloom"],
        read_as: |_| ["BloomForCausalLM", "bloom"],
        tables: Tables::None,
        keys: &[keys::BLOOM],
        ..OLDER
    },
    Architecture {
        name: "gpt2",
        model_types: &["gpt2"],
        read_as: |_| ["GPT2LMHeadModel", "gpt2"],
        tables: Tables::None,
        keys: &[keys::GPT2],
        ..OLDER
    },
    Architecture {
        name: "gptneox",
        model_types: &["gpt_neox"],
        read_as: |_| ["GPTNeoXForCausalLM", "gpt_neox"],
        output: Output::Required,
        keys: &[keys::GPT_NEOX],
        ..OLDER
    },
];

impl Architecture {
    /// The numbers of a model under both names.
    pub fn all_keys(&self) -> impl Iterator<Item = &'static Key> {
        self.keys.iter().copied().flatten()
    }

    /// Whether llama.cpp cannot open a model of this architecture without a sliding window.
    pub fn needs_windows(&self) -> bool {
        self.windows != Windows::Never && !["olmo2", "gemma3"].contains(&self.name)
    }

    /// Checks whether a linear layer may have a bias, or lack one. `stem`: its name in the file without the number of the
    /// block. Errors: `Error::Input` if llama.cpp does not load such a model.
    pub fn check_bias(&self, subject: &str, stem: &str, bias: bool) -> Result<()> {
        let fits = match self.biases {
            _ if stem == "output" => !bias,
            Biases::Allowed(stems) => !bias || stems.contains(&stem),
            Biases::Everywhere => bias,
        };
        if fits {
            return Ok(());
        }
        let [found, expected] = if bias { ["with a bias", "without"] } else { ["without a bias", "with"] };
        let expected = format!("{stem} {expected} one");
        Err(write_refused(subject, &format!("the linear layer {stem} {found}"), &expected, self))
    }
}
