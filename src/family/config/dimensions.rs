//! Reads and checks the sizes of a decoder. Most families of transformers share these keys.

use super::fields::Fields;
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

/// Greatest number of blocks. A file with more is broken, and its tensor names would fill the memory.
const MOST_LAYERS: usize = 10_000;

impl Dimensions {
    /// Reads and checks the keys. `head_dim`: the family's default where the file has no such key; `None` means
    /// hidden_size / heads.
    ///
    /// Errors: `Error::Input` if a key is missing, has the wrong type, or contradicts another.
    pub fn read(config: Fields<'_>, head_dim: Option<usize>) -> Result<Self> {
        let hidden_size = config.required_count("hidden_size")?;
        let num_attention_heads = config.required_count("num_attention_heads")?;
        let read = Self {
            hidden_size,
            intermediate_size: config.required_count("intermediate_size")?,
            num_hidden_layers: config.required_count("num_hidden_layers")?,
            num_attention_heads,
            num_key_value_heads: config.count("num_key_value_heads")?.unwrap_or(num_attention_heads),
            head_dim: match config.count("head_dim")?.or(head_dim) {
                Some(width) => width,
                None if hidden_size.is_multiple_of(num_attention_heads) => hidden_size / num_attention_heads,
                None => {
                    let expected = format!("a divisor of hidden_size {hidden_size}");
                    return Err(config.refuse("num_attention_heads", &expected));
                }
            },
            vocab_size: config.required_count("vocab_size")?,
            max_position_embeddings: config.required_count("max_position_embeddings")?,
            tie_word_embeddings: config.flag("tie_word_embeddings")?.unwrap_or(false),
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

    /// Columns of the queries of all heads together.
    pub fn queries(&self) -> usize {
        self.num_attention_heads * self.head_dim
    }

    /// Columns of the keys of all heads together, and also of the values.
    pub fn keys(&self) -> usize {
        self.num_key_value_heads * self.head_dim
    }
}

/// Checks that the MLP's activation is SiLU, which it is where the file does not say.
///
/// Errors: `Error::Input` for any other.
pub(in crate::family) fn require_silu(config: Fields<'_>) -> Result<()> {
    match config.text("hidden_act")? {
        None | Some("silu" | "swish") => Ok(()),
        Some(_) => Err(config.refuse("hidden_act", "\"silu\"")),
    }
}
