//! Arithmetic that several CPU twins share: exponential, hyperbolic tangent, maximum and sum. The loops are written so that the compiler turns
//! them into vector instructions. No shader belongs to this file.

/// Number of partial results that the reductions keep side by side: two vectors of AVX-512, or eight of NEON.
const LANES: usize = 32;
/// Number of elements that are summed in f32. The sums of such runs are then added in f64.
const RUN: usize = 32 * LANES;

/// Runs `body` as compiled for the widest vectors of this machine. The closure needs `#[inline(always)]`. Without it, the closure
/// is compiled for the narrowest vectors only.
#[inline(always)]
pub(crate) fn vectorised<R>(body: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(body)
}

/// Returns eˣ with a relative error below 2·10⁻⁷. The result is 0 for x below −87, e⁸⁸ for x above 88, and NaN for NaN.
///
/// The argument is split into x = n·ln 2 + r with |r| ≤ ln 2 / 2. In this range the eighth term of the series of eʳ is below
/// 10⁻⁸.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // Adding this number gives a sum that is rounded to an integer, because floats of that size are one apart. The integer is in
    // the low bits of the sum.
    const ROUND: f32 = 12_582_912.0;
    // ln 2 in two parts. The first part has 9 bits, so that its product with n is exact.
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let bounded = if x > 88.0 { 88.0 } else { x };
    let shifted = bounded * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = bounded - n * LN_2_HIGH - n * LN_2_LOW;
    let cubic = 1.0 / 6.0 + r * (1.0 / 24.0 + r * (1.0 / 120.0 + r * (1.0 / 720.0 + r * (1.0 / 5040.0))));
    let series = 1.0 + r * (1.0 + r * (0.5 + r * cubic));
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(1.0f32.to_bits()));
    if x < -87.0 { 0.0 } else { series * power }
}

/// Returns tanh x with a relative error below 3·10⁻⁷. `shaders/shared/tanh.wgsl` is the same function in WGSL.
#[inline(always)]
pub(crate) fn tanh(x: f32) -> f32 {
    let (size, square) = (x.abs(), x * x);
    // x³·near is tanh x − x for |x| ≤ 0.625, with an error below 2·10⁻⁸·|x|. It was fitted at Chebyshev's points.
    let near = -0.333_333_28
        + square * (0.133_327_19 + square * (-0.053_843_263 + square * (0.020_961_33 - square * 0.006_045_165)));
    let far = 1.0 - 2.0 / (1.0 + exp(2.0 * size));
    if size <= 0.625 { x + x * square * near } else { far.copysign(x) }
}

/// Returns the largest value, or −∞ if there is none. It ignores NaNs.
#[inline(always)]
pub(crate) fn maximum(values: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (whole, rest) = values.as_chunks::<LANES>();
    for chunk in whole {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            *lane = larger(*lane, value);
        }
    }
    lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |a, &b| larger(a, b))
}

/// Returns `Σ term(a_i, b_i)`. Runs of [`RUN`] elements are summed in f32, and the sums of the runs in f64.
#[inline(always)]
pub(crate) fn sum(a: &[f32], b: &[f32], term: impl Fn(f32, f32) -> f32) -> f64 {
    let mut total = 0.0;
    for (a, b) in a.chunks(RUN).zip(b.chunks(RUN)) {
        let mut lanes = [0.0f32; LANES];
        let ((a_whole, a_rest), (b_whole, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
        for (a, b) in a_whole.iter().zip(b_whole) {
            for ((lane, &a), &b) in lanes.iter_mut().zip(a).zip(b) {
                *lane += term(a, b);
            }
        }
        total += lanes.iter().map(|&lane| f64::from(lane)).sum::<f64>();
        total += a_rest.iter().zip(b_rest).map(|(&a, &b)| f64::from(term(a, b))).sum::<f64>();
    }
    total
}

/// The parallelism of one factorisation or solve by `faer`: all of rayon's threads, or none in a browser.
pub(super) fn parallelism() -> faer::Par {
    #[cfg(target_arch = "wasm32")]
    return faer::Par::Seq;
    #[cfg(not(target_arch = "wasm32"))]
    return faer::Par::rayon(0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_close_to_the_true_value_over_its_whole_range() {
        let worst = (-870_000..=880_000)
            .map(|i| {
                let x = i as f32 * 1e-4;
                (f64::from(exp(x)) / f64::from(x).exp() - 1.0).abs()
            })
            .fold(0.0, f64::max);
        assert!(worst < 2e-7, "{worst}");
        assert_eq!((exp(0.0), exp(-87.1), exp(-1e30)), (1.0, 0.0, 0.0));
        assert!(exp(1e30).is_finite() && exp(f32::NAN).is_nan());
    }

    #[test]
    fn tanh_is_close_to_the_true_value_near_zero_and_far_from_it() {
        let worst = (-2_000_000..=2_000_000)
            .filter(|&i| i != 0)
            .map(|i| {
                let x = i as f32 * 1e-5;
                (f64::from(tanh(x)) / f64::from(x).tanh() - 1.0).abs()
            })
            .fold(0.0, f64::max);
        assert!(worst < 3e-7, "{worst}");
        assert_eq!((tanh(0.0), tanh(1e30), tanh(f32::NEG_INFINITY), tanh(1e-30)), (0.0, 1.0, -1.0, 1e-30));
        assert!(tanh(f32::NAN).is_nan());
    }

    #[test]
    fn reductions_see_every_element_at_any_length() {
        for len in [0, 1, LANES - 1, LANES, RUN, RUN + LANES + 3] {
            let values: Vec<f32> = (0..len).map(|i| i as f32).collect();
            let expected: f64 = (0..len).map(|i| i as f64 * 2.0).sum();
            assert_eq!(sum(&values, &values, |a, b| a + b), expected);
            assert_eq!(maximum(&values), if len == 0 { f32::NEG_INFINITY } else { (len - 1) as f32 });
        }
    }
}
