//! The tokenizer inside a GGUF file, in both directions.
//!
//! A GGUF file lists the tokens. Everything else it names: a kind of tokenizer and, for merges of bytes, the rule that
//! cuts a text into words first. llama.cpp knows the kinds and the rules. Three kinds are read and written:
//!
//! | `tokenizer.ggml.model` | tokens | order of merges |
//! |---|---|---|
//! | `gpt2` | bytes, merged within words | a list |
//! | `llama` | characters, merged in the whole text (SentencePiece) | the score of the merged token |
//! | `gemma4` | characters, merged in the whole text | a list |
//!
//! Writing: [`TokenizerFiles`] collects what the files of a model say, and [`TokenizerFiles::write`] makes pairs of
//! it. Reading: [`tokenizer_json`] makes a `tokenizer.json` of the pairs, and [`special_tokens`] finds the tokens that
//! begin and end a text. `rules` is the table of the rules for words, `scores` turns merges into scores and back,
//! `vocabulary` has the tokens of a `tokenizer.json`, and `specials` the tokens with a meaning.
//!
//! llama.cpp normalizes no text. A tokenizer that composes characters (NFC) before it cuts them gives other ids for
//! texts that are not composed. [`TokenizerFiles::write`] returns a note in such cases.

mod files;
mod read;
mod rules;
mod scores;
mod specials;
mod vocabulary;
mod write;

pub use files::TokenizerFiles;
pub use read::{SpecialTokens, special_tokens, tokenizer_json};

/// The keys of the pairs.
mod key {
    pub const MODEL: &str = "tokenizer.ggml.model";
    pub const RULE: &str = "tokenizer.ggml.pre";
    pub const TOKENS: &str = "tokenizer.ggml.tokens";
    pub const TYPES: &str = "tokenizer.ggml.token_type";
    pub const SCORES: &str = "tokenizer.ggml.scores";
    pub const MERGES: &str = "tokenizer.ggml.merges";
    pub const BOS: &str = "tokenizer.ggml.bos_token_id";
    pub const EOS: &str = "tokenizer.ggml.eos_token_id";
    pub const EOT: &str = "tokenizer.ggml.eot_token_id";
    pub const EOM: &str = "tokenizer.ggml.eom_token_id";
    pub const UNKNOWN: &str = "tokenizer.ggml.unknown_token_id";
    /// Spelled like this in all files.
    pub const SEPARATOR: &str = "tokenizer.ggml.seperator_token_id";
    pub const PADDING: &str = "tokenizer.ggml.padding_token_id";
    pub const MASK: &str = "tokenizer.ggml.mask_token_id";
    pub const ADD_BOS: &str = "tokenizer.ggml.add_bos_token";
    pub const ADD_EOS: &str = "tokenizer.ggml.add_eos_token";
    pub const ADD_SPACE: &str = "tokenizer.ggml.add_space_prefix";
    pub const TEMPLATE: &str = "tokenizer.chat_template";
    pub const TEMPLATES: &str = "tokenizer.chat_templates";
}

/// The kinds of tokenizers, by the name in the file.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Bytes, merged within words in the order of a list.
    Bytes,
    /// Characters, merged in the order of the scores of the merged tokens.
    Scored,
    /// Characters, merged in the order of a list.
    Characters,
}

impl Kind {
    const ALL: [Self; 3] = [Self::Bytes, Self::Scored, Self::Characters];

    fn name(self) -> &'static str {
        match self {
            Self::Bytes => "gpt2",
            Self::Scored => "llama",
            Self::Characters => "gemma4",
        }
    }
}

/// The types of tokens, by their number in the file.
#[derive(Clone, Copy, PartialEq, Eq)]
enum TokenType {
    /// Part of ordinary text.
    Normal = 1,
    /// Stands for what no token covers.
    Unknown = 2,
    /// Has a meaning and no text.
    Control = 3,
    /// Found in a text before anything else.
    UserDefined = 4,
    /// Fills up the vocabulary.
    Unused = 5,
    /// A single byte.
    Byte = 6,
}

impl TokenType {
    const ALL: [Self; 6] = [Self::Normal, Self::Unknown, Self::Control, Self::UserDefined, Self::Unused, Self::Byte];
}

/// Stands for a space in the tokens of the kinds that merge characters.
const SPACE_MARK: char = '▁';

/// The text of the token for a single byte, in the kinds that merge characters.
fn byte_token(byte: u8) -> String {
    format!("<0x{byte:02X}>")
}
