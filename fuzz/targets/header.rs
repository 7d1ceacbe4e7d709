//! Fuzz target: the header of a safetensors file.

#![no_main]

aquatint_fuzz::target!(header, weights after |_| 0);
