//! Reads and checks the sizes of a decoder. Most families of transformers share these keys.

use super::fields::Fields;
use crate::family::graph::Attention;
use crate::{Error, Result};

/// Widths and counts of a decoder, named as in `config.json`.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::family) struct Dimensions {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width inside the MLP.
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; divides the number of query heads.
    pub num_key_value_heads: usize,
    /// Columns of a head; an even number.
    pub head_dim: usize,
    pub vocab_size: usize,
    pub max_position_embeddings: usize,
    pub tie_word_embeddings: bool,
}

/// The keys of a family's sizes, and the sizes where a file has no such key. A list has the names that files use; the
/// first one that a file has counts.
#[derive(Debug, Clone, Copy)]
pub(in crate::family) struct Sizes {
    pub hidden: &'static [&'static str],
    pub inner: &'static [&'static str],
    /// Width inside the MLP as a multiple of the hidden width. `None`: the file must have the key.
    pub inner_factor: Option<usize>,
    pub layers: &'static [&'static str],
    pub heads: &'static [&'static str],
    /// Empty if every query head has a key head of its own.
    pub kv_heads: &'static [&'static str],
    /// Numbers of query heads and of key heads. `None`: the file must give the first, and the second equals it.
    pub default_heads: Option<[usize; 2]>,
    /// Columns of a head. `None` means hidden / heads.
    pub head_dim: Option<usize>,
    pub positions: &'static [&'static str],
    /// Number of positions. `None`: the file must have the key.
    pub most_positions: Option<usize>,
    /// Size of the vocabulary. `None`: the file must have the key.
    pub vocabulary: Option<usize>,
    /// Whether the output matrix is the embedding.
    pub tied: bool,
}

impl Sizes {
    /// The keys of LLaMA and of most families after it.
    pub const USUAL: Self = Self {
        hidden: &["hidden_size"],
        inner: &["intermediate_size"],
        inner_factor: None,
        layers: &["num_hidden_layers"],
        heads: &["num_attention_heads"],
        kv_heads: &["num_key_value_heads"],
        default_heads: None,
        head_dim: None,
        positions: &["max_position_embeddings"],
        most_positions: None,
        vocabulary: None,
        tied: false,
    };
}

/// Greatest number of blocks. A file with more is broken, and its tensor names would fill the memory.
const MOST_LAYERS: usize = 10_000;

/// Reads the size under the first of `keys` that the file has. `default`: the size if it has none of them.
fn size(config: Fields<'_>, keys: &[&str], default: Option<usize>) -> Result<usize> {
    let key = keys.iter().find(|key| config.get(key).is_some()).unwrap_or(&keys[0]);
    match default {
        Some(default) => Ok(config.count(key)?.unwrap_or(default)),
        None => config.required_count(key),
    }
}

impl Dimensions {
    /// Reads and checks the sizes that `sizes` names.
    ///
    /// Errors: `Error::Input` if a key is missing, has the wrong type, or contradicts another.
    pub fn read(config: Fields<'_>, sizes: &Sizes) -> Result<Self> {
        let hidden_size = size(config, sizes.hidden, None)?;
        let [heads, kv_heads] = sizes.default_heads.map_or([None; 2], |heads| heads.map(Some));
        let num_attention_heads = size(config, sizes.heads, heads)?;
        let read = Self {
            hidden_size,
            intermediate_size: size(config, sizes.inner, sizes.inner_factor.map(|factor| factor * hidden_size))?,
            num_hidden_layers: size(config, sizes.layers, None)?,
            num_attention_heads,
            num_key_value_heads: match sizes.kv_heads {
                [] => num_attention_heads,
                keys => size(config, keys, kv_heads.or(Some(num_attention_heads)))?,
            },
            head_dim: match config.count("head_dim")?.or(sizes.head_dim) {
                Some(width) => width,
                None if hidden_size.is_multiple_of(num_attention_heads) => hidden_size / num_attention_heads,
                None => {
                    let expected = format!("a divisor of the hidden width {hidden_size}");
                    return Err(config.refuse(sizes.heads[0], &expected));
                }
            },
            vocab_size: size(config, &["vocab_size"], sizes.vocabulary)?,
            max_position_embeddings: size(config, sizes.positions, sizes.most_positions)?,
            tie_word_embeddings: config.flag("tie_word_embeddings")?.unwrap_or(sizes.tied),
        };
        read.check(config)?;
        Ok(read)
    }

    fn check(&self, config: Fields<'_>) -> Result<()> {
        if self.num_hidden_layers > MOST_LAYERS {
            return Err(config.refuse("num_hidden_layers", &format!("at most {MOST_LAYERS}")));
        }
        if !self.num_attention_heads.is_multiple_of(self.num_key_value_heads) {
            let heads = self.num_attention_heads;
            return Err(config.refuse("num_key_value_heads", &format!("a divisor of the {heads} attention heads")));
        }
        if !self.head_dim.is_multiple_of(2) {
            let found = format!("heads {} wide", self.head_dim);
            let remedy = "correct the file or download it again";
            return Err(Error::input(config.subject, found, "an even head_dim", remedy));
        }
        Ok(())
    }

    /// Attention with these heads, without a window.
    pub fn attention(&self) -> Attention {
        Attention::new(self.num_attention_heads, self.num_key_value_heads, self.head_dim)
    }
}
