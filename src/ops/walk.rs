//! The twin of shaders/shared/walk.wgsl: the columns of a block in order, each after what those before it add to it.

use crate::device::Element;
use crate::ops::grid::Grid;

/// Rows that are taken at a time: their block of settled values stays in the first-level cache.
pub(super) const LANES: usize = 64;

/// A matrix of m columns as strips of [`LANES`] columns, each a list of row pieces.
pub(super) fn strips<T: Element>(matrix: &mut [T], m: usize) -> Vec<Vec<&mut [T]>> {
    let mut strips: Vec<Vec<&mut [T]>> = (0..m.div_ceil(LANES)).map(|_| Vec::new()).collect();
    for row in matrix.chunks_mut(m.max(1)) {
        for (strip, piece) in strips.iter_mut().zip(row.chunks_mut(LANES)) {
            strip.push(piece);
        }
    }
    strips
}

/// One value per row of a strip.
pub(super) type Lanes = [f32; LANES];

/// What happens to a column whose t is complete.
pub(super) trait Settle {
    /// Takes t of column c for the rows of the strip, stores what is wanted, and returns what later columns take up.
    fn settle(&mut self, c: usize, t: &Lanes) -> Lanes;
    /// Rows of the strip.
    fn width(&self) -> usize;
}

/// `t_c += Σ_{j<c} coefficients[c·count + j]·x_j`, then `x_c = settle(c, t_c)`, for the rows from `first` on.
pub(super) struct Walk<'a, S> {
    /// `[count, m]`.
    pub t: &'a [f32],
    /// `[count, count]`, what column c needs lying together.
    pub coefficients: &'a [f32],
    pub m: usize,
    pub first: usize,
    pub settle: S,
}

impl<S: Settle> pulp::NullaryFnOnce for Walk<'_, S> {
    type Output = ();

    #[inline(always)]
    fn call(mut self) {
        let (count, width) = (self.t.len() / self.m, self.settle.width());
        let mut settled: Vec<Lanes> = Vec::with_capacity(count);
        for c in 0..count {
            let from = c * self.m + self.first;
            let mut t = load(self.t, from, width);
            add_products(&mut t, &settled, &self.coefficients[c * count..]);
            settled.push(self.settle.settle(c, &t));
        }
    }
}

/// The grids of a strip of rows in the group of the current column.
pub(super) struct Levels {
    group: Option<u32>,
    pub scale: Lanes,
    pub inverse: Lanes,
    pub zero: Lanes,
}

impl Default for Levels {
    fn default() -> Self {
        Self { group: None, scale: [1.0; LANES], inverse: [1.0; LANES], zero: [0.0; LANES] }
    }
}

impl Levels {
    #[inline(always)]
    pub(super) fn load(&mut self, grid: &Grid, group: u32, first: usize, width: usize) {
        if self.group == Some(group) {
            return;
        }
        self.group = Some(group);
        let groups = grid.scales.shape()[1];
        for lane in 0..width {
            let index = (first + lane) * groups + group as usize;
            self.scale[lane] = grid.scales.host()[index];
            self.inverse[lane] = 1.0 / self.scale[lane];
            self.zero[lane] = grid.zeros.host()[index];
        }
    }
}

/// `width` elements, then zeros.
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
