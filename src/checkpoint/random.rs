//! Checkpoints with random weights, of any shape and without files. The weights are computed when they are read. Speed
//! and memory can thus be measured on models that nobody has downloaded.

use std::borrow::Cow;
use std::ops::Range;

use futures::future::LocalBoxFuture;
use half::bf16;
use rayon::prelude::*;
use serde_json::{Map, Value, json};

use super::{Checkpoint, MemorySource, Source};
use crate::Result;
use crate::family::ModelConfig;

/// Opens a model with random weights. `config` is the content of a config.json and decides the shape; `name` is the
/// name of the model in messages.
///
/// All weights are bf16. Matrices are approximately normal with a standard deviation of 0.02, norm gains are 1, and
/// biases are 0. Each number depends only on `seed` and on its position.
///
/// Errors: those of [`ModelConfig::from_value`] and [`Checkpoint::from_sources`].
pub async fn random(name: &str, config: &Value, seed: u64) -> Result<Checkpoint> {
    let parsed = ModelConfig::from_value(config, &format!("{name}/config.json"))?;
    let weights = RandomWeights::new(&parsed, seed);
    let config = MemorySource::new("config.json", config.to_string().into_bytes());
    Checkpoint::from_sources(name, vec![Box::new(config), Box::new(weights)]).await
}

/// A safetensors file whose elements are computed when they are read.
struct RandomWeights {
    /// The first bytes of the file: the header length and the header.
    beginning: Vec<u8>,
    /// For each tensor, the index of its first element in the file, and its content.
    tensors: Vec<(u64, Content)>,
    elements: u64,
    seed: u64,
}

/// Elements that one thread computes at a time.
const PIECE: u64 = 1 << 16;

#[derive(Debug, Clone, Copy)]
enum Content {
    Normal,
    Constant(f32),
}

impl RandomWeights {
    fn new(config: &ModelConfig, seed: u64) -> Self {
        let mut header = Map::new();
        let (mut tensors, mut elements) = (Vec::new(), 0);
        let transposed = config.transposed_weights();
        for (name, mut shape) in config.expected_tensors() {
            if transposed.contains(&name) {
                shape.reverse();
            }
            let content = match shape.len() {
                1 if name.ends_with(".bias") => Content::Constant(0.0),
                1 => Content::Constant(1.0),
                _ => Content::Normal,
            };
            tensors.push((elements, content));
            let first = elements;
            elements += shape.iter().map(|&extent| extent as u64).product::<u64>();
            header.insert(name, json!({ "dtype": "BF16", "shape": shape, "data_offsets": [2 * first, 2 * elements] }));
        }
        let header = Value::Object(header).to_string();
        let mut beginning = (header.len() as u64).to_le_bytes().to_vec();
        beginning.extend(header.into_bytes());
        Self { beginning, tensors, elements, seed }
    }

    /// The elements of the index range `range`, as little-endian bytes.
    fn elements(&self, range: Range<u64>) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(2 * (range.end - range.start) as usize);
        let mut index = range.start;
        while index < range.end {
            let next = self.tensors.partition_point(|(first, _)| *first <= index);
            let end = self.tensors.get(next).map_or(self.elements, |(first, _)| *first).min(range.end);
            match self.tensors[next - 1].1 {
                Content::Normal => bytes.extend((index..end).flat_map(|index| normal(self.seed, index).to_le_bytes())),
                Content::Constant(value) => {
                    bytes.extend((index..end).flat_map(|_| bf16::from_f32(value).to_le_bytes()));
                }
            }
            index = end;
        }
        bytes
    }

    /// The bytes of the file in `range`, header included.
    fn bytes(&self, range: Range<u64>) -> Vec<u8> {
        let header = self.beginning.len() as u64;
        let begun = range.start.min(header) as usize..range.end.min(header) as usize;
        let rest = range.start.max(header) - header..range.end.max(header) - header;
        let (first, last) = (rest.start / 2, rest.end.div_ceil(2));
        let pieces = (0..(last - first).div_ceil(PIECE)).into_par_iter().map(|piece| {
            let start = first + piece * PIECE;
            self.elements(start..last.min(start + PIECE))
        });
        let numbers = pieces.collect::<Vec<_>>().concat();
        let skipped = (rest.start % 2) as usize;
        let wanted = (rest.end - rest.start) as usize;
        [&self.beginning[begun], &numbers[skipped..skipped + wanted]].concat()
    }
}

impl Source for RandomWeights {
    fn name(&self) -> &str {
        "model.safetensors"
    }

    fn len(&self) -> u64 {
        self.beginning.len() as u64 + 2 * self.elements
    }

    fn read(&self, range: Range<u64>) -> LocalBoxFuture<'_, Result<Cow<'_, [u8]>>> {
        let bytes = self.bytes(range);
        Box::pin(async move { Ok(Cow::Owned(bytes)) })
    }
}

/// A bf16 number, approximately normal with a standard deviation of 0.02: the sum of the four 16-bit parts of a hash
/// (splitmix64) of seed and index.
fn normal(seed: u64, index: u64) -> bf16 {
    let mut hash = (seed ^ index.wrapping_mul(0x9e37_79b9_7f4a_7c15)).wrapping_add(0x9e37_79b9_7f4a_7c15);
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^= hash >> 31;
    let sum: u32 = (0..4).map(|part| (hash >> (16 * part)) as u32 & 0xffff).sum();
    // The sum has a mean of 131070 and a standard deviation of 65536·√(4/12).
    bf16::from_f32((sum as f32 - 131_070.0) * (0.02 / 37_837.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::executor::block_on;

    #[test]
    fn any_range_holds_what_the_whole_file_holds() {
        let config = json!({
            "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1,
            "num_attention_heads": 2, "vocab_size": 3000, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
            "attention_bias": true, "tie_word_embeddings": false
        });
        let weights = RandomWeights::new(&ModelConfig::from_value(&config, "config.json").unwrap(), 7);
        let all = weights.bytes(0..weights.len());
        assert_eq!(all.len() as u64, weights.len());
        let header = weights.beginning.len() as u64;
        for range in [0..1, 3..header + 5, header - 1..header + 1, header + 7..header + 8, 200_001..500_002] {
            assert_eq!(weights.bytes(range.clone()), all[range.start as usize..range.end as usize], "{range:?}");
        }
        let model = block_on(random("test", &config, 7)).unwrap();
        let values = block_on(model.read("lm_head.weight")).unwrap();
        let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / values.len() as f64;
        let deviation = (values.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / values.len() as f64).sqrt();
        assert!(mean.abs() < 2e-4 && (deviation / 0.02 - 1.0).abs() < 0.01, "mean {mean}, deviation {deviation}");
        assert!(block_on(model.read("model.norm.weight")).unwrap().iter().all(|&v| v == 1.0));
        assert!(block_on(model.read("model.layers.0.self_attn.q_proj.bias")).unwrap().iter().all(|&v| v == 0.0));
        let other = block_on(random("test", &config, 8)).unwrap();
        assert_ne!(block_on(other.read("lm_head.weight")).unwrap(), values);
    }
}
