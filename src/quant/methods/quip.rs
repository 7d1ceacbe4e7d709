//! QuIP (Chee et al., arXiv 2307.13304): rotates inputs and outputs so that no weight stands out, then rounds with GPTQ's loop.
//!
//! With s = (diag H / diag WᵀW)^¼, W and H become U·W·diag(s)·Vᵀ and V·diag(1/s)·H·diag(1/s)·Vᵀ. U and V are random and orthogonal.
//! All entries then share one grid, ±2.4·rms. LDLQ is the column loop of GPTQ. After a random rotation no order of the columns is
//! better than another, so they are taken as they come. The transforms are undone, and the result lies on no grid.

use futures::future::LocalBoxFuture;

use super::{
    BaseQuantizer, GroupInput, GroupRounder, HessianForm, InputNeeds, Layer, LinearExtent, LinearWork, ScaleSearch,
};
use crate::device::{Recorder, Tensor};
use crate::ops::add::add_bias;
use crate::ops::dequantize::dequantize;
use crate::ops::gram::{self, Packed};
use crate::ops::grid::{Grid, GridSpec, ScaleType, Symmetry};
use crate::ops::reduce::{sum_squares, total};
use crate::ops::scale::scale_columns;
use crate::quant::rotation::{Rotation, require_hadamard, transposed};
use crate::quant::{Curvature, HessianDiagonal, QuantizeOptions, RotationKind, RoundedWeight, column_loop};
use crate::{Error, Result};

/// Half the range of the grid, in root mean squares of the rotated weight.
const RANGE: f64 = 2.4;

/// QuIP.
#[derive(Debug)]
pub(super) struct Quip;

impl BaseQuantizer for Quip {
    fn needs(&self) -> InputNeeds {
        InputNeeds { hessian: Some(HessianForm::Dense), magnitudes: false }
    }

    fn off_grid(&self) -> Option<&'static str> {
        Some("lie on no grid once the rotation is undone")
    }

    fn check_shape(&self, options: &QuantizeOptions, shape: [usize; 2]) -> Result<()> {
        match options.rotation {
            RotationKind::Kronecker => Ok(()),
            RotationKind::Hadamard => shape.into_iter().try_for_each(require_hadamard),
        }
    }

    fn held_elements(&self, n: u64) -> u64 {
        4 * n * n
    }

    fn preparation_work(&self, n: f64) -> f64 {
        // The factor, and its inverse.
        n * n * n
    }

    fn linear_work(&self, _options: &QuantizeOptions, linear: LinearExtent) -> LinearWork {
        LinearWork { rounding: linear.product() * 0.5, search: 0.0 }
    }

    fn prepare<'r, 'a: 'r>(
        &self,
        rec: &'r mut Recorder,
        input: GroupInput<'a>,
        _search: ScaleSearch<'r>,
    ) -> LocalBoxFuture<'r, Result<Box<dyn GroupRounder + 'a>>> {
        Box::pin(async move { Ok(Box::new(QuipRounder::new(rec, input)?) as Box<dyn GroupRounder>) })
    }
}

/// QuIP for the linears of one group.
#[derive(Debug)]
struct QuipRounder<'a> {
    options: &'a QuantizeOptions,
    /// H, dense.
    hessian: Tensor,
    curvature: Curvature<'a>,
}

impl<'a> QuipRounder<'a> {
    fn new(rec: &mut Recorder, input: GroupInput<'a>) -> Result<Self> {
        let curvature = input.curvature.ok_or_else(|| Error::shape("quip", "no Hessian"))?;
        Ok(Self { options: input.options, hessian: gram::unpack(rec, curvature.hessian)?, curvature })
    }

    /// Rounds `weight` and undoes all transforms; `[m, n]` like `weight`. The seed of the options and the name of the layer
    /// determine the transforms.
    async fn round_rotated(&self, rec: &mut Recorder, layer: Layer<'_>, weight: &Tensor) -> Result<Tensor> {
        let [rows, n] = weight.matrix("quip")?;
        let QuantizeOptions { rotation, seed, .. } = *self.options;
        let stream = 2 * fingerprint(layer.name);
        let outputs = Rotation::new(rec, rotation, rows, seed, stream)?;
        let inputs = Rotation::new(rec, rotation, n, seed, stream + 1)?;
        let scale = self.rescaling(rec, weight).await?;
        let shrink = rec.upload(&[n], scale.iter().map(|s| 1.0 / s).collect())?;
        let stretch = rec.upload(&[n], scale)?;
        let mut rotated = rec.duplicate(weight)?;
        scale_columns(rec, &mut rotated, &stretch)?;
        // The outputs are rotated first, which leaves the transpose. Rotating the inputs transposes it back.
        let rotated = outputs.rows_transposed(rec, &rotated)?;
        let rotated = inputs.rows_transposed(rec, &rotated)?;
        let hessian = self.rotated_hessian(rec, &inputs, &shrink)?;
        let rounded = self.on_one_grid(rec, &layer.grid, &hessian, rotated).await?;
        let back = inputs.columns_back(rec, &rounded)?;
        let back = transposed(rec, &back)?;
        let back = outputs.columns_back(rec, &back)?;
        let mut back = transposed(rec, &back)?;
        scale_columns(rec, &mut back, &shrink)?;
        Ok(back)
    }

    /// s = (diag H / diag WᵀW)^¼, and 1 where either is zero.
    async fn rescaling(&self, rec: &mut Recorder, weight: &Tensor) -> Result<Vec<f32>> {
        let mut own = Packed::zeros(rec, weight.shape()[1])?;
        gram::accumulate(rec, weight, &mut own)?;
        let own = gram::diagonal(rec, &own).await?;
        let quotient = |(&h, &w): (&f32, &f32)| f64::from(h) / f64::from(w);
        let scale = self.curvature.diagonal.values().iter().zip(&own).map(quotient);
        Ok(scale.map(|q| if q > 0.0 && q.is_finite() { q.sqrt().sqrt() as f32 } else { 1.0 }).collect())
    }

    /// V·diag(1/s)·H·diag(1/s)·Vᵀ.
    fn rotated_hessian(&self, rec: &mut Recorder, inputs: &Rotation, shrink: &Tensor) -> Result<Packed> {
        let mut hessian = rec.duplicate(&self.hessian)?;
        scale_columns(rec, &mut hessian, shrink)?;
        let half = inputs.columns(rec, hessian)?;
        let mut half = transposed(rec, &half)?;
        scale_columns(rec, &mut half, shrink)?;
        let whole = inputs.columns(rec, half)?;
        gram::pack(rec, &whole)
    }

    /// LDLQ on the grid ±2.4·rms: 2^b levels, none of them at zero. Returns the rounded weight.
    async fn on_one_grid(
        &self,
        rec: &mut Recorder,
        spec: &GridSpec,
        hessian: &Packed,
        mut weight: Tensor,
    ) -> Result<Tensor> {
        let [rows, n] = weight.matrix("quip")?;
        let squares = sum_squares(rec, &weight)?;
        let rms = (total(rec, &squares).await? / weight.len().max(1) as f64).sqrt();
        let step = if rms > 0.0 { 2.0 * RANGE * rms / f64::from((1u32 << spec.bits) - 1) } else { 1.0 } as f32;
        // The zero points of the loop are whole numbers. Shifting the weight by half a step makes them so.
        let shift = |rec: &mut Recorder, sign: f32| rec.upload(&[n], vec![sign * step / 2.0; n]);
        let down = shift(rec, -1.0)?;
        add_bias(rec, &mut weight, &down)?;
        let grid = Grid {
            scales: rec.upload(&[rows, 1], vec![step; rows])?,
            zeros: rec.upload(&[rows, 1], vec![(1u32 << (spec.bits - 1)) as f32; rows])?,
            units: None,
        };
        let spec = &GridSpec::new(spec.bits, n, Symmetry::Symmetric, ScaleType::F32);
        let place = self.curvature.place;
        let diagonal = HessianDiagonal::of(rec, hessian, place).await?;
        let rotated = Curvature { hessian, diagonal: &diagonal, place };
        let natural = (0..n as u32).collect();
        let factor = rotated.factor(rec, natural, self.options.rounding_damping, "rotated Hessian").await?;
        let codes = column_loop::round_to_grid(rec, &weight, &factor, spec, &grid)?;
        let mut rounded = dequantize(rec, &codes, &grid, spec)?;
        let up = shift(rec, 1.0)?;
        add_bias(rec, &mut rounded, &up)?;
        Ok(rounded)
    }
}

impl GroupRounder for QuipRounder<'_> {
    fn round<'r>(
        &'r self,
        rec: &'r mut Recorder,
        layer: Layer<'r>,
        weight: &'r Tensor,
    ) -> LocalBoxFuture<'r, Result<RoundedWeight>> {
        Box::pin(async move {
            let dequantized = self.round_rotated(rec, layer, weight).await?;
            Ok(RoundedWeight { codes: None, dequantized })
        })
    }

    /// ρ_r of the options. Each linear has a rotated H of its own, and may be damped more.
    fn damping(&self) -> Option<f64> {
        Some(self.options.rounding_damping)
    }
}

/// A number for a module path (FNV-1a), without its highest bit.
fn fingerprint(module: &str) -> u64 {
    module.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
        >> 1
}
