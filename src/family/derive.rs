//! Properties that follow from the description of a block: what a stream keeps at each stop, where scales can be
//! folded, which tensors there are, and how much there is to compute.
//!
//! These are pure functions of the list of nodes in `graph`. A stop is a group of linear layers, where the pipeline
//! stops to measure, correct and quantize. A stream is the hidden states of the calibration windows on their way
//! through the blocks.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::graph::{
    Activation, Attention, Block, Gains, Layout, Linear, LinearSpec, ModelConfig, Name, Node, Op, Value,
};

/// A stop as a stream of hidden states sees it: what it keeps there, and how it gets to the next stop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cut {
    /// Index of the node: a group of linear layers, or the number of nodes for the end of the block.
    pub node: usize,
    /// The values of each token that are kept at this stop.
    pub kept: Vec<Value>,
    /// Nodes before the stop that are run again, in order. They compute from `kept` the other values that are read
    /// before the next cut.
    pub remade: Vec<usize>,
    /// Nodes to run after the linear layers of the stop, in order, up to the next cut. Empty at the end of the block.
    pub run: Vec<usize>,
}

/// Where the scales of a stop's input are folded: into tensors that have one number, or one row, for each channel of
/// the input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fold {
    /// Gains and biases. Each is divided by the scales.
    pub tensors: Vec<Name>,
    /// How the first of the tensors is stored, if it holds gains.
    pub gains: Gains,
    /// The linear layer whose rows are divided, if a linear layer makes the input.
    pub linear: Option<Name>,
    /// For each channel of the input, its index in the tensors and its row in the linear layer.
    pub rows: Vec<usize>,
}

impl Op {
    /// Whether the result for each token depends on that token alone.
    fn is_per_token(&self) -> bool {
        !matches!(self, Self::Attention(_))
    }

    /// Whether running the op again costs no more than keeping its result.
    fn is_light(&self) -> bool {
        matches!(self, Self::Norm(_))
    }
}

impl Block {
    /// Indices of the nodes at which the pipeline stops.
    pub fn stops(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.nodes.len()).filter(|&node| matches!(self.nodes[node].op, Op::Linears(_)))
    }

    /// The linear layers of the stop at `node`. Empty for any other node.
    pub fn group(&self, node: usize) -> &[Linear] {
        match self.nodes.get(node).map(|node| &node.op) {
            Some(Op::Linears(linears)) => linears,
            _ => &[],
        }
    }

    /// The groups of linear layers, in the order in which they run.
    pub fn groups(&self) -> impl Iterator<Item = &[Linear]> {
        self.stops().map(|node| self.group(node))
    }

    /// A short name of the stop at `node` for progress lines, such as `gate, up`.
    pub fn label(&self, node: usize) -> String {
        self.group(node).iter().map(Linear::label).collect::<Vec<_>>().join(", ")
    }

    /// The attention nodes, each with its index.
    pub fn attentions(&self) -> impl Iterator<Item = (usize, Attention)> + '_ {
        self.nodes.iter().enumerate().filter_map(|(number, node)| match node.op {
            Op::Attention(attention) => Some((number, attention)),
            _ => None,
        })
    }

    /// Index of the node that makes a value. `None` for an input of the block.
    fn maker(&self, value: Value) -> Option<usize> {
        self.nodes.iter().position(|node| node.makes.contains(&value))
    }

    /// Indices of the nodes that read a value.
    fn readers(&self, value: Value) -> impl Iterator<Item = usize> + '_ {
        (0..self.nodes.len()).filter(move |&node| self.nodes[node].reads.contains(&value))
    }

    /// For each value, the index of the last node that reads it. For an output of the block, the number of nodes.
    pub fn last_readers(&self) -> Vec<usize> {
        let last = |value| match self.outputs.contains(&value) {
            true => self.nodes.len(),
            false => self.readers(value).last().unwrap_or(0),
        };
        (0..self.widths.len()).map(Value).map(last).collect()
    }

    /// All stops and the end of the block, with the values that a stream keeps at each.
    ///
    /// The result of a norm is never kept. With `remake`, a value is not kept either if it can be computed again token
    /// by token, even through linear layers. This saves memory and costs time. Before the first stop, everything is
    /// computed again from the inputs.
    pub fn cuts(&self, remake: bool) -> Vec<Cut> {
        let nodes: Vec<usize> = self.stops().chain([self.nodes.len()]).collect();
        let kept = |(index, &node): (usize, &usize)| match index {
            0 => (0..self.inputs).map(Value).filter(|&input| self.is_live(input, 0)).collect(),
            _ => self.kept_before(node, remake),
        };
        let kept: Vec<Vec<Value>> = nodes.iter().enumerate().map(kept).collect();
        let mut cuts = Vec::new();
        for (index, &node) in nodes.iter().enumerate() {
            let (remade, run) = match nodes.get(index + 1) {
                Some(&next) => self.way(node, &kept[index], next, &kept[index + 1]),
                None => (Vec::new(), Vec::new()),
            };
            cuts.push(Cut { node, kept: kept[index].clone(), remade, run });
        }
        cuts
    }

    /// Whether a value exists before `node` runs, and is read by `node` or later.
    fn is_live(&self, value: Value, node: usize) -> bool {
        let made = self.maker(value).is_none_or(|maker| maker < node);
        made && (self.outputs.contains(&value) || self.readers(value).any(|reader| reader >= node))
    }

    /// The live values before `node` that cannot be computed again from other values that are kept there.
    fn kept_before(&self, node: usize, remake: bool) -> Vec<Value> {
        let mut kept = Vec::new();
        for value in (0..self.widths.len()).map(Value).filter(|&value| self.is_live(value, node)) {
            if node == self.nodes.len() || !self.follows(value, &kept, remake) {
                kept.push(value);
            }
        }
        kept
    }

    /// Whether a value is in `kept` or can be computed again from `kept`.
    fn follows(&self, value: Value, kept: &[Value], remake: bool) -> bool {
        let again = |op: &Op| op.is_light() || remake && op.is_per_token();
        let makes = |maker: usize| {
            let node = &self.nodes[maker];
            again(&node.op) && node.reads.iter().all(|&read| self.follows(read, kept, remake))
        };
        kept.contains(&value) || self.maker(value).is_some_and(makes)
    }

    /// The nodes before and after the stop at `node` that compute `kept_next`, the values kept before `next`, from
    /// `kept`, the values kept at `node`.
    fn way(&self, node: usize, kept: &[Value], next: usize, kept_next: &[Value]) -> (Vec<usize>, Vec<usize>) {
        let mut needed: BTreeSet<Value> = kept_next.iter().copied().filter(|value| !kept.contains(value)).collect();
        let (mut remade, mut run) = (Vec::new(), Vec::new());
        for number in (0..next).rev() {
            let step = &self.nodes[number];
            if number != node && !step.makes.iter().any(|made| needed.contains(made)) {
                continue;
            }
            match number {
                _ if number < node => remade.push(number),
                _ if number > node => run.push(number),
                _ => {}
            }
            needed.extend(step.reads.iter().filter(|read| !kept.contains(read)));
        }
        remade.reverse();
        run.reverse();
        (remade, run)
    }

    /// Number of weights in all linear layers.
    pub fn weights(&self) -> u64 {
        self.groups().flatten().map(Linear::weights).sum()
    }

    /// Columns of the widest value.
    pub fn widest(&self) -> usize {
        self.widths.iter().copied().max().unwrap_or(0)
    }

    /// The greatest number of columns that a stream keeps per token at any stop.
    pub fn kept_columns(&self, remake: bool) -> usize {
        let columns = |cut: &Cut| cut.kept.iter().map(|value| self.widths[value.0]).sum();
        self.cuts(remake).iter().map(columns).max().unwrap_or(0)
    }

    /// Where positive scales of the input of the stop at `node` can be folded. Each channel of the input is divided by
    /// its scale, and the columns of the stop's linear layers are multiplied by it, so the model computes the same as
    /// before. `None` if a channel has several sources or other readers.
    pub fn fold(&self, node: usize) -> Option<Fold> {
        let (mut reader, mut value) = (node, *self.nodes.get(node)?.reads.first()?);
        let mut rows: Vec<usize> = (0..self.widths[value.0]).collect();
        loop {
            reader = self.only_maker(value, reader, &rows)?;
            let maker = &self.nodes[reader];
            value = match &maker.op {
                Op::Norm(norm) if norm.width == self.widths[value.0] && norm.gains != Gains::None => {
                    return Some(Fold { tensors: norm.tensors(), gains: norm.gains, linear: None, rows });
                }
                Op::Linears(linears) => {
                    let linear = &linears[maker.makes.iter().position(|&made| made == value)?];
                    let tensors = linear.bias().into_iter().collect();
                    return Some(Fold { tensors, gains: Gains::None, linear: Some(linear.path.clone()), rows });
                }
                Op::Gate(_) => maker.reads[1],
                // A positive factor passes through the maximum with 0.
                Op::Activate(Activation::Relu) | Op::Scale(_) => maker.reads[0],
                Op::Columns(columns) => {
                    rows.iter_mut().for_each(|row| *row = columns.source(*row));
                    maker.reads[0]
                }
                // Attention mixes the rows of a head of v over the tokens and keeps channels apart. Query heads that
                // share a value head would share its channels.
                Op::Attention(attention) if attention.heads == attention.kv_heads => maker.reads[2],
                _ => return None,
            };
        }
    }

    /// The node that makes the columns `columns` of `value`. `None` if the value is an input or an output of the block,
    /// or if any node but `reader` reads one of these columns.
    fn only_maker(&self, value: Value, reader: usize, columns: &[usize]) -> Option<usize> {
        let takes = |node: usize| match &self.nodes[node].op {
            Op::Columns(taken) => columns.iter().any(|column| taken.contains(*column)),
            _ => true,
        };
        let alone = self.readers(value).all(|node| node == reader || !takes(node));
        if alone && !self.outputs.contains(&value) { self.maker(value) } else { None }
    }

    /// Average number of operations per token in the nodes between linear layers, for sequences of `length` tokens. Ops
    /// with less work than the square of the width are left out.
    pub fn work_between_linears(&self, length: usize) -> f64 {
        let work = |(_, attention): (usize, Attention)| {
            let reach = attention.window.unwrap_or(length).min(length) as f64;
            // Two products, each over half of the keys on average.
            4.0 * (attention.heads * attention.head_dim) as f64 * reach / 2.0
        };
        self.attentions().map(work).sum()
    }

    /// Name and shape of every tensor of layer `layer`, in the order of the nodes. The shape of a weight is
    /// `[outputs, inputs]`, also where it is stored transposed.
    pub fn tensors(&self, layer: usize) -> Vec<(String, Vec<usize>)> {
        let mut tensors = Vec::new();
        for Node { op, makes, .. } in &self.nodes {
            match op {
                Op::Linears(linears) => {
                    for linear in linears {
                        let spec = linear.at(layer);
                        tensors.push((spec.weight(), vec![spec.rows, spec.columns]));
                        tensors.extend(linear.bias().map(|bias| (bias.at(layer), vec![linear.rows])));
                    }
                }
                Op::Norm(norm) => {
                    tensors.extend(norm.tensors().into_iter().map(|name| (name.at(layer), vec![norm.width])));
                }
                Op::Position { table, rows, .. } => {
                    tensors.push((table.at(layer), vec![*rows, self.widths[makes[0].0]]));
                }
                Op::Multiply(factors) => {
                    tensors.extend(factors.parts.iter().map(|name| (name.at(layer), factors.shape.clone())));
                }
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
        tensors
    }

    /// This block with other names of its tensors and modules, as of [`Name::renamed`].
    fn renamed(&self, names: &[(&str, &str)]) -> Self {
        let rename = |name: &Name| name.renamed(names);
        let mut block = self.clone();
        for node in &mut block.nodes {
            match &mut node.op {
                Op::Linears(linears) => linears.iter_mut().for_each(|linear| linear.path = rename(&linear.path)),
                Op::Norm(norm) => norm.path = rename(&norm.path),
                Op::Position { table, .. } => *table = rename(table),
                Op::Multiply(factors) => factors.parts.iter_mut().for_each(|part| *part = rename(part)),
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
        block
    }
}

impl ModelConfig {
    /// This model with other names of its tensors and modules. `names`: pairs of an old and a new beginning.
    pub(super) fn renamed(&self, names: &[(&str, &str)]) -> Self {
        let mut known: BTreeMap<*const Block, Arc<Block>> = BTreeMap::new();
        let mut rename = |block: &Arc<Block>| {
            known.entry(Arc::as_ptr(block)).or_insert_with(|| Arc::new(block.renamed(names))).clone()
        };
        let blocks = self.blocks.iter().map(&mut rename).collect();
        let embedding = Name::new(self.embedding.clone()).renamed(names).text().to_owned();
        Self { blocks, head: rename(&self.head), embedding, ..self.clone() }
    }

    /// The linear layers of block `layer`, in the order in which they run.
    pub fn block_linears(&self, layer: usize) -> Vec<LinearSpec> {
        self.blocks[layer].groups().flatten().map(|linear| linear.at(layer)).collect()
    }

    /// The linear layers of all blocks, in model order.
    pub fn linears(&self) -> Vec<LinearSpec> {
        (0..self.blocks.len()).flat_map(|layer| self.block_linears(layer)).collect()
    }

    /// The output matrix as a linear layer. Its input is the normalised last hidden state.
    pub fn head_linear(&self) -> LinearSpec {
        let linear = self.head.groups().flatten().last().expect("a head ends in the output matrix");
        linear.at(0)
    }

    /// Name of the tensor that holds the output matrix: the embedding if the two are tied.
    pub fn output_weight(&self) -> String {
        if self.tie_word_embeddings { self.embedding.clone() } else { self.head_linear().weight() }
    }

    /// Columns of the widest value of any block.
    pub fn widest(&self) -> usize {
        self.distinct_blocks().map(Block::widest).max().unwrap_or(self.hidden_size)
    }

    /// Number of weights in the largest block.
    pub fn largest_block(&self) -> u64 {
        self.distinct_blocks().map(Block::weights).max().unwrap_or(0)
    }

    /// The different blocks, in the order in which they first occur.
    pub fn distinct_blocks(&self) -> impl Iterator<Item = &Block> {
        let mut seen = BTreeSet::new();
        self.blocks.iter().filter(move |block| seen.insert(Arc::as_ptr(block))).map(|block| &**block)
    }

    /// Module paths of the linear layers of all blocks, in model order.
    pub fn linear_names(&self) -> Vec<String> {
        self.linears().into_iter().map(|linear| linear.name).collect()
    }

    /// Name and shape of every tensor of the model, in model order. The shape of a weight is `[outputs, inputs]`, also
    /// where it is stored transposed.
    pub fn expected_tensors(&self) -> Vec<(String, Vec<usize>)> {
        let embedding = (self.embedding.clone(), vec![self.vocab_size, self.hidden_size]);
        let blocks = self.blocks.iter().enumerate().flat_map(|(layer, block)| block.tensors(layer));
        let output = self.head_linear().weight();
        let head = self.head.tensors(0).into_iter();
        let head = head.filter(|(name, _)| !self.tie_word_embeddings || *name != output);
        [embedding].into_iter().chain(blocks).chain(head).collect()
    }

    /// Names of the weights that are stored as `[inputs, outputs]`.
    pub fn transposed_weights(&self) -> BTreeSet<String> {
        let linears = self.linears().into_iter().filter(|linear| linear.layout == Layout::Columns);
        linears.map(|linear| linear.weight()).collect()
    }
}
