//! Numbers of a model that its metadata state, read off its description.

use crate::family::{Activation, Attention, Block, ModelConfig, Norm, NormKind, Op, Rope, Value};

/// A model, and the numbers in its description.
#[derive(Clone, Copy)]
pub(super) struct Facts<'a> {
    pub model: &'a ModelConfig,
}

impl<'a> Facts<'a> {
    /// Self-attention of layer `layer`.
    pub fn attention(&self, layer: usize) -> Attention {
        let (_, attention) = self.model.blocks[layer].attentions().next().expect("every block has attention");
        attention
    }

    /// Self-attention of every layer.
    pub fn attentions(&self) -> Vec<Attention> {
        (0..self.model.blocks.len()).map(|layer| self.attention(layer)).collect()
    }

    /// Self-attention of the last layer without a window, or of the last layer.
    pub fn full(&self) -> Attention {
        let attentions = self.attentions();
        let full = attentions.iter().rev().find(|attention| attention.window.is_none());
        *full.unwrap_or(&attentions[attentions.len() - 1])
    }

    /// Self-attention of the first layer with a window.
    pub fn sliding(&self) -> Option<Attention> {
        self.attentions().into_iter().find(|attention| attention.window.is_some())
    }

    /// Columns inside the MLP: inputs of the last linear layer of a block.
    pub fn inner(&self) -> usize {
        let last = self.model.blocks[0].groups().last().and_then(<[_]>::last);
        last.map_or(0, |down| down.columns)
    }

    /// ε of the final norm, if it is of the kind `kind`.
    pub fn epsilon(&self, kind: NormKind) -> Option<f32> {
        norms(&self.model.head).find(|norm| norm.kind == kind).map(|norm| norm.epsilon)
    }

    /// The table of angles of the layers without a window, or of all layers.
    pub fn rope(&self) -> Option<&'a Rope> {
        self.model.ropes.first()
    }

    /// The table of angles of the layers with a window, if they have one of their own.
    pub fn sliding_rope(&self) -> Option<&'a Rope> {
        self.model.ropes.get(1).filter(|rope| rope.growth.is_none())
    }

    /// The factor of the embedding.
    pub fn embedding_scale(&self) -> Option<f32> {
        scales(&self.model.blocks[0]).find(|(read, _)| *read == Value(0)).map(|(_, factor)| factor)
    }

    /// The factor of the branches before they are added.
    pub fn residual_scale(&self) -> Option<f32> {
        scales(&self.model.blocks[0]).find(|(read, _)| *read != Value(0)).map(|(_, factor)| factor)
    }

    /// The factor of the logits.
    pub fn logit_scale(&self) -> Option<f32> {
        scales(&self.model.head).next().map(|(_, factor)| factor)
    }

    /// The bound of the logits.
    pub fn logit_cap(&self) -> Option<f32> {
        self.model.head.nodes.iter().find_map(|node| match node.op {
            Op::Softcap(cap) => Some(cap),
            _ => None,
        })
    }

    /// The factor by which queries grow with their position.
    pub fn growth(&self) -> Option<f64> {
        self.model.ropes.iter().find_map(|rope| rope.growth).map(|growth| growth.beta)
    }

    /// Whether the MLP adds to what attention adds to, instead of to its sum with attention's output.
    pub fn is_parallel(&self) -> bool {
        let block = &self.model.blocks[0];
        let norm_reads = block.nodes.iter().filter_map(|node| match node.op {
            Op::Norm(_) => Some(node.reads[0]),
            _ => None,
        });
        norm_reads.filter(|&read| read == Value(0)).count() > 1
    }

    /// Whether the MLP uses exact GELU.
    pub fn has_exact_gelu(&self) -> bool {
        let exact = |op: &Op| matches!(op, Op::Activate(Activation::Gelu) | Op::Gate(Activation::Gelu));
        self.model.distinct_blocks().any(|block| block.nodes.iter().any(|node| exact(&node.op)))
    }
}

/// The norms of a block.
pub(super) fn norms(block: &Block) -> impl Iterator<Item = &Norm> {
    block.nodes.iter().filter_map(|node| match &node.op {
        Op::Norm(norm) => Some(norm),
        _ => None,
    })
}

/// The values of a block that are multiplied by a number, with the number.
fn scales(block: &Block) -> impl Iterator<Item = (Value, f32)> + '_ {
    block.nodes.iter().filter_map(|node| match node.op {
        Op::Scale(factor) => Some((node.reads[0], factor)),
        _ => None,
    })
}
