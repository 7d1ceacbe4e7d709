//! The CPU twin of `shaders/shared/walk.wgsl`: the column loop that GPTQ (`gptq`) and coordinate descent (`descent`) share.
//!
//! The loop processes the columns of a block in order. It adds the terms of all earlier columns to a column before it finishes
//! the column. Matrices are `[columns, m]`, so that a column of the weight is a row of the matrix, with its m rows side by
//! side.

use crate::device::Element;
use crate::ops::bounded;
use crate::ops::grid::{Grid, GridSpec};

/// Number of rows of the weight that one task processes: a strip. The finished values of a block and a strip fit the first-level
/// cache.
pub(super) const LANES: usize = 64;

/// Divides a matrix `[columns, m]` into strips of [`LANES`] rows of the weight. Each strip holds one slice for each column.
pub(super) fn strips<T: Element>(matrix: &mut [T], m: usize) -> Vec<Vec<&mut [T]>> {
    let mut strips: Vec<Vec<&mut [T]>> = (0..m.div_ceil(LANES)).map(|_| Vec::new()).collect();
    for row in matrix.chunks_mut(m.max(1)) {
        for (strip, piece) in strips.iter_mut().zip(row.chunks_mut(LANES)) {
            strip.push(piece);
        }
    }
    strips
}

/// One value for each row of a strip.
pub(super) type Lanes = [f32; LANES];

/// The step that finishes a column for the rows of one strip, for example by rounding it.
pub(super) trait ColumnStep {
    /// Takes the complete t_c of column c, stores its results, and returns x_c, which later columns add to their t.
    fn finish_column(&mut self, c: usize, t: &Lanes) -> Lanes;
    /// Number of rows of the strip, at most [`LANES`].
    fn width(&self) -> usize;
}

/// The loop over the columns of a block for one strip, whose first row is `first`. For each column c in order, it computes
/// `t_c += Σ_{j<c} coefficients[c·count + j]·x_j`, and then `x_c = step.finish_column(c, t_c)`.
pub(super) struct Walk<'a, S> {
    /// t before the loop, `[count, m]`.
    pub t: &'a [f32],
    /// `[count, count]`: row c holds the coefficients for column c.
    pub coefficients: &'a [f32],
    /// Number of rows of the weight.
    pub m: usize,
    /// First row of the strip.
    pub first: usize,
    /// The step that finishes a column.
    pub step: S,
}

impl<S: ColumnStep> pulp::NullaryFnOnce for Walk<'_, S> {
    type Output = ();

    #[inline(always)]
    fn call(mut self) {
        let (count, width) = (self.t.len() / self.m, self.step.width());
        let mut finished: Vec<Lanes> = Vec::with_capacity(count);
        for c in 0..count {
            let from = c * self.m + self.first;
            let mut t = load(self.t, from, width);
            add_products(&mut t, &finished, &self.coefficients[c * count..]);
            finished.push(self.step.finish_column(c, &t));
        }
    }
}

/// The grids of the rows of a strip, in the group of the current column: `ŵ = s·(q − z) + o`, where z or o is 0. It is the CPU
/// twin of `shaders/shared/quantizer.wgsl`.
pub(super) struct StripGrid {
    /// The group that is loaded.
    group: Option<u32>,
    /// s.
    pub scale: Lanes,
    /// 1/s.
    inverse: Lanes,
    /// z.
    zero: Lanes,
    /// o.
    offset: Lanes,
    /// The largest code, 2^b − 1.
    top: f32,
    /// Whether the grid has offsets.
    offsets: bool,
}

impl StripGrid {
    /// Grids of the kind `spec`, with no group loaded.
    pub(super) fn new(spec: &GridSpec) -> Self {
        let (ones, zeros) = ([1.0; LANES], [0.0; LANES]);
        let (top, offsets) = (spec.top(), spec.has_offsets());
        Self { group: None, scale: ones, inverse: ones, zero: zeros, offset: zeros, top, offsets }
    }

    /// Loads the grids of `group` for the `width` rows from `first` on, unless they are loaded already.
    #[inline(always)]
    pub(super) fn load(&mut self, grid: &Grid, group: u32, first: usize, width: usize) {
        if self.group == Some(group) {
            return;
        }
        self.group = Some(group);
        let groups = grid.scales.shape()[1];
        let second = if self.offsets { &mut self.offset } else { &mut self.zero };
        for (lane, second) in second.iter_mut().enumerate().take(width) {
            let index = (first + lane) * groups + group as usize;
            self.scale[lane] = grid.scales.host()[index];
            self.inverse[lane] = 1.0 / self.scale[lane];
            *second = grid.zeros.host()[index];
        }
    }

    /// The code nearest to the weight `w` in row `lane` of the strip, as a float.
    #[inline(always)]
    pub(super) fn code_of(&self, w: f32, lane: usize) -> f32 {
        let (zero, x) = (self.zero[lane], (w - self.offset[lane]) * self.inverse[lane]);
        bounded(x, -zero, self.top - zero).round_ties_even() + zero
    }

    /// ŵ of a code in row `lane` of the strip.
    #[inline(always)]
    pub(super) fn value_of(&self, code: f32, lane: usize) -> f32 {
        self.scale[lane] * (code - self.zero[lane]) + self.offset[lane]
    }
}

/// Returns `width` elements of `values` from index `from` on, followed by zeros.
#[inline(always)]
pub(super) fn load(values: &[f32], from: usize, width: usize) -> Lanes {
    let mut lanes = [0.0; LANES];
    lanes[..width].copy_from_slice(&values[from..from + width]);
    lanes
}

/// `sum += Σ_j coefficients[j]·rows[j]`.
#[inline(always)]
fn add_products(sum: &mut Lanes, rows: &[Lanes], coefficients: &[f32]) {
    let mut local = *sum;
    for (row, &coefficient) in rows.iter().zip(coefficients) {
        for lane in 0..LANES {
            local[lane] = coefficient.mul_add(row[lane], local[lane]);
        }
    }
    *sum = local;
}
