//! The tensors that a configuration implies, under their Hugging Face names.

use crate::family::ModelConfig;

/// One linear layer of a decoder block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinearSpec {
    /// Module path without `.weight`, such as `model.layers.0.self_attn.q_proj`.
    pub name: String,
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub columns: usize,
    /// Whether a `.bias` of `rows` numbers goes with it.
    pub bias: bool,
}

impl ModelConfig {
    /// The linear layers of block `layer`: q, k, v, o, gate, up, down.
    pub fn block_linears(&self, layer: usize) -> Vec<LinearSpec> {
        let (hidden, inner) = (self.hidden_size, self.intermediate_size);
        let queries = self.num_attention_heads * self.head_dim;
        let keys = self.num_key_value_heads * self.head_dim;
        let linear = |path: &str, rows, columns, bias| {
            let name = format!("model.layers.{layer}.{path}");
            LinearSpec { name, rows, columns, bias }
        };
        vec![
            linear("self_attn.q_proj", queries, hidden, self.qkv_bias),
            linear("self_attn.k_proj", keys, hidden, self.qkv_bias),
            linear("self_attn.v_proj", keys, hidden, self.qkv_bias),
            linear("self_attn.o_proj", hidden, queries, self.o_bias),
            linear("mlp.gate_proj", inner, hidden, self.mlp_bias),
            linear("mlp.up_proj", inner, hidden, self.mlp_bias),
            linear("mlp.down_proj", hidden, inner, self.mlp_bias),
        ]
    }

    /// The output matrix as a linear layer: it reads the normalised last hidden state.
    pub fn head_linear(&self) -> LinearSpec {
        LinearSpec { name: "lm_head".to_owned(), rows: self.vocab_size, columns: self.hidden_size, bias: false }
    }

    /// Name of the tensor that holds the output matrix.
    pub fn output_weight(&self) -> &'static str {
        if self.tie_word_embeddings { "model.embed_tokens.weight" } else { "lm_head.weight" }
    }

    /// The linear layers of all blocks, in model order.
    pub fn linears(&self) -> Vec<LinearSpec> {
        (0..self.num_hidden_layers).flat_map(|layer| self.block_linears(layer)).collect()
    }

    /// Module paths of the linear layers of all blocks, in model order.
    pub fn linear_names(&self) -> Vec<String> {
        self.linears().into_iter().map(|linear| linear.name).collect()
    }

    /// Name and shape of every tensor of the model, in model order. A weight is `[outputs, inputs]`.
    pub fn expected_tensors(&self) -> Vec<(String, Vec<usize>)> {
        let hidden = self.hidden_size;
        let mut tensors = vec![("model.embed_tokens.weight".to_owned(), vec![self.vocab_size, hidden])];
        for layer in 0..self.num_hidden_layers {
            self.push_block(layer, &mut tensors);
        }
        tensors.push(("model.norm.weight".to_owned(), vec![hidden]));
        if !self.tie_word_embeddings {
            tensors.push(("lm_head.weight".to_owned(), vec![self.vocab_size, hidden]));
        }
        tensors
    }

    fn push_block(&self, layer: usize, tensors: &mut Vec<(String, Vec<usize>)>) {
        let norm = |name: &str, width| (format!("model.layers.{layer}.{name}.weight"), vec![width]);
        let linears = self.block_linears(layer);
        let (attention, mlp) = linears.split_at(4);
        tensors.push(norm("input_layernorm", self.hidden_size));
        attention.iter().for_each(|linear| linear.push_tensors(tensors));
        if self.qk_norm {
            tensors.push(norm("self_attn.q_norm", self.head_dim));
            tensors.push(norm("self_attn.k_norm", self.head_dim));
        }
        tensors.push(norm("post_attention_layernorm", self.hidden_size));
        mlp.iter().for_each(|linear| linear.push_tensors(tensors));
    }
}

impl LinearSpec {
    fn push_tensors(&self, tensors: &mut Vec<(String, Vec<usize>)>) {
        tensors.push((format!("{}.weight", self.name), vec![self.rows, self.columns]));
        if self.bias {
            tensors.push((format!("{}.bias", self.name), vec![self.rows]));
        }
    }
}
