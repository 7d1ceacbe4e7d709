//! Fuzz target: tokenizer.json.

#![no_main]

aquatint_fuzz::target!(tokenizer);
