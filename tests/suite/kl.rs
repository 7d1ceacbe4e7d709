//! `ops::kl`: the divergence of two distributions, slab by slab, compared with Σ P·ln(P/Q) in float64.

use crate::common::{device_tests, random, read, recorder};
use aquatint::device::Device;
use aquatint::ops::kl::{accumulate, finish, start};

fn log_sum_exp(row: &[f32]) -> f64 {
    let max = row.iter().map(|&l| f64::from(l)).fold(f64::NEG_INFINITY, f64::max);
    max + row.iter().map(|&l| (f64::from(l) - max).exp()).sum::<f64>().ln()
}

fn reference(p: &[f32], q: &[f32]) -> f64 {
    let (lse_p, lse_q) = (log_sum_exp(p), log_sum_exp(q));
    p.iter().zip(q).map(|(&p, &q)| (f64::from(p) - lse_p, f64::from(q) - lse_q)).map(|(p, q)| p.exp() * (p - q)).sum()
}

device_tests!(slabs_add_up_to_the_whole_vocabulary: cpu, software_gpu);
fn slabs_add_up_to_the_whole_vocabulary(device: Device) {
    let mut rec = recorder(&device);
    for (tokens, cuts) in [(1, vec![2]), (9, vec![3, 4, 11]), (5, vec![300, 1000, 1001]), (4_500, vec![2, 3])] {
        let vocabulary = *cuts.last().unwrap();
        for noise in [0.0, 0.1, 5.0] {
            let p: Vec<f32> = random(1, tokens * vocabulary).iter().map(|x| x * 10.0).collect();
            let q: Vec<f32> = p.iter().zip(random(2, p.len())).map(|(p, x)| p + noise * x + 1.0).collect();
            let mut state = start(&mut rec, tokens).unwrap();
            let mut first = 0;
            for &end in &cuts {
                let slab = |x: &[f32]| x.chunks(vocabulary).flat_map(|row| &row[first..end]).copied().collect();
                let p_slab = rec.upload(&[tokens, end - first], slab(&p)).unwrap();
                let q_slab = rec.upload(&[tokens, end - first], slab(&q)).unwrap();
                accumulate(&mut rec, &p_slab, &q_slab, &mut state).unwrap();
                first = end;
            }
            let lse = |x: &[f32]| x.chunks(vocabulary).map(log_sum_exp).collect::<Vec<_>>();
            let found = finish(&read(&mut rec, &state), &lse(&p), &lse(&q));
            assert_eq!(found.len(), tokens);
            for (token, found) in found.iter().enumerate() {
                let row = token * vocabulary..(token + 1) * vocabulary;
                let error = (found - reference(&p[row.clone()], &q[row])).abs();
                assert!(error < 2e-6, "{} {cuts:?} noise {noise}: {error}", device.name());
            }
        }
    }
}

#[test]
fn shapes_that_differ_are_an_error() {
    let mut rec = recorder(&Device::Cpu);
    let p = rec.zeros(&[2, 3]).unwrap();
    let q = rec.zeros(&[2, 4]).unwrap();
    let mut state = start(&mut rec, 2).unwrap();
    assert!(accumulate(&mut rec, &p, &q, &mut state).is_err());
}
