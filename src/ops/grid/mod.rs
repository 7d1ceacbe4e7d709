//! The choice of scales and of zero points or offsets, per row or per group of consecutive columns of a row. RTN, GPTQ and AWQ
//! use it. QuIP sets its grid itself. The shader is `grid`.
//!
//! Grids with offsets are then fitted to their codes (`fit`), and scales that share a unit are brought to whole numbers of it
//! (`snap`).

mod spec;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::device::{Dispatch, Recorder, Tensor};
use crate::ops::{bounded, fit, snap, spread};
use crate::{Error, Result};

pub use spec::{GridSpec, ScaleType, Steps, Symmetry, Zero};

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

/// The grids of a weight, one per row and group: `w ≈ s·(q − z)`, or `w ≈ s·q + o` where the grid has offsets.
#[derive(Debug)]
pub struct Grid {
    /// The scales s, `[m, groups]`. Only grids with signed scales have negative ones.
    pub scales: Tensor,
    /// The zero points z, integers in [0, 2^b − 1], or the offsets o; `[m, groups]`.
    pub zeros: Tensor,
    /// The units of which scales are whole numbers, `[m, units]`, and below them those of offsets, if there are offsets; `None`
    /// where scales share no units.
    pub units: Option<Tensor>,
}

/// Number of shrink factors that a search compares: 1.00, 0.99, … 0.21.
const FACTORS: usize = 80;
/// The least size of a scale before it is rounded to its type. Many GPUs take much smaller numbers for 0.
const LEAST_SCALE: f32 = 1e-30;
/// The whole range, in percent.
const WHOLE: usize = 100;

/// Chooses the grid of every group of `w`.
///
/// For the range [lo, hi], `s = (hi − lo) / (2^b − 1)`, `z = round(−lo / s)` and `o = lo`. The range of a fixed zero point is
/// ±max|w|; if scales are signed, the side with more levels is that of the largest magnitude. A group of zeros gets the range
/// [−1, 1], or [0, 1] with offsets, of which 0 is a level. It gets no range if its scale shares a unit with others.
/// `w`: `[m, n]`; `weights`: `[n, 1]`, not negative, for [`Search::Weighted`] only.
///
/// Errors: `Error::Shape` if the group size is 0, if the bits are not 1 to 8, or if `weights` is missing for
/// [`Search::Weighted`] or given for another search.
pub fn search(
    rec: &mut Recorder,
    w: &Tensor,
    weights: Option<&Tensor>,
    spec: &GridSpec,
    search: Search,
) -> Result<Grid> {
    let mut grid = find(rec, w, weights, (spec, search), WHOLE)?;
    if spec.has_offsets() && search != Search::MinMax {
        fit::fit(rec, w, weights, spec, &mut grid)?;
    }
    snap::snap(rec, spec, &mut grid)?;
    Ok(grid)
}

/// Returns the grid of every group of `w` with the range [min, max] or ±max|w| shrunk to `percent` percent, 1 to 100. AWQ uses
/// it to compare clipping ranges.
///
/// Scales that share a unit are not whole numbers of it yet; see `snap`. All else is as for [`search`].
pub fn shrunk(rec: &mut Recorder, w: &Tensor, spec: &GridSpec, percent: usize) -> Result<Grid> {
    if !(1..=WHOLE).contains(&percent) {
        return Err(Error::shape("grid", format!("a range shrunk to {percent} %")));
    }
    find(rec, w, None, (spec, Search::MinMax), percent)
}

/// Chooses the best candidate, starting with `percent` percent of the range.
fn find(
    rec: &mut Recorder,
    w: &Tensor,
    weights: Option<&Tensor>,
    (spec, search): (&GridSpec, Search),
    percent: usize,
) -> Result<Grid> {
    let [m, n] = w.matrix("grid")?;
    let weighted = search == Search::Weighted;
    if !spec.is_possible() || weighted != weights.is_some() {
        return Err(Error::shape("grid", format!("{spec:?} and {search:?} with weights {weights:?}")));
    }
    if let Some(weights) = weights {
        weights.expect_shape("grid", &[n, 1])?;
    }
    let groups = n.div_ceil(spec.group_size);
    let mut grid = Grid { scales: rec.empty(&[m, groups])?, zeros: rec.empty(&[m, groups])?, units: None };
    if rec.is_gpu() {
        find_gpu(rec, w, weights, (spec, search, percent), &grid)?;
        return Ok(grid);
    }
    if w.is_empty() {
        return Ok(grid);
    }
    let first = WHOLE - percent;
    let weights: Option<Vec<&[f32]>> = weights.map(|weights| weights.host().chunks(spec.group_size).collect());
    let scales = grid.scales.host_mut().par_chunks_mut(groups);
    let zeros = grid.zeros.host_mut().par_chunks_mut(groups);
    w.host().par_chunks(n).zip(scales).zip(zeros).for_each(|((w, scales), zeros)| {
        for (group, ((w, scale), zero)) in w.chunks(spec.group_size).zip(scales).zip(zeros).enumerate() {
            let weights = weights.as_ref().map(|groups| groups[group]);
            (*scale, *zero) = pulp::Arch::new().dispatch(SearchGroup { w, weights, spec, search, first });
        }
    });
    Ok(grid)
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
        range: u32,
        units: u32,
        zero: f32,
        zeros: u32,
        scale_type: u32,
        offset_type: u32,
        top: f32,
    }
}

/// Dispatches [`find`] on a GPU.
fn find_gpu(
    rec: &mut Recorder,
    w: &Tensor,
    weights: Option<&Tensor>,
    (spec, search, percent): (&GridSpec, Search, usize),
    grid: &Grid,
) -> Result<()> {
    let workgroups = spread(grid.scales.len());
    let factors = if search == Search::MinMax { 1 } else { FACTORS };
    let params = Params {
        n: w.shape()[1] as u32,
        group_size: spec.group_size as u32,
        groups: grid.scales.shape()[1] as u32,
        count: grid.scales.len() as u32,
        stride: workgroups[0] as u32,
        factors: factors as u32,
        percent: percent as u32,
        range: Range::of(spec) as u32,
        units: u32::from(spec.shared_groups().is_some()),
        zero: if let Zero::Fixed(zero) = spec.zero { zero as f32 } else { 0.0 },
        zeros: match spec.zero {
            Zero::Fixed(_) => 0,
            Zero::Code => 1,
            Zero::Offset(_) => 2,
        },
        scale_type: spec.scale.own().number(),
        offset_type: spec.offset_type().number(),
        top: spec.top(),
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

/// How a range follows from the least and the greatest weight of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Range {
    /// [min, max].
    Extremes = 0,
    /// ±max|w|.
    Symmetric = 1,
    /// ±max|w| from the extreme with the largest magnitude to its opposite. The side of code 0 has more levels.
    FromLarger = 2,
    /// The reverse. The side of the largest code has more levels.
    ToLarger = 3,
}

impl Range {
    fn of(spec: &GridSpec) -> Self {
        match spec.zero {
            Zero::Code | Zero::Offset(_) => Self::Extremes,
            Zero::Fixed(_) if !spec.signed => Self::Symmetric,
            Zero::Fixed(zero) if 2.0 * zero as f32 > spec.top() => Self::FromLarger,
            Zero::Fixed(_) => Self::ToLarger,
        }
    }
}

/// [`search_group`], in the form that pulp compiles for each instruction set.
struct SearchGroup<'a> {
    w: &'a [f32],
    /// The column weights.
    weights: Option<&'a [f32]>,
    spec: &'a GridSpec,
    search: Search,
    /// Number of the first shrink factor.
    first: usize,
}

impl pulp::NullaryFnOnce for SearchGroup<'_> {
    type Output = (f32, f32);

    #[inline(always)]
    fn call(self) -> (f32, f32) {
        search_group(self)
    }
}

/// The CPU twin for one group of one row. Returns the scale, and the zero point or offset.
#[inline(always)]
fn search_group(SearchGroup { w, weights, spec, search, first }: SearchGroup<'_>) -> (f32, f32) {
    let range = range(w, spec);
    if search == Search::MinMax {
        return candidate(range, factor(first), spec);
    }
    let (top, offsets) = (spec.top(), spec.has_offsets());
    // All candidates are computed first, so that their divisions and roundings are vectorised too.
    let (mut scales, mut zeros, mut inverses) = ([0.0; FACTORS], [0.0; FACTORS], [0.0; FACTORS]);
    for i in 0..FACTORS {
        (scales[i], zeros[i]) = candidate(range, factor(i), spec);
        inverses[i] = 1.0 / scales[i];
    }
    let (mut best, mut least) = (0, f32::INFINITY);
    for i in 0..FACTORS {
        let (zero, offset) = if offsets { (0.0, zeros[i]) } else { (zeros[i], 0.0) };
        let grid = Levels { scale: scales[i], inverse: inverses[i], offset, least: -zero, most: top - zero };
        let loss = match weights {
            None => loss(w, grid, least),
            Some(weights) => weighted_loss(w, weights, grid),
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

/// Returns the ends of the range, which always includes 0: the value at the smaller code first. It is empty only for a group of
/// zeros whose scale shares a unit.
#[inline(always)]
fn range(w: &[f32], spec: &GridSpec) -> [f32; 2] {
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
    let most = high.max(-low);
    let end = if high > -low { most } else { -most };
    match Range::of(spec) {
        _ if most == 0.0 && spec.shared_groups().is_none() => [if spec.has_offsets() { 0.0 } else { -1.0 }, 1.0],
        Range::Extremes => [low, high],
        Range::Symmetric => [-most, most],
        Range::FromLarger => [end, -end],
        Range::ToLarger => [-end, end],
    }
}

/// Returns the scale, and the zero point or offset, of the range shrunk by `factor`.
#[inline(always)]
fn candidate([low, high]: [f32; 2], factor: f32, spec: &GridSpec) -> (f32, f32) {
    let top = spec.top();
    let (low, high) = (low * factor, high * factor);
    let exact = ((high - low) / top).abs().max(LEAST_SCALE).copysign(high - low);
    let kind = spec.scale.own();
    let scale = kind.round(exact);
    let second = match spec.zero {
        Zero::Fixed(zero) => zero as f32,
        // If s is not rounded, z is computed without s. This keeps exact halves exact, as for the range [−1, 1].
        Zero::Code if kind == ScaleType::F32 => ((0.0 - low) / (high - low) * top).round_ties_even().clamp(0.0, top),
        Zero::Code => ((0.0 - low) / scale).round_ties_even().clamp(0.0, top),
        Zero::Offset(_) => spec.offset_type().round(low),
    };
    (scale, second)
}

/// A candidate grid of one group.
#[derive(Clone, Copy)]
struct Levels {
    /// s.
    scale: f32,
    /// 1/s.
    inverse: f32,
    /// o, or 0.
    offset: f32,
    /// The least value of q − z.
    least: f32,
    /// The greatest value of q − z.
    most: f32,
}

impl Levels {
    /// w − ŵ.
    #[inline(always)]
    fn error(self, w: f32) -> f32 {
        let w = w - self.offset;
        let level = nearest(bounded(w * self.inverse, self.least, self.most));
        (-self.scale).mul_add(level, w)
    }
}

/// Returns `Σ|w − ŵ|^2.4`. If the sum exceeds `limit`, the result may be any partial sum above `limit`.
#[inline(always)]
fn loss(w: &[f32], grid: Levels, limit: f32) -> f32 {
    let mut total = 0.0;
    for stretch in w.chunks(STRETCH) {
        let mut sums = [0.0f32; LANES];
        let chunks = stretch.chunks_exact(LANES);
        let rest = chunks.remainder();
        for chunk in chunks {
            for lane in 0..LANES {
                let error = grid.error(chunk[lane]);
                sums[lane] += power(error * error);
            }
        }
        for (sum, &w) in sums.iter_mut().zip(rest) {
            let error = grid.error(w);
            *sum += power(error * error);
        }
        total += across(sums);
        if total > limit {
            break;
        }
    }
    total
}

/// Returns `Σ weight·(w − ŵ)²`. There is one weight per element of `w`.
#[inline(always)]
fn weighted_loss(w: &[f32], weights: &[f32], grid: Levels) -> f32 {
    let mut sums = [0.0f32; LANES];
    let (chunks, weight_chunks) = (w.chunks_exact(LANES), weights.chunks_exact(LANES));
    let rest = chunks.remainder().iter().zip(weight_chunks.remainder());
    for (chunk, weights) in chunks.zip(weight_chunks) {
        for lane in 0..LANES {
            let error = grid.error(chunk[lane]);
            sums[lane] += weights[lane] * (error * error);
        }
    }
    for (sum, (&w, &weight)) in sums.iter_mut().zip(rest) {
        let error = grid.error(w);
        *sum += weight * (error * error);
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
    use super::power;

    #[test]
    fn the_power_is_exact_to_a_millionth() {
        assert_eq!(power(0.0), 0.0);
        for i in 0..100_000 {
            let a = (2.0f64.powf(f64::from(i) / 500.0 - 100.0)) as f32;
            let expected = f64::from(a).powf(1.2);
            assert!((f64::from(power(a)) / expected - 1.0).abs() < 1e-6, "{a:e}");
        }
    }
}
