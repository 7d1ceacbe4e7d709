//! Random orthogonal transforms that spread the outliers of a weight over all its entries (QuIP, arXiv 2307.13304 §4.2).
//!
//! A transform of width n = p·q is V = (P ⊗ Q)·diag(signs), a Kronecker product of two factors after signs. It takes two products
//! with small matrices, n·(p + q) operations per row instead of n². For `Kronecker`, P and Q are random and orthogonal and all
//! signs are +1. For `Hadamard`, P and Q are Hadamard matrices and the signs are random.

use faer::Mat;
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::RotationKind;
use crate::device::Recorder;
use crate::error::{Setting, phrase};
use crate::ops::matmul::{Orientation, matmul};
use crate::ops::permute::{from_columns, to_columns};
use crate::ops::scale::scale_columns;
use crate::tensor::Tensor;
use crate::{Error, Result};

/// V, `[n, n]` and orthogonal, kept on the device as its factors.
#[derive(Debug)]
pub struct Rotation {
    outer: Tensor,
    inner: Tensor,
    signs: Tensor,
    /// 0, 1, … n − 1: the columns in stored order.
    stored: Tensor<u32>,
    /// The columns ordered by their place inside the inner factor.
    inner_first: Tensor<u32>,
}

/// Whether a rotation is applied or undone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Forward,
    Back,
}

impl Rotation {
    /// The transform of width `n` that `seed` and `stream` determine. Errors: as [`require_hadamard`].
    pub fn new(rec: &mut Recorder, kind: RotationKind, n: usize, seed: u64, stream: u64) -> Result<Self> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(stream);
        let (outer, inner, signs) = match kind {
            RotationKind::Kronecker => {
                let p = (1..=n.isqrt()).rev().find(|p| n.is_multiple_of(*p)).unwrap_or(1);
                (orthogonal(&mut rng, p), orthogonal(&mut rng, n / p), vec![1.0; n])
            }
            RotationKind::Hadamard => {
                let [p, q] = hadamard_factors(n).ok_or_else(|| no_hadamard(n))?;
                let sign = |_| if rng.random::<bool>() { 1.0 } else { -1.0 };
                (normalised_hadamard(p), normalised_hadamard(q), (0..n).map(sign).collect())
            }
        };
        let q = inner.ncols();
        let inner_first = (0..n).map(|i| (i % (n / q) * q + i / (n / q)) as u32).collect();
        Ok(Self {
            outer: upload(rec, &outer)?,
            inner: upload(rec, &inner)?,
            signs: rec.upload(&[n], signs)?,
            stored: rec.upload(&[n], (0..n as u32).collect())?,
            inner_first: rec.upload(&[n], inner_first)?,
        })
    }

    /// X·Vᵀ. `x`: `[m, n]`, like the result.
    pub fn columns(&self, rec: &mut Recorder, mut x: Tensor) -> Result<Tensor> {
        scale_columns(rec, &mut x, &self.signs)?;
        let x = self.factor(rec, &x, &self.outer, &self.stored, Way::Forward)?;
        self.factor(rec, &x, &self.inner, &self.inner_first, Way::Forward)
    }

    /// X·V, which undoes [`Rotation::columns`]. `x`: `[m, n]`, like the result.
    pub fn columns_back(&self, rec: &mut Recorder, x: &Tensor) -> Result<Tensor> {
        let x = self.factor(rec, x, &self.inner, &self.inner_first, Way::Back)?;
        let mut x = self.factor(rec, &x, &self.outer, &self.stored, Way::Back)?;
        scale_columns(rec, &mut x, &self.signs)?;
        Ok(x)
    }

    /// (V·X)ᵀ = Xᵀ·Vᵀ. `x`: `[n, m]`; the result is `[m, n]`.
    pub fn rows_transposed(&self, rec: &mut Recorder, x: &Tensor) -> Result<Tensor> {
        let turned = transposed(rec, x)?;
        self.columns(rec, turned)
    }

    /// Applies one factor along its part of the columns. `order` brings that part to the front, so that a plain product suffices.
    fn factor(&self, rec: &mut Recorder, x: &Tensor, factor: &Tensor, order: &Tensor<u32>, way: Way) -> Result<Tensor> {
        let [m, n] = x.matrix("rotation")?;
        let width = factor.shape()[0];
        let columns = to_columns(rec, x, order)?.reshape(&[width, n / width * m])?;
        let orientation = if way == Way::Forward { Orientation::Nn } else { Orientation::Tn };
        let turned = matmul(rec, orientation, factor, &columns)?.reshape(&[n, m])?;
        from_columns(rec, &turned, order)
    }
}

/// Xᵀ.
pub(super) fn transposed(rec: &mut Recorder, x: &Tensor) -> Result<Tensor> {
    let [_, n] = x.matrix("transposed")?;
    let stored = rec.upload(&[n], (0..n as u32).collect())?;
    to_columns(rec, x, &stored)
}

fn upload(rec: &mut Recorder, matrix: &Mat<f64>) -> Result<Tensor> {
    let n = matrix.nrows();
    rec.upload(&[n, n], (0..n * n).map(|i| matrix[(i / n, i % n)] as f32).collect())
}

/// A random orthogonal matrix: Q of the QR factorisation of a Gaussian matrix. The factorisation chooses the signs of the columns,
/// so they are drawn anew.
fn orthogonal(rng: &mut impl Rng, n: usize) -> Mat<f64> {
    let gaussian = Mat::from_fn(n, n, |_, _| normal(rng));
    let q = gaussian.qr().compute_thin_Q();
    let signs: Vec<f64> = (0..n).map(|_| if rng.random::<bool>() { 1.0 } else { -1.0 }).collect();
    Mat::from_fn(n, n, |i, j| q[(i, j)] * signs[j])
}

/// A standard normal number, by Box and Muller.
fn normal(rng: &mut impl Rng) -> f64 {
    let (u, v): (f64, f64) = (rng.random(), rng.random());
    (-2.0 * (1.0 - u).ln()).sqrt() * (std::f64::consts::TAU * v).cos()
}

/// Errors: `Error::Input` if no Hadamard matrix of order `n` is known here.
pub fn require_hadamard(n: usize) -> Result<()> {
    hadamard_factors(n).map(|_| ()).ok_or_else(|| no_hadamard(n))
}

fn no_hadamard(n: usize) -> Error {
    Error::input(
        Setting::Rotation.set_to("hadamard"),
        format!("a layer {n} wide, for which no Hadamard matrix is known here"),
        "widths that are products of powers of two and orders of Paley's construction",
        phrase!["use ", Setting::Rotation.set_to("kronecker")],
    )
}

/// p and q with p·q = n, both orders of Hadamard matrices, and as near to each other as possible.
fn hadamard_factors(n: usize) -> Option<[usize; 2]> {
    let known = |order: usize| core_order(order).is_some();
    let p = (1..=n.isqrt()).rev().find(|&p| n.is_multiple_of(p) && known(p) && known(n / p))?;
    Some([p, n / p])
}

/// How a Hadamard matrix is constructed before it is doubled.
#[derive(Debug, Clone, Copy)]
enum Core {
    /// Order 1 or 2.
    Trivial(usize),
    /// Paley's first construction: order q + 1, q a prime, 3 modulo 4.
    First(usize),
    /// Paley's second construction: order 2(q + 1), q a prime, 1 modulo 4.
    Second(usize),
}

impl Core {
    fn order(self) -> usize {
        match self {
            Self::Trivial(order) => order,
            Self::First(q) => q + 1,
            Self::Second(q) => 2 * (q + 1),
        }
    }
}

/// Halves `order` until one of the constructions fits.
fn core_order(mut order: usize) -> Option<Core> {
    let prime = |q: usize| q > 1 && (2..=q.isqrt()).all(|d| !q.is_multiple_of(d));
    loop {
        if matches!(order, 1 | 2) {
            return Some(Core::Trivial(order));
        }
        if !order.is_multiple_of(4) {
            return None;
        }
        if order.is_power_of_two() {
            order /= 2;
            continue;
        }
        if prime(order - 1) && (order - 1) % 4 == 3 {
            return Some(Core::First(order - 1));
        }
        if prime(order / 2 - 1) && (order / 2 - 1) % 4 == 1 {
            return Some(Core::Second(order / 2 - 1));
        }
        order /= 2;
    }
}

/// H/√n for an order that [`core_order`] knows: the core matrix, doubled by Sylvester's rule [[H, H], [H, −H]].
fn normalised_hadamard(n: usize) -> Mat<f64> {
    let core = core_order(n).expect("the order was checked");
    let small = hadamard_core(core);
    let order = core.order();
    let scale = 1.0 / (n as f64).sqrt();
    Mat::from_fn(n, n, |i, j| {
        let doublings = ((i / order) & (j / order)).count_ones();
        let sign = if doublings.is_multiple_of(2) { scale } else { -scale };
        sign * small[(i % order, j % order)]
    })
}

fn hadamard_core(core: Core) -> Mat<f64> {
    match core {
        Core::Trivial(order) => Mat::from_fn(order, order, |i, j| if i == 1 && j == 1 { -1.0 } else { 1.0 }),
        // I + S with S skew: S = [[0, 1], [−1, Q]].
        Core::First(q) => {
            let skew = bordered(q, -1.0);
            Mat::from_fn(q + 1, q + 1, |i, j| skew[(i, j)] + if i == j { 1.0 } else { 0.0 })
        }
        // Every entry of the symmetric conference matrix C becomes a block: 0 → [[1, −1], [−1, −1]], ±1 → ±[[1, 1], [1, −1]].
        Core::Second(q) => {
            let conference = bordered(q, 1.0);
            Mat::from_fn(2 * (q + 1), 2 * (q + 1), |i, j| {
                let entry = conference[(i / 2, j / 2)];
                match (entry == 0.0, i % 2, j % 2) {
                    (true, 0, 0) => 1.0,
                    (true, _, _) => -1.0,
                    (false, 1, 1) => -entry,
                    (false, _, _) => entry,
                }
            })
        }
    }
}

/// [[0, 1ᵀ], [`left`·1, Q]] with Q the Jacobsthal matrix of the prime q: Q[i, j] = 1 if i − j is a square modulo q, −1 if not.
fn bordered(q: usize, left: f64) -> Mat<f64> {
    let mut character = vec![-1.0; q];
    (1..q).for_each(|x| character[x * x % q] = 1.0);
    character[0] = 0.0;
    Mat::from_fn(q + 1, q + 1, |i, j| match (i, j) {
        (0, 0) => 0.0,
        (0, _) => 1.0,
        (_, 0) => left,
        (i, j) => character[(i + q - j) % q],
    })
}
