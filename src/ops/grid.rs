//! The choice of scales and zero points, per row or per group of consecutive columns of a row. RTN, GPTQ and AWQ use it. QuIP
//! sets its grid itself. The shader is `grid`.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::device::{Dispatch, Recorder, Tensor};
use crate::ops::{bounded, spread};
use crate::{Error, Result};

/// Whether the grid is symmetric around zero or has a zero point that fits the weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Symmetry {
    /// The range is ±max|w|, and the zero point is 2^(b−1).
    Symmetric,
    /// The range is [min, max], extended to include 0.
    Asymmetric,
}

/// The search for the range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Search {
    /// No search: the range given by the extremes of the weights.
    MinMax,
    /// The one of 80 shrunken ranges with the least `Σ|w − ŵ|^2.4`.
    Mse,
    /// The one of 80 shrunken ranges with the least `Σ weight_j·(w − ŵ)²`, where column j has weight_j.
    #[serde(rename = "hessian")]
    Weighted,
}

/// The type in which the checkpoint stores the scales. A scale is rounded to this type before the zero point and the codes are
/// computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScaleType {
    /// f32: the scales are not rounded.
    F32,
    /// f16: the scales are rounded, and stay between the smallest positive f16 and the largest finite f16.
    F16,
}

/// The kind of grid that is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GridSpec {
    /// Bits per code, 1 to 8.
    pub bits: u32,
    /// Group size: the number of columns per group, of which the last group may have fewer. It is n for one group per row.
    pub group_size: usize,
    /// Symmetric or asymmetric grid.
    pub symmetry: Symmetry,
    /// The search for the range.
    pub search: Search,
    /// Type of the stored scales.
    pub scale_type: ScaleType,
}

/// The grids of a weight, one per row and group: `w ≈ s·(q − z)`.
#[derive(Debug)]
pub struct Grid {
    /// The scales s, `[m, groups]`, positive.
    pub scales: Tensor,
    /// The zero points z, `[m, groups]`, integers in [0, 2^b − 1].
    pub zeros: Tensor,
}

/// Number of shrink factors that a search compares: 1.00, 0.99, … 0.21.
const FACTORS: usize = 80;
/// The whole range, in percent.
const WHOLE: usize = 100;

/// Chooses the grid of every group of `w`.
///
/// For the range [lo, hi], `s = (hi − lo) / (2^b − 1)` and `z = round(−lo / s)`. A group of zeros gets the range [−1, 1].
/// `w`: `[m, n]`; `weights`: `[n, 1]`, not negative, for [`Search::Weighted`] only.
///
/// Errors: `Error::Shape` if the group size is 0, if the bits are not 1 to 8, or if `weights` is missing for
/// [`Search::Weighted`] or given for another search.
pub fn search(rec: &mut Recorder, w: &Tensor, weights: Option<&Tensor>, spec: &GridSpec) -> Result<Grid> {
    find(rec, w, weights, spec, WHOLE)
}

/// Returns the grid of every group of `w` with the range [min, max] or ±max|w| shrunk to `percent` percent, 1 to 100. AWQ uses
/// it to compare clipping ranges.
///
/// Ignores `spec.search`. All else is as for [`search`].
pub fn shrunk(rec: &mut Recorder, w: &Tensor, spec: &GridSpec, percent: usize) -> Result<Grid> {
    if !(1..=WHOLE).contains(&percent) {
        return Err(Error::shape("grid", format!("a range shrunk to {percent} %")));
    }
    find(rec, w, None, &GridSpec { search: Search::MinMax, ..*spec }, percent)
}

/// Chooses the best candidate, starting with `percent` percent of the range.
fn find(rec: &mut Recorder, w: &Tensor, weights: Option<&Tensor>, spec: &GridSpec, percent: usize) -> Result<Grid> {
    let [m, n] = w.matrix("grid")?;
    let weighted = spec.search == Search::Weighted;
    if spec.group_size == 0 || !(1..=8).contains(&spec.bits) || weighted != weights.is_some() {
        return Err(Error::shape("grid", format!("{spec:?} with weights {weights:?}")));
    }
    if let Some(weights) = weights {
        weights.expect_shape("grid", &[n, 1])?;
    }
    let groups = n.div_ceil(spec.group_size);
    let mut grid = Grid { scales: rec.empty(&[m, groups])?, zeros: rec.empty(&[m, groups])? };
    if rec.is_gpu() {
        find_gpu(rec, w, weights, (spec, percent), &grid)?;
        return Ok(grid);
    }
    if w.is_empty() {
        return Ok(grid);
    }
    let first = WHOLE - percent;
    let weights = weights.map(|weights| padded_groups(weights.host(), spec.group_size));
    let scales = grid.scales.host_mut().par_chunks_mut(groups);
    let zeros = grid.zeros.host_mut().par_chunks_mut(groups);
    w.host().par_chunks(n).zip(scales).zip(zeros).for_each_init(Vec::new, |padded, ((w, scales), zeros)| {
        for (group, ((w, scale), zero)) in w.chunks(spec.group_size).zip(scales).zip(zeros).enumerate() {
            let weights = weights.as_ref().map(|groups| groups[group].as_slice());
            (*scale, *zero) = pulp::Arch::new().dispatch(SearchGroup { w, weights, spec, first, padded });
        }
    });
    Ok(grid)
}

/// Returns the column weights of each group, padded with zeros to a multiple of [`LANES`].
fn padded_groups(weights: &[f32], group_size: usize) -> Vec<Vec<f32>> {
    let padded = |group: &[f32]| {
        let mut group = group.to_vec();
        group.resize(group.len().next_multiple_of(LANES), 0.0);
        group
    };
    weights.chunks(group_size).map(padded).collect()
}

uniform! {
    struct Params of "grid" {
        n: u32,
        group_size: u32,
        groups: u32,
        count: u32,
        stride: u32,
        factors: u32,
        percent: u32,
        symmetric: u32,
        half: u32,
        top: f32,
    }
}

/// Dispatches [`find`] on a GPU.
fn find_gpu(
    rec: &mut Recorder,
    w: &Tensor,
    weights: Option<&Tensor>,
    (spec, percent): (&GridSpec, usize),
    grid: &Grid,
) -> Result<()> {
    let workgroups = spread(grid.scales.len());
    let factors = if spec.search == Search::MinMax { 1 } else { FACTORS };
    let params = Params {
        n: w.shape()[1] as u32,
        group_size: spec.group_size as u32,
        groups: grid.scales.shape()[1] as u32,
        count: grid.scales.len() as u32,
        stride: workgroups[0] as u32,
        factors: factors as u32,
        percent: percent as u32,
        symmetric: u32::from(spec.symmetry == Symmetry::Symmetric),
        half: u32::from(spec.scale_type == ScaleType::F16),
        top: ((1u32 << spec.bits) - 1) as f32,
    };
    rec.dispatch(Dispatch {
        kernel: if weights.is_some() { "grid_weighted" } else { "grid" },
        params: bytemuck::bytes_of(&params),
        inputs: &[Some(w), weights].into_iter().flatten().map(Tensor::buffer).collect::<Vec<_>>(),
        outputs: &[grid.scales.buffer(), grid.zeros.buffer()],
        workgroups,
        work: 16.0 * (factors * w.len()) as f64,
    })
}

/// Number of lanes of the vectorised loops.
const LANES: usize = 16;
/// Number of elements after which the search may give up a candidate that is already worse than the best.
const STRETCH: usize = 128;

/// [`search_group`], in the form that pulp compiles for each instruction set.
struct SearchGroup<'a> {
    w: &'a [f32],
    /// The column weights, padded to a multiple of [`LANES`].
    weights: Option<&'a [f32]>,
    spec: &'a GridSpec,
    /// Number of the first shrink factor.
    first: usize,
    /// Scratch memory.
    padded: &'a mut Vec<f32>,
}

impl pulp::NullaryFnOnce for SearchGroup<'_> {
    type Output = (f32, f32);

    #[inline(always)]
    fn call(self) -> (f32, f32) {
        search_group(self.w, self.weights, self.spec, self.first, self.padded)
    }
}

/// The CPU twin for one group of one row. Returns the scale and the zero point. `first`: number of the first shrink factor;
/// `padded`: scratch memory.
#[inline(always)]
fn search_group(
    w: &[f32],
    weights: Option<&[f32]>,
    spec: &GridSpec,
    first: usize,
    padded: &mut Vec<f32>,
) -> (f32, f32) {
    let range = range(w, spec.symmetry);
    if spec.search == Search::MinMax {
        return quantizer(range, factor(first), spec);
    }
    padded.clear();
    padded.extend_from_slice(w);
    // Every grid contains zero, so the padding adds no loss.
    padded.resize(w.len().next_multiple_of(LANES), 0.0);
    let top = ((1u32 << spec.bits) - 1) as f32;
    // All candidates are computed first, so that their divisions and roundings are vectorised too.
    let (mut scales, mut zeros, mut inverses) = ([0.0; FACTORS], [0.0; FACTORS], [0.0; FACTORS]);
    for i in 0..FACTORS {
        (scales[i], zeros[i]) = quantizer(range, factor(i), spec);
        inverses[i] = 1.0 / scales[i];
    }
    let (mut best, mut least) = (0, f32::INFINITY);
    for i in 0..FACTORS {
        let (step, levels) = ([scales[i], inverses[i]], [-zeros[i], top - zeros[i]]);
        let loss = match weights {
            None => loss(padded, step, levels, least),
            Some(weights) => weighted_loss(padded, weights, step, levels),
        };
        if loss < least {
            (best, least) = (i, loss);
        }
    }
    (scales[best], zeros[best])
}

/// Returns shrink factor number i.
#[inline(always)]
fn factor(i: usize) -> f32 {
    (WHOLE - i) as f32 / WHOLE as f32
}

/// Returns the range of the weights. It is never empty and always includes 0.
#[inline(always)]
fn range(w: &[f32], symmetry: Symmetry) -> [f32; 2] {
    let (mut low, mut high) = ([0.0f32; LANES], [0.0f32; LANES]);
    let chunks = w.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for lane in 0..LANES {
            low[lane] = low[lane].min(chunk[lane]);
            high[lane] = high[lane].max(chunk[lane]);
        }
    }
    let low = low.iter().chain(rest).fold(0.0f32, |low, &w| low.min(w));
    let high = high.iter().chain(rest).fold(0.0f32, |high, &w| high.max(w));
    match symmetry {
        _ if low == 0.0 && high == 0.0 => [-1.0, 1.0],
        Symmetry::Asymmetric => [low, high],
        Symmetry::Symmetric => [-high.max(-low), high.max(-low)],
    }
}

/// Returns the scale and the zero point of the range shrunk by `factor`.
#[inline(always)]
fn quantizer([low, high]: [f32; 2], factor: f32, spec: &GridSpec) -> (f32, f32) {
    let top = ((1u32 << spec.bits) - 1) as f32;
    let (low, high) = (low * factor, high * factor);
    let exact = ((high - low) / top).max(f32::MIN_POSITIVE);
    // This zero point is not rounded yet. If s is not rounded, z is computed without s. This keeps exact halves exact, as for the
    // range [−1, 1].
    let (scale, zero) = match spec.scale_type {
        ScaleType::F32 => (exact, (0.0 - low) / (high - low) * top),
        ScaleType::F16 => {
            let scale = to_half(exact);
            (scale, (0.0 - low) / scale)
        }
    };
    let zero = match spec.symmetry {
        Symmetry::Symmetric => (1u32 << (spec.bits - 1)) as f32,
        Symmetry::Asymmetric => zero.round_ties_even().clamp(0.0, top),
    };
    (scale, zero)
}

/// Returns the f16 nearest to x ≥ 0, as f32; ties go to even. The result lies between the smallest positive f16 and the largest
/// finite f16.
#[inline(always)]
pub(super) fn to_half(x: f32) -> f32 {
    const SMALLEST_NORMAL: f32 = 6.103_515_6e-5;
    const SMALLEST: f32 = 1.0 / 16_777_216.0;
    let bits = x.clamp(SMALLEST_NORMAL, 65504.0).to_bits();
    let normal = f32::from_bits((bits + 0xfff + ((bits >> 13) & 1)) & 0xffff_e000);
    let subnormal = (x.min(SMALLEST_NORMAL) / SMALLEST).round_ties_even().max(1.0) * SMALLEST;
    if x < SMALLEST_NORMAL { subnormal } else { normal }
}

/// Returns `Σ|w − ŵ|^2.4`. If the sum exceeds `limit`, the result may be any partial sum above `limit`. `w` has a multiple of
/// [`LANES`] elements; `[scale, inverse]`: s and 1/s; `levels`: the least and the largest value of q − z.
#[inline(always)]
fn loss(w: &[f32], [scale, inverse]: [f32; 2], levels: [f32; 2], limit: f32) -> f32 {
    let mut total = 0.0;
    for stretch in w.chunks(STRETCH) {
        let mut sums = [0.0f32; LANES];
        for chunk in stretch.chunks_exact(LANES) {
            for lane in 0..LANES {
                let level = nearest(bounded(chunk[lane] * inverse, levels[0], levels[1]));
                let error = (-scale).mul_add(level, chunk[lane]);
                sums[lane] += power(error * error);
            }
        }
        total += across(sums);
        if total > limit {
            break;
        }
    }
    total
}

/// Returns `Σ weight·(w − ŵ)²`. The arguments are those of [`loss`], and one weight per element of `w`.
#[inline(always)]
fn weighted_loss(w: &[f32], weights: &[f32], [scale, inverse]: [f32; 2], levels: [f32; 2]) -> f32 {
    let mut sums = [0.0f32; LANES];
    for (chunk, weights) in w.chunks_exact(LANES).zip(weights.chunks_exact(LANES)) {
        for lane in 0..LANES {
            let level = nearest(bounded(chunk[lane] * inverse, levels[0], levels[1]));
            let error = (-scale).mul_add(level, chunk[lane]);
            sums[lane] += weights[lane] * (error * error);
        }
    }
    across(sums)
}

/// Returns the sum of the lanes. It adds one half to the other repeatedly, because a plain sum would be one long chain of
/// dependent additions.
#[inline(always)]
fn across(mut lanes: [f32; LANES]) -> f32 {
    for half in [8, 4, 2, 1] {
        for lane in 0..half {
            lanes[lane] += lanes[lane + half];
        }
    }
    lanes[0]
}

/// Rounds to the nearest integer, ties to even; for |x| < 2^22. Adding 1.5·2^23 leaves no bits for a fraction.
#[inline(always)]
fn nearest(x: f32) -> f32 {
    const SHIFT: f32 = 12_582_912.0;
    (x + SHIFT) - SHIFT
}

/// Returns `a^1.2` for a ≥ 0, with a relative error below 1e-6. It estimates `r ≈ a^(−1/5)` from the bits of a, refines it by two
/// steps of cubic convergence, and returns `(a·r²)²`.
#[inline(always)]
fn power(a: f32) -> f32 {
    // log2 a ≈ bits / 2^23 − 127. Hence the bits of r are about 127·2^23·6/5 − bits / 5. The constant also balances the error of
    // this estimate.
    let mut r = f32::from_bits(1_277_924_678 - (a.to_bits() >> 16) * 13_107);
    for _ in 0..2 {
        let square = r * r;
        let h = (-(a * square)).mul_add(square * r, 1.0);
        r = (r * h).mul_add(h.mul_add(0.12, 0.2), r);
    }
    let root = a * r * r;
    root * root
}

#[cfg(test)]
mod tests {
    use half::f16;

    use super::{power, to_half};

    #[test]
    fn the_power_is_exact_to_a_millionth() {
        assert_eq!(power(0.0), 0.0);
        for i in 0..100_000 {
            let a = (2.0f64.powf(f64::from(i) / 500.0 - 100.0)) as f32;
            let expected = f64::from(a).powf(1.2);
            assert!((f64::from(power(a)) / expected - 1.0).abs() < 1e-6, "{a:e}");
        }
    }

    #[test]
    fn halves_are_rounded_as_the_crate_half_does() {
        for i in 0..100_000u32 {
            let x = f32::from_bits(0x3300_0000 + i * 2_654_435 % 0x1480_0000);
            let expected = f16::from_f32(x).to_f32().clamp(2.0f32.powi(-24), 65504.0);
            assert_eq!(to_half(x), expected, "{x:e}");
        }
        for (x, expected) in [(0.0, 2.0f32.powi(-24)), (1e-30, 2.0f32.powi(-24)), (65519.0, 65504.0), (1e30, 65504.0)] {
            assert_eq!(to_half(x), expected);
        }
    }
}
