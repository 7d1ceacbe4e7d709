//! References for comparison: plain linear algebra in float64, and the textbook GPTQ. Matrices are row-major.

use aquatint::ops::grid::GridSpec;

/// A matrix in float64.
#[derive(Debug, Clone, PartialEq)]
pub struct Dense {
    /// The number of rows.
    pub rows: usize,
    /// The number of columns.
    pub columns: usize,
    /// The elements, row by row.
    pub values: Vec<f64>,
}

impl Dense {
    pub fn from_fn(rows: usize, columns: usize, f: impl Fn(usize, usize) -> f64) -> Self {
        let values = (0..rows * columns).map(|i| f(i / columns, i % columns)).collect();
        Self { rows, columns, values }
    }

    pub fn new(rows: usize, columns: usize, values: &[f32]) -> Self {
        assert_eq!(rows * columns, values.len());
        Self { rows, columns, values: values.iter().map(|&v| f64::from(v)).collect() }
    }

    pub fn at(&self, i: usize, j: usize) -> f64 {
        self.values[i * self.columns + j]
    }

    pub fn set(&mut self, i: usize, j: usize, value: f64) {
        self.values[i * self.columns + j] = value;
    }

    pub fn f32(&self) -> Vec<f32> {
        self.values.iter().map(|&v| v as f32).collect()
    }

    pub fn transposed(&self) -> Self {
        Self::from_fn(self.columns, self.rows, |i, j| self.at(j, i))
    }

    pub fn minus(&self, other: &Self) -> Self {
        Self::from_fn(self.rows, self.columns, |i, j| self.at(i, j) - other.at(i, j))
    }

    pub fn times(&self, other: &Self) -> Self {
        assert_eq!(self.columns, other.rows);
        let mut out = Self::from_fn(self.rows, other.columns, |_, _| 0.0);
        for i in 0..self.rows {
            for k in 0..self.columns {
                let a = self.at(i, k);
                let (row, b) = (i * out.columns, k * other.columns);
                for j in 0..other.columns {
                    out.values[row + j] += a * other.values[b + j];
                }
            }
        }
        out
    }

    /// The matrix with its rows and columns in `order`.
    pub fn permuted(&self, order: &[u32]) -> Self {
        Self::from_fn(self.rows, self.columns, |i, j| self.at(order[i] as usize, order[j] as usize))
    }

    /// The matrix with each zero on the diagonal replaced by 1, and the ridge added to the diagonal.
    pub fn damped(&self, ridge: f64) -> Self {
        let mut out = self.clone();
        for i in 0..self.rows {
            let value = self.at(i, i);
            out.set(i, i, if value == 0.0 { 1.0 } else { value } + ridge);
        }
        out
    }

    /// The lower Cholesky factor. Panics if there is none.
    pub fn cholesky(&self) -> Self {
        let n = self.rows;
        let mut l = Self::from_fn(n, n, |_, _| 0.0);
        for i in 0..n {
            for j in 0..=i {
                let sum: f64 = self.at(i, j) - (0..j).map(|k| l.at(i, k) * l.at(j, k)).sum::<f64>();
                l.set(i, j, if i == j { sum.sqrt() } else { sum / l.at(j, j) });
            }
        }
        assert!(l.values.iter().all(|v| v.is_finite()), "not positive definite");
        l
    }

    /// The inverse of a positive definite matrix.
    pub fn inverse(&self) -> Self {
        let (n, l) = (self.rows, self.cholesky());
        let mut inverse = Self::from_fn(n, n, |_, _| 0.0);
        for column in 0..n {
            for i in column..n {
                let sum: f64 = (column..i).map(|k| l.at(i, k) * inverse.at(k, column)).sum();
                inverse.set(i, column, (f64::from(i == column) - sum) / l.at(i, i));
            }
        }
        inverse.transposed().times(&inverse)
    }
}

/// The grid of one row and group: `s·(q − z) + o`, where z or o is 0.
#[derive(Debug, Clone, Copy)]
pub struct Level {
    pub scale: f64,
    pub zero: f64,
    pub offset: f64,
}

impl Level {
    /// The asymmetric grid from the smallest to the largest weight.
    pub fn min_max(w: impl Iterator<Item = f64>, bits: u32) -> Self {
        let (mut low, mut high) = w.fold((0.0f64, 0.0f64), |(low, high), w| (low.min(w), high.max(w)));
        if low == 0.0 && high == 0.0 {
            (low, high) = (-1.0, 1.0);
        }
        let scale = (high - low) / f64::from((1u32 << bits) - 1);
        Self { scale, zero: (-low / scale).round_ties_even(), offset: 0.0 }
    }

    /// A grid of the kind `spec`. `second`: z or o.
    pub fn of(spec: &GridSpec, scale: f64, second: f64) -> Self {
        let (zero, offset) = if spec.has_offsets() { (0.0, second) } else { (second, 0.0) };
        Self { scale, zero, offset }
    }

    pub fn code(self, w: f64, bits: u32) -> f64 {
        (((w - self.offset) / self.scale).round_ties_even() + self.zero).clamp(0.0, f64::from((1u32 << bits) - 1))
    }

    pub fn value(self, code: f64) -> f64 {
        self.scale * (code - self.zero) + self.offset
    }
}

/// The grids of a weight, one per row and group.
#[derive(Debug, Clone)]
pub struct Levels {
    /// What the grid is.
    pub spec: GridSpec,
    /// s, `[m, groups]`.
    pub scales: Dense,
    /// z or o, `[m, groups]`.
    pub seconds: Dense,
}

impl Levels {
    /// `scales` and `seconds`: `[m, groups]`.
    pub fn new(spec: &GridSpec, m: usize, scales: &[f32], seconds: &[f32]) -> Self {
        let of = |values: &[f32]| Dense::new(m, values.len() / m, values);
        Self { spec: *spec, scales: of(scales), seconds: of(seconds) }
    }

    /// The grid of row i and group g.
    pub fn of_group(&self, i: usize, g: usize) -> Level {
        Level::of(&self.spec, self.scales.at(i, g), self.seconds.at(i, g))
    }

    /// The grid of row i and column j.
    pub fn at(&self, i: usize, j: usize) -> Level {
        self.of_group(i, j / self.spec.group_size)
    }

    /// The codes nearest to `w`.
    pub fn codes(&self, w: &Dense) -> Dense {
        Dense::from_fn(w.rows, w.columns, |i, j| self.at(i, j).code(w.at(i, j), self.spec.bits))
    }

    /// What `codes` stand for.
    pub fn values(&self, codes: &Dense) -> Dense {
        Dense::from_fn(codes.rows, codes.columns, |i, j| self.at(i, j).value(codes.at(i, j)))
    }
}

/// The codes and the dequantized weights of the textbook GPTQ, which takes the Cholesky factor of the inverse Hessian and goes through
/// the columns from left to right.
///
/// `h`: the damped Hessian. `grid(row, column, updated)`: the grid of a weight; `updated` are the weights when its column is reached.
pub fn gptq(w: &Dense, h: &Dense, bits: u32, mut grid: impl FnMut(usize, usize, &Dense) -> Level) -> (Dense, Dense) {
    let u = h.inverse().cholesky().transposed();
    let (mut w, mut codes) = (w.clone(), w.clone());
    let mut quantized = w.clone();
    for j in 0..w.columns {
        for i in 0..w.rows {
            let level = grid(i, j, &w);
            let code = level.code(w.at(i, j), bits);
            codes.set(i, j, code);
            quantized.set(i, j, level.value(code));
            let error = (w.at(i, j) - quantized.at(i, j)) / u.at(j, j);
            for k in j..w.columns {
                w.set(i, k, w.at(i, k) - error * u.at(j, k));
            }
        }
    }
    (codes, quantized)
}

/// The objective of a layer whose weights have the errors E: `tr(E·H·Eᵀ)`.
pub fn objective(e: &Dense, h: &Dense) -> f64 {
    e.times(h).values.iter().zip(&e.values).map(|(a, b)| a * b).sum()
}

/// A positive definite matrix with the spread of the Hessian of activations. f32 holds its elements exactly.
pub fn hessian(seed: u64, n: usize) -> Dense {
    let tokens = 2 * n + 3;
    let values = super::random(seed, tokens * n);
    // The channels differ in strength, and a part that all have in common correlates them.
    let x = Dense::from_fn(tokens, n, |t, i| {
        let strength = 1.0 + 3.0 * ((i * 7919) % 13) as f64 / 13.0;
        strength * (f64::from(values[t * n + i]) + 0.5 * f64::from(values[t * n]))
    });
    let h = x.transposed().times(&x);
    Dense::from_fn(n, n, |i, j| f64::from(h.at(i.max(j), i.min(j)) as f32))
}

/// A random permutation of 0..n.
pub fn shuffled(seed: u64, n: usize) -> Vec<u32> {
    let keys = super::random(seed ^ 0x5eed, n);
    let mut order: Vec<u32> = (0..n as u32).collect();
    order.sort_by(|&a, &b| keys[a as usize].total_cmp(&keys[b as usize]));
    order
}
