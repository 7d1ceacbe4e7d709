//! Fuzz target: a checkpoint, ordinary, GPTQ or in low precision. The input is config.json, a line break, and one safetensors file.

#![no_main]

aquatint_fuzz::target!(checkpoint, weights after |file| file.iter().position(|&byte| byte == b'\n').map_or(file.len(), |end| end + 1));
