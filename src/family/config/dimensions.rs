//! Reads and checks the sizes of a decoder. Most families of transformers share these keys.

use super::fields::Fields;
use crate::Result;
use crate::family::graph::Attention;

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
    /// Columns of a head.
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
    /// Empty for a family without such keys. It has as many key heads as query heads, and no key for the columns of a
    /// head, which are hidden / heads.
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
const MOST_LAYERS: usize = 1000;

/// Greatest width of the residual stream and of the MLP. It is far above those of all models, and low enough that sizes
/// of weights fit into 64 bits.
pub(in crate::family) const MOST_COLUMNS: usize = 1 << 20;

/// Greatest number of query heads.
const MOST_HEADS: usize = 1 << 12;

/// Greatest number of columns of a head, which is that of the attention kernel.
pub(in crate::family) const MOST_HEAD_COLUMNS: usize = 512;

/// Greatest size of the vocabulary, and greatest number of positions.
const MOST_ROWS: usize = 1 << 30;

/// The first of `keys` that the file has, or the first of all.
fn present<'k>(config: Fields<'_>, keys: &[&'k str]) -> &'k str {
    keys.iter().find(|key| config.get(key).is_some()).unwrap_or(&keys[0])
}

/// Reads the size under the first of `keys` that the file has, from 1 to `most`. `default`: the size if it has none of
/// them.
fn size(config: Fields<'_>, keys: &[&str], default: Option<usize>, most: usize) -> Result<usize> {
    let key = present(config, keys);
    let size = match default {
        Some(default) => config.count(key)?.unwrap_or(default),
        None => config.required_count(key)?,
    };
    bounded(config, key, size, most)
}

/// `size`, which the file has under `key`. Errors: `Error::Input` if it is above `most`.
pub(in crate::family) fn bounded(config: Fields<'_>, key: &str, size: usize, most: usize) -> Result<usize> {
    if size <= most { Ok(size) } else { Err(config.refuse(key, &format!("a whole number of at most {most}"))) }
}

impl Dimensions {
    /// Reads and checks the sizes that `sizes` names.
    ///
    /// Errors: `Error::Input` if a key is missing, has the wrong type, or contradicts another.
    pub fn read(config: Fields<'_>, sizes: &Sizes) -> Result<Self> {
        let hidden_size = size(config, sizes.hidden, None, MOST_COLUMNS)?;
        let inner = sizes.inner_factor.map(|factor| factor * hidden_size);
        let [heads, kv_heads] = sizes.default_heads.map_or([None; 2], |heads| heads.map(Some));
        let num_attention_heads = size(config, sizes.heads, heads, MOST_HEADS)?;
        let num_key_value_heads = match sizes.kv_heads {
            [] => num_attention_heads,
            keys => size(config, keys, kv_heads.or(Some(num_attention_heads)), MOST_HEADS)?,
        };
        if !num_attention_heads.is_multiple_of(num_key_value_heads) {
            let expected = format!("a divisor of the {num_attention_heads} attention heads");
            return Err(config.refuse(present(config, sizes.kv_heads), &expected));
        }
        Ok(Self {
            hidden_size,
            intermediate_size: size(config, sizes.inner, inner, MOST_COLUMNS)?,
            num_hidden_layers: size(config, sizes.layers, None, MOST_LAYERS)?,
            num_attention_heads,
            num_key_value_heads,
            head_dim: head_dim(config, sizes, hidden_size, num_attention_heads)?,
            vocab_size: size(config, &["vocab_size"], sizes.vocabulary, MOST_ROWS)?,
            max_position_embeddings: size(config, sizes.positions, sizes.most_positions, MOST_ROWS)?,
            tie_word_embeddings: config.flag("tie_word_embeddings")?.unwrap_or(sizes.tied),
        })
    }

    /// Attention with these heads, without a window.
    pub fn attention(&self) -> Attention {
        Attention::new(self.num_attention_heads, self.num_key_value_heads, self.head_dim)
    }
}

/// Reads the columns of a head: `head_dim`, the default of the family, or `hidden` / `heads`.
///
/// Errors: `Error::Input` if a head has no whole number of columns, or more than [`MOST_HEAD_COLUMNS`].
fn head_dim(config: Fields<'_>, sizes: &Sizes, hidden: usize, heads: usize) -> Result<usize> {
    let given = if sizes.kv_heads.is_empty() { None } else { config.count("head_dim")? };
    if let Some(width) = given.or(sizes.head_dim) {
        return bounded(config, "head_dim", width, MOST_HEAD_COLUMNS);
    }
    let key = present(config, sizes.heads);
    match hidden / heads {
        _ if !hidden.is_multiple_of(heads) => {
            Err(config.refuse(key, &format!("a divisor of the hidden width {hidden}")))
        }
        width if width > MOST_HEAD_COLUMNS => {
            let expected = format!("heads of at most {MOST_HEAD_COLUMNS} columns of the hidden width {hidden}");
            Err(config.refuse(key, &expected))
        }
        width => Ok(width),
    }
}
