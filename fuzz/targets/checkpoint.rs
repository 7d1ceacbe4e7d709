//! A whole checkpoint, ordinary or GPTQ: config.json, a line break, and one safetensors file.

#![no_main]

aquatint_fuzz::target!(checkpoint, weights after |file| file.iter().position(|&byte| byte == b'\n').map_or(file.len(), |end| end + 1));
