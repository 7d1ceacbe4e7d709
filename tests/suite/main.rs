//! All tests of the library and the command line, in one binary: linking thirty takes longer than running them.
//!
//! One file per op or behaviour; `common` has the devices and float64 references, `small_model` a checkpoint to take apart.

mod add;
mod attention;
mod awq;
mod bad_checkpoints;
mod calibration;
mod checkpoint;
mod cholesky;
mod cli;
mod clip;
mod common;
mod config;
mod dequantize;
mod device;
mod embedding;
mod families;
mod generate;
mod gptq;
mod gram;
mod grid;
mod grouped_product;
mod kl;
mod load;
mod magnitude;
mod matmul;
mod nll;
mod permute;
mod quip;
mod reduce;
mod report;
mod rms_norm;
mod rope;
mod rtn;
mod scale;
mod shaders;
mod silu_mul;
mod small_model;
mod solve;
mod sweep;
mod tasks;
mod tiny_llama;
mod together;
mod treatment;
mod vectors;
mod widen;
