//! Restrictions of vLLM on a checkpoint, whatever its format.

use crate::checkpoint::format::PlannedModel;
use crate::family::LinearSpec;

/// The layers that vLLM joins into one matrix, by the last part of their module path. They follow each other in the
/// model.
const JOINED: [&[&str]; 2] = [&["q_proj", "k_proj", "v_proj"], &["gate_proj", "up_proj"]];

/// A note about the first group of layers that vLLM joins although their bits differ, or although only some of them are
/// quantized. `None` if there is no such group.
pub(super) fn unequal_layers(model: &PlannedModel) -> Option<String> {
    let joined = model.linears.chunk_by(|one, next| matrix(one).is_some() && matrix(one) == matrix(next));
    let bits = |linear: &LinearSpec| model.bits_of(&linear.name);
    let unequal = joined.into_iter().find(|layers| layers.iter().any(|linear| bits(linear) != bits(&layers[0])))?;
    let names: Vec<&str> = unequal.iter().map(|linear| linear.name.as_str()).collect();
    Some(format!(
        "{} are treated differently; vLLM joins them into one matrix and will not load this checkpoint",
        names.join(", ")
    ))
}

/// The joined matrix that a layer is part of: the path of the parent module, and the index in [`JOINED`]. `None` if
/// vLLM does not join the layer.
fn matrix(linear: &LinearSpec) -> Option<(&str, usize)> {
    let (parent, last) = linear.name.rsplit_once('.')?;
    JOINED.iter().position(|parts| parts.contains(&last)).map(|kind| (parent, kind))
}
