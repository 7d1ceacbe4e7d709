//! Fuzz target: a GGUF file, and the numbers of its tensors.

#![no_main]

aquatint_fuzz::target!(gguf);
