//! Compares a model with what llama.cpp computes from its metadata.

use super::facts::Facts;
use super::rope;
use super::table::{Architecture, Windows};
use super::write_refused;
use crate::Result;
use crate::family::{Activation, Attention, Block, Linear, ModelConfig, Op};

/// Two descriptions of a model: its own, and that of what llama.cpp computes.
struct Comparison<'a> {
    model: &'a ModelConfig,
    theirs: &'a ModelConfig,
    architecture: &'a Architecture,
}

/// Checks that llama.cpp computes `model`. `theirs`: the model that the metadata describe. Returns notes about what is
/// not quite the same, as sentences without a full stop.
///
/// Errors: `Error::Input` naming the first part of the model that llama.cpp computes in another way.
pub(super) fn check(
    subject: &str,
    model: &ModelConfig,
    theirs: &ModelConfig,
    architecture: &Architecture,
) -> Result<Vec<String>> {
    let comparison = Comparison { model, theirs, architecture };
    let blocks = model.blocks.iter().zip(&theirs.blocks).enumerate();
    let parts = blocks.map(|(layer, (ours, theirs))| (format!("layer {layer}"), ours, theirs));
    for (place, ours, theirs) in parts.chain([("the head".to_owned(), &model.head, &theirs.head)]) {
        if let Some([found, expected]) = comparison.of_blocks(ours, theirs) {
            return Err(write_refused(subject, &format!("{found} in {place}"), &expected, architecture));
        }
    }
    let mut notes = Vec::new();
    let facts = Facts { model };
    let name = architecture.name;
    let window = facts.sliding().and_then(|attention| attention.window);
    let window = window.filter(|&window| window < model.max_position_embeddings);
    if let (Windows::Never, Some(window)) = (architecture.windows, window) {
        let note = "llama.cpp has no sliding windows for this architecture: it computes something else than the model";
        notes.push(format!("{note} in texts of more than {window} tokens"));
    }
    if facts.has_exact_gelu() {
        notes.push(format!("llama.cpp approximates GELU by a hyperbolic tangent in \"{name}\", unlike the model"));
    }
    Ok(notes)
}

impl Comparison<'_> {
    /// The first difference of two blocks: what is found in the model, and what llama.cpp computes. `None` if they are
    /// alike.
    fn of_blocks(&self, ours: &Block, theirs: &Block) -> Option<[String; 2]> {
        for (a, b) in ours.nodes.iter().zip(&theirs.nodes) {
            if a.reads != b.reads || a.makes != b.makes || !self.are_alike(&a.op, &b.op) {
                let described = [self.described(self.model, &a.op), self.described(self.theirs, &b.op)];
                let structure = ["nodes in another order".to_owned(), "the order of llama.cpp".to_owned()];
                return Some(if described[0] == described[1] { structure } else { described });
            }
        }
        let lengths = [ours, theirs].map(|block| format!("{} nodes", block.nodes.len()));
        (lengths[0] != lengths[1] || ours.outputs != theirs.outputs).then_some(lengths)
    }

    fn are_alike(&self, ours: &Op, theirs: &Op) -> bool {
        match (ours, theirs) {
            (Op::Linears(ours), Op::Linears(theirs)) => {
                let sizes = |linear: &Linear| (linear.rows, linear.columns, linear.bias);
                ours.iter().map(sizes).eq(theirs.iter().map(sizes))
            }
            (Op::Norm(ours), Op::Norm(theirs)) => {
                let (a, b) = (ours, theirs);
                let same = (a.kind, a.width, a.gains, a.bias) == (b.kind, b.width, b.gains, b.bias);
                same && close(a.epsilon, b.epsilon, 1e-6)
            }
            (
                Op::Rope { table: a, head_dim: a_dim, pairs: a_pairs },
                Op::Rope { table: b, head_dim: b_dim, pairs: b_pairs },
            ) => {
                let tables = rope::are_alike(&self.model.ropes[*a], &self.theirs.ropes[*b]);
                a_dim == b_dim && a_pairs == b_pairs && tables
            }
            (Op::Attention(ours), Op::Attention(theirs)) => self.attentions_are_alike(*ours, *theirs),
            (Op::Activate(ours), Op::Activate(theirs)) | (Op::Gate(ours), Op::Gate(theirs)) => {
                plain(*ours) == plain(*theirs)
            }
            // Clients round the factor of Gemma's embedding to the type of the weights, llama.cpp does not.
            (Op::Scale(ours), Op::Scale(theirs)) => close(*ours, *theirs, 1.0 / 256.0),
            (Op::Softcap(ours), Op::Softcap(theirs)) => close(*ours, *theirs, 1e-6),
            (Op::Multiply(ours), Op::Multiply(theirs)) => {
                ours.shape == theirs.shape && ours.parts.len() == theirs.parts.len()
            }
            (Op::Position { rows: a, offset: a_offset, .. }, Op::Position { rows: b, offset: b_offset, .. }) => {
                (a, a_offset) == (b, b_offset)
            }
            (ours, theirs) => ours == theirs,
        }
    }

    /// Whether two attentions are alike. A window does not count where llama.cpp has none.
    fn attentions_are_alike(&self, ours: Attention, theirs: Attention) -> bool {
        let window = if self.architecture.windows == Windows::Never { theirs.window } else { ours.window };
        let scale = if close(ours.scale, theirs.scale, 1e-6) { theirs.scale } else { ours.scale };
        Attention { window, scale, ..ours } == theirs
    }

    /// An op of `model` in words.
    fn described(&self, model: &ModelConfig, op: &Op) -> String {
        match op {
            Op::Linears(linears) => {
                let one = |linear: &Linear| {
                    let bias = if linear.bias { " with a bias" } else { "" };
                    format!("{} [{}, {}]{bias}", linear.label(), linear.rows, linear.columns)
                };
                format!("the linear layers {}", linears.iter().map(one).collect::<Vec<_>>().join(", "))
            }
            Op::Norm(norm) => format!("a norm over {} columns with ε {:e}", norm.width, norm.epsilon),
            Op::Rope { table, pairs, .. } => {
                let rope = &model.ropes[*table];
                format!("RoPE of {} columns as {pairs:?}, base {}, {:?}", rope.rotated, rope.theta, rope.scaling)
            }
            Op::Attention(attention) => described_attention(attention),
            Op::Activate(activation) => format!("the activation {activation:?}"),
            Op::Gate(activation) => format!("a gate by {activation:?}"),
            Op::Scale(factor) => format!("a factor {factor}"),
            Op::Softcap(cap) => format!("a bound {cap}"),
            Op::Multiply(factors) => format!("{} stored factors", factors.shape.iter().product::<usize>()),
            Op::Position { rows, .. } => format!("{rows} learned positions"),
            Op::Columns(columns) => format!("columns in runs of {}", columns.period),
            Op::Add => "a sum".to_owned(),
        }
    }
}

fn described_attention(attention: &Attention) -> String {
    let &Attention { heads, kv_heads, head_dim, window, scale, softcap, alibi } = attention;
    let mut text = format!("attention of {heads} heads of {head_dim} columns and {kv_heads} key heads, scale {scale}");
    if let Some(window) = window {
        text += &format!(", window {window}");
    }
    if let Some(cap) = softcap {
        text += &format!(", bound {cap}");
    }
    if let Some(factor) = alibi {
        text += &format!(", ALiBi {factor}");
    }
    text
}

/// Whether two numbers differ by no more than the share `tolerance`.
fn close(a: f32, b: f32, tolerance: f32) -> bool {
    (a - b).abs() <= tolerance * a.abs().max(b.abs())
}

/// The activation, with GELU for both of its forms. llama.cpp has one.
fn plain(activation: Activation) -> Activation {
    match activation {
        Activation::GeluTanh => Activation::Gelu,
        other => other,
    }
}
