//! The checks of a checkpoint when it is opened: every tensor of the model is there, with the right type and shape, and every
//! other tensor has a known purpose.

use std::collections::BTreeSet;

use super::super::passengers::{self, Unused};
use super::super::shards::Tensor;
use super::{Checkpoint, Packed, is_float};
use crate::{Error, Result};

impl Checkpoint {
    /// Checks that every tensor of the model is present, with the right type and shape.
    pub(super) fn check_tensors(&self) -> Result<()> {
        for (name, shape) in self.config.expected_tensors() {
            match self.packed(&name) {
                Some(packed) => self.check_packed(&packed)?,
                None => {
                    let shape = if self.is_transposed(&name) { shape.into_iter().rev().collect() } else { shape };
                    self.check_tensor(&name, &shape)?;
                }
            }
        }
        Ok(())
    }

    /// Compares some rows of `output`, an output matrix that config.json ties to the embedding, with those of the
    /// embedding.
    ///
    /// Errors: `Error::Input` if they differ. A client may then compute with either of them.
    async fn check_tied(&self, output: &str) -> Result<()> {
        let embedding = &self.config.embedding;
        let rows = self.config.vocab_size;
        let mut same = self.shape(output)? == self.shape(embedding)?;
        for row in [0, rows / 3, rows * 2 / 3, rows - 1] {
            let range = row..row + 1;
            same = same && self.read_rows(output, range.clone()).await? == self.read_rows(embedding, range).await?;
        }
        if same {
            return Ok(());
        }
        Err(Error::input(
            &self.files.place,
            format!("tensor {output} with other numbers than {embedding}"),
            "the same numbers, as tie_word_embeddings in config.json says",
            "set tie_word_embeddings to false in config.json if the model has an output matrix of its own",
        ))
    }

    /// Finds the stored tensors that the model does not use. The output matrix of a model that ties it to the embedding
    /// has no meaning in a copy, nor have the scales of inputs that belong to packed weights, nor the biases of zeros that
    /// some older quantizers add.
    ///
    /// Errors: `Error::Input` naming a tensor that has no known purpose.
    pub(super) async fn find_unused(&self) -> Result<Unused> {
        let (names, known) = (self.tensors.keys().map(String::as_str), |name: &&str| self.shapes.contains_key(*name));
        let mut rest: BTreeSet<&str> = names.filter(|name| !known(name)).collect();
        let passengers: Vec<&str> = rest.iter().copied().filter(|name| passengers::part_of(name).is_some()).collect();
        let mut unused = Unused::default();
        for name in self.shapes.keys().map(String::as_str).chain(passengers) {
            let Some(packed) = self.packed(name) else { continue };
            // Passengers are not checked anywhere else.
            self.check_packed(&packed)?;
            packed.parts.iter().filter(|part| part.name != name).for_each(|part| {
                rest.remove(part.name.as_str());
            });
            let scales = packed.packing.layers.input_scales(name).into_iter();
            unused.left_out.extend(scales.filter(|scale| rest.remove(scale.as_str())).map(|s| (s, "input scales")));
        }
        let tied = self.config.tie_word_embeddings.then(|| self.config.head_linear().weight());
        let mut unknown = Vec::new();
        for name in rest {
            if tied.as_deref() == Some(name) {
                self.check_tied(name).await?;
                unused.left_out.insert(name.to_owned(), "tied output matrix");
            } else if let Some(part) = passengers::part_of(name) {
                unused.copied.insert(name.to_owned(), part);
            } else if self.is_zero_bias(name).await? {
                unused.left_out.insert(name.to_owned(), "biases of zeros");
            } else {
                unknown.push(name);
            }
        }
        match unknown[..] {
            [] => Ok(unused),
            [first, ref others @ ..] => Err(self.unknown(first, others.len())),
        }
    }

    /// Whether the stored tensor `name` is a bias, and all its numbers are zeros.
    async fn is_zero_bias(&self, name: &str) -> Result<bool> {
        let is_bias = name.ends_with(".bias") && is_float(self.tensor(name)?.dtype);
        Ok(is_bias && self.read_floats(&self.floats(name)?).await?.iter().all(|&value| value == 0.0))
    }

    /// The error for the tensor `name`, and for `others` more, that have no known purpose.
    fn unknown(&self, name: &str, others: usize) -> Error {
        let more = if others == 0 { String::new() } else { format!(" and {others} more") };
        Error::input(
            &self.files.place,
            format!("tensor {name}{more}, for which the model has no use"),
            "the tensors that config.json describes, and those of vision, audio and MTP parts",
            "use the config.json that belongs to these weights; if it does, this kind of model is not supported",
        )
    }

    /// The tensor `name`. Errors: `Error::Input` if it is missing, has another shape, or is not of a float type.
    fn check_tensor(&self, name: &str, shape: &[usize]) -> Result<&Tensor> {
        let tensor = self.tensor(name)?;
        self.check_shape(name, tensor, shape)?;
        self.encoding(name, tensor).map(|_| tensor)
    }

    fn check_shape(&self, name: &str, tensor: &Tensor, shape: &[usize]) -> Result<()> {
        // One number may be stored with any number of dimensions.
        let single = shape.is_empty() && tensor.shape.iter().all(|&extent| extent == 1);
        if tensor.shape == shape || single {
            return Ok(());
        }
        Err(Error::input(
            self.files.label_at(tensor.file),
            format!("tensor {name} of shape {:?}", tensor.shape),
            format!("{shape:?}, as config.json says"),
            "use the config.json that belongs to these weights",
        ))
    }

    /// Checks the tensors of a packed weight.
    fn check_packed(&self, packed: &Packed<'_>) -> Result<()> {
        for part in &packed.parts {
            if is_float(part.dtype) {
                self.check_tensor(&part.name, &part.shape)?;
                continue;
            }
            let tensor = self.tensor(&part.name)?;
            self.check_shape(&part.name, tensor, &part.shape)?;
            if tensor.dtype != part.dtype {
                let found = format!("tensor {} of type {}", part.name, tensor.dtype);
                let remedy = format!("use a checkpoint in the usual {} layout", packed.packing.layout.name);
                return Err(Error::input(self.files.label_at(tensor.file), found, part.dtype.to_string(), remedy));
            }
        }
        Ok(())
    }
}
