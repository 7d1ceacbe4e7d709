//! Fuzz target: model.safetensors.index.json.

#![no_main]

aquatint_fuzz::target!(index);
