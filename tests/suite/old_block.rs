//! The block as it was written by hand for LLaMA's families, beside the line of nodes that replaces it: the same bits, in one process.
//! Goes when the old block has gone.

use std::path::Path;

use aquatint::device::{Device, Recorder};
use aquatint::engine::block::Context;
use aquatint::engine::network::Network;
use aquatint::family::Attention;
use aquatint::ops::Positions;
use aquatint::ops::add::{add_assign, add_bias};
use aquatint::ops::attention::{Heads, attention};
use aquatint::ops::matmul::{Orientation, matmul};
use aquatint::ops::rms_norm::rms_norm;
use aquatint::ops::rope::rope;
use aquatint::ops::silu_mul::silu_mul;
use aquatint::tensor::Tensor;
use aquatint::{Checkpoint, Result};
use pollster::block_on;

use crate::common::{device_tests, random, read, recorder};

struct Old {
    weights: Vec<Tensor>,
    biases: Vec<Option<Tensor>>,
    attention_norm: Tensor,
    mlp_norm: Tensor,
    head_norms: Option<[Tensor; 2]>,
    heads: Heads,
    epsilon: f32,
    cache: Option<[Tensor; 2]>,
}

const LINEARS: [&str; 7] = [
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
];

impl Old {
    fn load(rec: &mut Recorder, model: &Checkpoint, layer: usize) -> Self {
        let names: Vec<String> = model.config().expected_tensors().into_iter().map(|(name, _)| name).collect();
        let mut load = |inside: &str| {
            let name = format!("model.layers.{layer}.{inside}");
            names.contains(&name).then(|| block_on(model.load(rec, &name)).unwrap())
        };
        let weights = LINEARS.iter().map(|path| load(&format!("{path}.weight")).unwrap()).collect();
        let biases = LINEARS.iter().map(|path| load(&format!("{path}.bias"))).collect();
        let head_norms = load("self_attn.q_norm.weight").zip(load("self_attn.k_norm.weight"));
        let line = &model.config().blocks[layer];
        let Attention { heads, kv_heads, head_dim, window } = line.attentions().next().unwrap().1;
        Self {
            weights,
            biases,
            attention_norm: load("input_layernorm.weight").unwrap(),
            mlp_norm: load("post_attention_layernorm.weight").unwrap(),
            head_norms: head_norms.map(|(q, k)| [q, k]),
            heads: Heads { heads, kv_heads, head_dim, window },
            epsilon: model.raw_config()["rms_norm_eps"].as_f64().unwrap() as f32,
            cache: None,
        }
    }

    fn project(&self, rec: &mut Recorder, linears: std::ops::Range<usize>, input: &Tensor) -> Result<Vec<Tensor>> {
        let mut outputs = Vec::new();
        for linear in linears {
            let mut output = matmul(rec, Orientation::Nt, input, &self.weights[linear])?;
            if let Some(bias) = &self.biases[linear] {
                add_bias(rec, &mut output, bias)?;
            }
            outputs.push(output);
        }
        Ok(outputs)
    }

    fn rotate(
        &self,
        rec: &mut Recorder,
        x: Tensor,
        which: usize,
        table: &Tensor,
        positions: Positions,
    ) -> Result<Tensor> {
        let (shape, head_dim) = (x.shape().to_vec(), self.heads.head_dim);
        let mut x = match &self.head_norms {
            Some(norms) => {
                let rows = [x.len() / head_dim, head_dim];
                rms_norm(rec, &x.reshape(&rows)?, &norms[which], self.epsilon)?.reshape(&shape)?
            }
            None => x,
        };
        rope(rec, &mut x, table, head_dim, positions)?;
        Ok(x)
    }

    fn forward(
        &mut self,
        rec: &mut Recorder,
        table: &Tensor,
        positions: Positions,
        mut hidden: Tensor,
    ) -> Result<Tensor> {
        let input = rms_norm(rec, &hidden, &self.attention_norm, self.epsilon)?;
        let [q, k, v] = <[Tensor; 3]>::try_from(self.project(rec, 0..3, &input)?).unwrap();
        let q = self.rotate(rec, q, 0, table, positions)?;
        let k = self.rotate(rec, k, 1, table, positions)?;
        let input = match &mut self.cache {
            None => attention(rec, &q, &k, &v, self.heads, positions)?,
            Some([keys, values]) => {
                rec.write_rows(&k, keys, positions.first)?;
                rec.write_rows(&v, values, positions.first)?;
                attention(rec, &q, keys, values, self.heads, positions)?
            }
        };
        let output = self.project(rec, 3..4, &input)?;
        add_assign(rec, &mut hidden, &output[0])?;
        let input = rms_norm(rec, &hidden, &self.mlp_norm, self.epsilon)?;
        let outputs = self.project(rec, 4..6, &input)?;
        let input = silu_mul(rec, &outputs[0], &outputs[1])?;
        let output = self.project(rec, 6..7, &input)?;
        add_assign(rec, &mut hidden, &output[0])?;
        Ok(hidden)
    }
}

device_tests!(old_and_new_block_agree_to_the_bit: cpu, software_gpu);
fn old_and_new_block_agree_to_the_bit(device: Device) {
    const LENGTH: usize = 21;
    for family in ["llama", "llama-scaled", "llama-linear", "mistral", "qwen2", "qwen3"] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/families").join(family);
        let model = block_on(Checkpoint::open(&folder)).unwrap();
        let mut rec = recorder(&device);
        let network = Network::new(&mut rec, &model, None, LENGTH).unwrap();
        let width = model.config().hidden_size;
        for layer in 0..model.config().blocks.len() {
            let block = block_on(network.block(&mut rec, layer)).unwrap();
            let weights = block_on(network.all_weights(&mut rec, layer)).unwrap();
            let mut old = Old::load(&mut rec, &model, layer);
            let values = random(layer as u64, 2 * LENGTH * width);
            let [a, b] = [(); 2].map(|()| rec.upload(&[2 * LENGTH, width], values.clone()).unwrap());
            let table = &network.ropes()[0];
            let expected = old.forward(&mut rec, table, network.positions(), a).unwrap();
            let found = block.forward(&mut rec, &weights, &mut network.context_of(LENGTH), b).unwrap();
            let (expected, found) = (read(&mut rec, &expected), read(&mut rec, &found));
            assert!(expected.iter().any(|v| *v != 0.0));
            assert!(expected.iter().map(|v| v.to_bits()).eq(found.iter().map(|v| v.to_bits())), "{family}");
            // The same in two pieces, with what the first has left.
            let keys = [LENGTH, old.heads.kv_heads * old.heads.head_dim];
            old.cache = Some([rec.zeros(&keys).unwrap(), rec.zeros(&keys).unwrap()]);
            let mut state = block.state(&mut rec, LENGTH).unwrap();
            for (first, count) in [(0, 13), (13, 8)] {
                let positions = Positions { first, seq_len: count };
                let piece = values[first * width..][..count * width].to_vec();
                let [a, b] = [(); 2].map(|()| rec.upload(&[count, width], piece.clone()).unwrap());
                let expected = old.forward(&mut rec, table, positions, a).unwrap();
                let mut context = Context { ropes: network.ropes(), positions, state: Some(&mut state) };
                let found = block.forward(&mut rec, &weights, &mut context, b).unwrap();
                let (expected, found) = (read(&mut rec, &expected), read(&mut rec, &found));
                assert!(
                    expected.iter().map(|v| v.to_bits()).eq(found.iter().map(|v| v.to_bits())),
                    "{family}, {first}"
                );
            }
        }
    }
}
