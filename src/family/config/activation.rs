//! Reads the activation of the MLP.

use super::fields::Fields;
use crate::Result;
use crate::family::graph::Activation;

/// Reads the activation that `key` names. `default`: the family's activation where the file has no such key.
///
/// Errors: `Error::Input` for a function that is not implemented.
pub(in crate::family) fn activation(config: Fields<'_>, key: &str, default: Activation) -> Result<Activation> {
    match config.text(key)? {
        None => Ok(default),
        Some("silu" | "swish") => Ok(Activation::Silu),
        Some("gelu" | "gelu_python") => Ok(Activation::Gelu),
        // Three ways to write the same function.
        Some("gelu_new" | "gelu_pytorch_tanh" | "gelu_fast") => Ok(Activation::GeluTanh),
        Some("relu") => Ok(Activation::Relu),
        Some("relu2") => Ok(Activation::ReluSquared),
        Some(_) => {
            let expected =
                "\"silu\", \"gelu\", \"gelu_new\", \"gelu_pytorch_tanh\", \"gelu_fast\", \"relu\" or \"relu2\"";
            Err(config.refuse(key, expected))
        }
    }
}
