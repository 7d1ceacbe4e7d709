//! QuIP (Chee et al., arXiv 2307.13304): round where the weight has no outliers, with the feedback that GPTQ has, too.
//!
//! With s = (diag H / diag WᵀW)^¼, W and H become U·W·diag(s)·Vᵀ and V·diag(1/s)·H·diag(1/s)·Vᵀ, U and V random and
//! orthogonal. All entries then share one grid, ±2.4·rms. LDLQ is the column loop of GPTQ; a random rotation leaves no
//! order of columns to prefer, so they are taken as they come. The transforms are undone, and the result lies on no grid.

use super::gptq;
use super::rotation::{Rotation, transposed};
use super::rounding::{Curvature, factor_damped};
use super::{Damping, QuantizeOptions};
use crate::device::Recorder;
use crate::ops::add::add_bias;
use crate::ops::dequantize::dequantize;
use crate::ops::gram::{self, Packed};
use crate::ops::grid::{Grid, GridSpec};
use crate::ops::reduce::{sum_squares, total};
use crate::ops::scale::scale_columns;
use crate::tensor::Tensor;
use crate::{Error, Result};

/// Half the range of the grid, in root mean squares of the rotated weight.
const RANGE: f64 = 2.4;

/// H of a group, as QuIP needs it for each of its linears.
#[derive(Debug)]
pub(super) struct Plan {
    /// H, dense.
    hessian: Tensor,
    diagonal: Damping,
    damping: f64,
    place: String,
}

impl Plan {
    pub fn new(rec: &mut Recorder, options: &QuantizeOptions, curvature: Curvature<'_>) -> Result<Self> {
        Ok(Self {
            hessian: gram::unpack(rec, curvature.hessian)?,
            diagonal: curvature.diagonal.clone(),
            damping: options.rounding_damping,
            place: curvature.place.to_string(),
        })
    }

    /// The rounded weight, `[m, n]` like `weight`, all transforms undone. `module` seeds them, beside the options' seed.
    pub async fn round(
        &self,
        rec: &mut Recorder,
        options: &QuantizeOptions,
        spec: &GridSpec,
        module: &str,
        weight: &Tensor,
    ) -> Result<Tensor> {
        let [rows, n] = weight.matrix("quip")?;
        let stream = 2 * fingerprint(module);
        let outputs = Rotation::new(rec, options.rotation, rows, options.seed, stream)?;
        let inputs = Rotation::new(rec, options.rotation, n, options.seed, stream + 1)?;
        let scale = self.rescaling(rec, weight).await?;
        let shrink = rec.upload(&[n], scale.iter().map(|s| 1.0 / s).collect())?;
        let stretch = rec.upload(&[n], scale)?;
        // Wᵀ with its outputs rotated, turned back, then its inputs.
        let mut rotated = rec.duplicate(weight)?;
        scale_columns(rec, &mut rotated, &stretch)?;
        let rotated = outputs.rows_transposed(rec, &rotated)?;
        let rotated = inputs.rows_transposed(rec, &rotated)?;
        let hessian = self.rotated_hessian(rec, &inputs, &shrink)?;
        let rounded = self.on_one_grid(rec, spec, &hessian, rotated).await?;
        let back = inputs.columns_back(rec, &rounded)?;
        let back = transposed(rec, &back)?;
        let back = outputs.columns_back(rec, &back)?;
        let mut back = transposed(rec, &back)?;
        scale_columns(rec, &mut back, &shrink)?;
        Ok(back)
    }

    /// s = (diag H / diag WᵀW)^¼; 1 where either is zero.
    async fn rescaling(&self, rec: &mut Recorder, weight: &Tensor) -> Result<Vec<f32>> {
        let mut own = Packed::zeros(rec, weight.shape()[1])?;
        gram::accumulate(rec, weight, &mut own)?;
        let own = gram::diagonal(rec, &own).await?;
        let quotient = |(&h, &w): (&f32, &f32)| f64::from(h) / f64::from(w);
        let scale = self.diagonal.values().iter().zip(&own).map(quotient);
        Ok(scale.map(|q| if q > 0.0 && q.is_finite() { q.sqrt().sqrt() as f32 } else { 1.0 }).collect())
    }

    /// V·diag(1/s)·H·diag(1/s)·Vᵀ, and its damping.
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
        // The loop's zero points are whole; half a step less on both sides makes them so.
        let shift = |rec: &mut Recorder, sign: f32| rec.upload(&[n], vec![sign * step / 2.0; n]);
        let down = shift(rec, -1.0)?;
        add_bias(rec, &mut weight, &down)?;
        let grid = Grid {
            scales: rec.upload(&[rows, 1], vec![step; rows])?,
            zeros: rec.upload(&[rows, 1], vec![(1u32 << (spec.bits - 1)) as f32; rows])?,
        };
        let diagonal = Damping::of(rec, hessian, &self.place).await?;
        let order: Vec<u32> = (0..n as u32).collect();
        let factored = factor_damped(rec, hessian, &order, &diagonal, self.damping).await?;
        let (factor, _) = factored.ok_or_else(|| Error::NotFinite {
            place: format!("{}: the Cholesky factor of the rotated Hessian", self.place),
            remedy: "check the calibration text and the weights".into(),
        })?;
        let codes = gptq::quantize_on(rec, &weight, (&factor, &order), spec, &grid)?;
        let mut rounded = dequantize(rec, &codes, &grid, n)?;
        let up = shift(rec, 1.0)?;
        add_bias(rec, &mut rounded, &up)?;
        Ok(rounded)
    }

    /// ρ_r as asked for.
    pub fn damping(&self) -> f64 {
        self.damping
    }
}

/// A number for a module path (FNV-1a), less its highest bit.
fn fingerprint(module: &str) -> u64 {
    module.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
        >> 1
}
