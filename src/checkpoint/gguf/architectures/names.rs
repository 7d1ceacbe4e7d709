//! Names of the tensors, and the changes that llama.cpp expects of their numbers.

use super::rows::RowOrder;
use super::table::{Architecture, Output};
use super::{GgufTensor, write_refused};
use crate::Result;
use crate::family::{Block, Columns, Factors, Gains, Linear, ModelConfig, Name, Norm, Op, Pairs, Value};

/// Modules of a block, by their paths below the block, and their names in a GGUF file. The norm
/// `post_attention_layernorm` is missing, because architectures differ in what they call it.
const MODULES: &[(&str, &str)] = &[
    ("input_layernorm", "attn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.qkv_proj", "attn_qkv"),
    ("self_attn.gate_proj", "attn_gate"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("self_attn.q_layernorm.norms.0", "attn_q_norm"),
    ("self_attn.k_layernorm.norms.0", "attn_k_norm"),
    ("post_self_attn_layernorm", "post_attention_norm"),
    ("pre_feedforward_layernorm", "ffn_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.gate_up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
    ("post_feedforward_layernorm", "post_ffw_norm"),
    ("post_mlp_layernorm", "post_ffw_norm"),
    ("layer_scalar", "layer_output_scale"),
    // Falcon with two norms: the second one in the file is that of attention.
    ("ln_mlp", "attn_norm"),
    ("ln_attn", "attn_norm_2"),
    // Falcon and BLOOM.
    ("self_attention.query_key_value", "attn_qkv"),
    ("self_attention.dense", "attn_output"),
    ("mlp.dense_h_to_4h", "ffn_up"),
    ("mlp.dense_4h_to_h", "ffn_down"),
    // GPT-NeoX.
    ("attention.query_key_value", "attn_qkv"),
    ("attention.dense", "attn_output"),
    // GPT-2 and StarCoder2.
    ("ln_1", "attn_norm"),
    ("attn.c_attn", "attn_qkv"),
    ("attn.c_proj", "attn_output"),
    ("ln_2", "ffn_norm"),
    ("mlp.c_fc", "ffn_up"),
    ("mlp.c_proj", "ffn_down"),
];

/// The norm whose name depends on the architecture.
const AFTER_ATTENTION: &str = "post_attention_layernorm";

/// The tensors of one block, or of the head.
struct BlockTensors<'a> {
    subject: &'a str,
    architecture: &'a Architecture,
    block: &'a Block,
    /// Number of the block. `None` for the head.
    layer: Option<usize>,
    /// Whether the rows of queries and keys are stored as neighbours, in every layer. Those without rotation are no
    /// exception.
    interleaved: bool,
    tensors: Vec<GgufTensor>,
}

/// All tensors of `model` in a file of the architecture, in model order. Errors: `Error::Input` if there is one that
/// llama.cpp does not load, or if one is missing that it needs.
pub(super) fn tensors(subject: &str, model: &ModelConfig, architecture: &Architecture) -> Result<Vec<GgufTensor>> {
    let shape = [model.vocab_size, model.hidden_size];
    let mut tensors = vec![GgufTensor::new("token_embd.weight", &model.embedding, &shape)];
    let interleaved = architecture.pairs == Pairs::Neighbours && turns_halves(model);
    let blocks = model.blocks.iter().enumerate().map(|(layer, block)| (Some(layer), block));
    for (layer, block) in blocks.chain([(None, &model.head)]) {
        let mut part = BlockTensors { subject, architecture, block, layer, interleaved, tensors: Vec::new() };
        part.push_all()?;
        tensors.extend(part.tensors);
    }
    let output = "output.weight";
    match (model.tie_word_embeddings, architecture.output) {
        (true, Output::Required) => {
            let last = tensors.iter_mut().find(|tensor| tensor.name == output);
            last.expect("a head has an output matrix").sources = vec![model.embedding.clone()];
        }
        (true, _) => tensors.retain(|tensor| tensor.name != output),
        (false, Output::Embedding) => {
            let found = "an output matrix that is not the embedding";
            return Err(write_refused(subject, found, "the embedding as output matrix", architecture));
        }
        (false, _) => {}
    }
    Ok(tensors)
}

impl BlockTensors<'_> {
    /// Appends the tensors of all nodes.
    fn push_all(&mut self) -> Result<()> {
        for node in &self.block.nodes {
            match &node.op {
                Op::Linears(linears) => {
                    for (linear, &made) in linears.iter().zip(&node.makes) {
                        self.push_linear(linear, made)?;
                    }
                }
                Op::Norm(norm) => self.push_norm(norm)?,
                Op::Position { table, rows, .. } => {
                    let width = self.block.widths[node.makes[0].0];
                    self.push("position_embd.weight".to_owned(), table, &[*rows, width]);
                }
                Op::Multiply(factors) => self.push_factors(factors)?,
                Op::Rope { .. }
                | Op::Attention(_)
                | Op::Columns(_)
                | Op::Activate(_)
                | Op::Gate(_)
                | Op::Add
                | Op::Scale(_)
                | Op::Softcap(_) => {}
            }
        }
        Ok(())
    }

    /// Appends the tensor `name` of the file, which holds that of the name `source`, and returns it.
    fn push(&mut self, name: String, source: &Name, shape: &[usize]) -> &mut GgufTensor {
        self.tensors.push(GgufTensor::new(&name, &source.at(self.layer.unwrap_or(0)), shape));
        self.tensors.last_mut().expect("just pushed")
    }

    fn push_linear(&mut self, linear: &Linear, made: Value) -> Result<()> {
        let module = match self.layer {
            None => "output".to_owned(),
            Some(_) => self.module(&linear.path)?,
        };
        let stem = module.rsplit('.').next().unwrap_or_default().to_owned();
        self.architecture.check_bias(self.subject, &stem, linear.bias)?;
        let rows = self.row_order(&stem, made, linear.rows);
        let weight =
            self.push(format!("{module}.weight"), &linear.path.with(".weight"), &[linear.rows, linear.columns]);
        weight.rows = rows.clone();
        if let Some(bias) = linear.bias() {
            self.push(format!("{module}.bias"), &bias, &[linear.rows]).rows = rows;
        }
        Ok(())
    }

    fn push_norm(&mut self, norm: &Norm) -> Result<()> {
        if norm.tensors().is_empty() {
            return Ok(());
        }
        let inside = norm.path.text().contains("{layer}");
        let module = match self.layer {
            None => "output_norm".to_owned(),
            Some(_) if !inside => "token_embd_norm".to_owned(),
            Some(_) => self.module(&norm.path)?,
        };
        if let Some(weight) = norm.weight() {
            let added = if norm.gains == Gains::PlusOne { 1.0 } else { 0.0 };
            self.push(format!("{module}.weight"), &weight, &[norm.width]).added = added;
        }
        if let Some(bias) = norm.bias() {
            self.push(format!("{module}.bias"), &bias, &[norm.width]);
        }
        Ok(())
    }

    /// Appends factors of columns. Those of all heads are one tensor in the file.
    fn push_factors(&mut self, factors: &Factors) -> Result<()> {
        let [first, others @ ..] = &factors.parts[..] else { return Ok(()) };
        let path = Name::new(first.text().trim_end_matches(".weight"));
        let module = self.module(&path)?;
        let mut shape = factors.shape.clone();
        if !others.is_empty() {
            shape.insert(0, factors.parts.len());
        }
        let layer = self.layer.unwrap_or(0);
        self.push(format!("{module}.weight"), first, &shape).sources.extend(others.iter().map(|part| part.at(layer)));
        Ok(())
    }

    /// The name in the file of the module `path`, with the number of the block.
    fn module(&self, path: &Name) -> Result<String> {
        let below = path.text().split_once("{layer}.").map_or(path.text(), |(_, below)| below);
        let known = MODULES.iter().find(|(module, _)| *module == below).map(|(_, stem)| *stem);
        let after = (below == AFTER_ATTENTION).then_some(self.architecture.after_attention);
        match known.or(after) {
            Some(stem) => Ok(format!("blk.{}.{stem}", self.layer.unwrap_or(0))),
            None => {
                let found = format!("the module {below}");
                Err(write_refused(self.subject, &found, "modules that have a name there", self.architecture))
            }
        }
    }

    /// The order of the `rows` rows of the linear layer `stem`, which makes the value `made`.
    fn row_order(&self, stem: &str, made: Value, rows: usize) -> RowOrder {
        let readers = self.block.nodes.iter().filter(|node| node.reads.contains(&made));
        let parts: Vec<Columns> = readers
            .filter_map(|node| match node.op {
                Op::Columns(columns) => Some(columns),
                _ => None,
            })
            .collect();
        if parts.first().is_some_and(|part| part.period != rows) {
            return RowOrder::Parts(parts);
        }
        match self.block.attentions().next() {
            Some((_, attention)) if self.interleaved && matches!(stem, "attn_q" | "attn_k") => {
                RowOrder::Neighbours { head_dim: attention.head_dim }
            }
            _ => RowOrder::Same,
        }
    }
}

/// Whether some layer of the model turns columns that lie half a head apart.
fn turns_halves(model: &ModelConfig) -> bool {
    let halves = |op: &Op| matches!(op, Op::Rope { pairs: Pairs::Halves, .. });
    model.distinct_blocks().any(|block| block.nodes.iter().any(|node| halves(&node.op)))
}
