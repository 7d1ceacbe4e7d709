//! Passengers: tensors in the files of a model that the model itself does not use. A copy keeps them as they are.
//!
//! They belong to other parts of the release, such as a vision tower, or are buffers that older programs saved. A tensor
//! that is neither used nor a passenger is an error: it may be a weight without which the model computes something
//! else. A tensor that the description of the model names is never a passenger.

use std::collections::BTreeMap;

/// Beginnings of names, and the part of the release to which such tensors belong. Each may follow `model.`.
const PARTS: [(&str, &str); 10] = [
    ("vision_tower.", "vision tower"),
    ("visual.", "vision tower"),
    ("vision_embedder.", "vision tower"),
    ("vision_adapter.", "vision tower"),
    ("vision_projection.", "vision tower"),
    ("embed_vision.", "vision tower"),
    ("audio_tower.", "audio tower"),
    ("embed_audio.", "audio tower"),
    ("multi_modal_projector.", "multimodal projector"),
    ("mtp.", "MTP head"),
];

/// Endings of the names of buffers that clients compute themselves: the frequencies of rotary embeddings, and the causal
/// masks of GPT-2, GPT-J and GPT-NeoX.
const BUFFERS: [&str; 5] =
    [".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias"];

/// What the tensor `name` belongs to if it is a passenger, as words that can follow "of the".
pub fn part_of(name: &str) -> Option<&'static str> {
    let inner = name.strip_prefix("model.").unwrap_or(name);
    let part = PARTS.iter().find(|(beginning, _)| inner.starts_with(beginning)).map(|(_, part)| *part);
    part.or_else(|| BUFFERS.iter().any(|ending| name.ends_with(ending)).then_some("unused buffers"))
}

/// The stored tensors that the model does not use, each with what it belongs to, as words that can follow "of the".
#[derive(Debug, Default)]
pub struct Unused {
    /// Passengers, which a copy keeps.
    pub copied: BTreeMap<String, &'static str>,
    /// Tensors that have no meaning in a copy.
    pub left_out: BTreeMap<String, &'static str>,
}

/// Tensors that the model does not use and that belong together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TensorGroup {
    /// What they belong to, as words that can follow "of the".
    pub part: &'static str,
    /// Number of tensors.
    pub tensors: usize,
    /// Their size in bytes.
    pub bytes: u64,
}

impl TensorGroup {
    /// Groups tensors by their part. Each comes with its size in bytes.
    pub fn all(tensors: impl Iterator<Item = (&'static str, u64)>) -> Vec<Self> {
        let mut groups = BTreeMap::new();
        for (part, bytes) in tensors {
            let group = groups.entry(part).or_insert(Self { part, tensors: 0, bytes: 0 });
            group.tensors += 1;
            group.bytes += bytes;
        }
        groups.into_values().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passengers_are_known_by_their_names() {
        let known = [
            ("model.visual.blocks.0.attn.qkv.weight", "vision tower"),
            ("visual.merger.bias", "vision tower"),
            ("model.embed_vision.embedding_projection.weight", "vision tower"),
            ("audio_tower.conv1.weight", "audio tower"),
            ("model.multi_modal_projector.norm.weight", "multimodal projector"),
            ("mtp.layers.0.mlp.up_proj.weight", "MTP head"),
            ("model.layers.3.self_attn.rotary_emb.inv_freq", "unused buffers"),
            ("h.0.attn.bias", "unused buffers"),
            ("gpt_neox.layers.1.attention.masked_bias", "unused buffers"),
        ];
        for (name, part) in known {
            assert_eq!(part_of(name), Some(part), "{name}");
        }
        let unknown =
            ["model.layers.0.mlp.up_proj.bias", "model.layers.0.visual.weight", "mtp", "h.0.attn.c_attn.bias"];
        for name in unknown {
            assert_eq!(part_of(name), None, "{name}");
        }
    }
}
