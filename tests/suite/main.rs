//! All tests of the library and the command line, in one binary: linking thirty takes longer than running them.
//!
//! One file per op or behaviour; `common` has the devices and float64 references, `small_model` a checkpoint to take apart.

mod add;
mod attention;
mod bad_checkpoints;
mod calibration;
mod checkpoint;
mod cholesky;
mod cli;
mod common;
mod config;
mod dequantize;
mod descent;
mod device;
mod embedding;
mod families;
mod generate;
mod gptq;
mod gram;
mod grid;
mod kl;
mod load;
mod matmul;
mod nll;
mod permute;
mod reduce;
mod refit;
mod rms_norm;
mod rope;
mod rtn;
mod shaders;
mod silu_mul;
mod small_model;
mod solve;
mod tiny_llama;
mod vectors;
mod widen;
