//! `ops::nll`: next-token scores, slab by slab, compared with a log-softmax over the whole vocabulary in float64.

use crate::common::{device_tests, random, read, recorder};
use aquatint::device::{Device, Recorder};
use aquatint::ops::nll::{TokenScore, accumulate, finish, start};

/// The scores of `[tokens, vocabulary]` logits that are handed over in slabs, cut at `cuts`.
fn scores(rec: &mut Recorder, logits: &[f32], targets: &[u32], cuts: &[usize]) -> Vec<TokenScore> {
    let (tokens, vocabulary) = (targets.len(), *cuts.last().unwrap());
    let target_tensor = rec.upload(&[tokens], targets.to_vec()).unwrap();
    let mut state = start(rec, tokens).unwrap();
    let mut first = 0;
    for &end in cuts {
        let slab = logits.chunks(vocabulary).flat_map(|row| &row[first..end]).copied().collect();
        let slab = rec.upload(&[tokens, end - first], slab).unwrap();
        accumulate(rec, &slab, first, &target_tensor, &mut state).unwrap();
        first = end;
    }
    finish(&read(rec, &state))
}

fn reference(row: &[f32], target: u32) -> TokenScore {
    let max = row.iter().fold(f32::NEG_INFINITY, |a, &b| a.max(b));
    let sum: f64 = row.iter().map(|&l| (f64::from(l) - f64::from(max)).exp()).sum();
    let log_sum_exp = f64::from(max) + sum.ln();
    let argmax = row.iter().position(|&l| l == max).unwrap() as u32;
    TokenScore { nll: log_sum_exp - f64::from(row[target as usize]), log_sum_exp, argmax }
}

device_tests!(slabs_add_up_to_the_whole_vocabulary: cpu, software_gpu);
fn slabs_add_up_to_the_whole_vocabulary(device: Device) {
    let mut rec = recorder(&device);
    for (tokens, cuts) in
        [(1, vec![1]), (9, vec![3, 4, 11]), (5, vec![300, 1000, 1001]), (3, vec![2500]), (4_500, vec![2, 3])]
    {
        let vocabulary = *cuts.last().unwrap();
        for scale in [1.0, 30.0, 3000.0] {
            let logits: Vec<f32> = random(1, tokens * vocabulary).iter().map(|x| x * scale).collect();
            let targets: Vec<u32> = (0..tokens).map(|t| (t * vocabulary / tokens) as u32).collect();
            let found = scores(&mut rec, &logits, &targets, &cuts);
            assert_eq!(found.len(), tokens);
            for (token, found) in found.iter().enumerate() {
                let expected = reference(&logits[token * vocabulary..][..vocabulary], targets[token]);
                let error = (found.nll - expected.nll).abs().max((found.log_sum_exp - expected.log_sum_exp).abs());
                let bound = 1e-6 * f64::from(scale).max(1.0);
                assert!(error < bound, "{} {cuts:?} ×{scale}: {error}", device.name());
                assert_eq!(found.argmax, expected.argmax, "{} {cuts:?} ×{scale}", device.name());
            }
        }
    }
}

device_tests!(the_target_may_lie_in_any_slab_and_the_first_of_equals_wins: cpu, software_gpu);
fn the_target_may_lie_in_any_slab_and_the_first_of_equals_wins(device: Device) {
    let mut rec = recorder(&device);
    let row = [0.5, 2.0, -1.0, 2.0, 0.0, 2.0, 1.0];
    for target in 0..7 {
        let found = scores(&mut rec, &row, &[target], &[2, 5, 7])[0];
        let expected = reference(&row, target);
        assert!((found.nll - expected.nll).abs() < 1e-6, "{} target {target}: {found:?}", device.name());
        assert_eq!(found.argmax, 1, "{}", device.name());
    }
}

device_tests!(no_target_means_no_loss: cpu, software_gpu);
fn no_target_means_no_loss(device: Device) {
    let found = scores(&mut recorder(&device), &[0.0; 4], &[u32::MAX], &[3, 4])[0];
    assert!(found.nll.is_nan() && (found.log_sum_exp - 4f64.ln()).abs() < 1e-6, "{found:?}");
}

#[test]
fn operands_that_do_not_fit_are_an_error() {
    let mut rec = recorder(&Device::Cpu);
    let logits = rec.zeros(&[2, 3]).unwrap();
    let targets = rec.upload::<u32>(&[2], vec![0; 2]).unwrap();
    let mut state = start(&mut rec, 2).unwrap();
    assert!(accumulate(&mut rec, &logits, 0, &targets, &mut state).is_ok());
    assert!(accumulate(&mut rec, &logits, (1 << 24) - 2, &targets, &mut state).is_err());
    let mut short = start(&mut rec, 1).unwrap();
    assert!(accumulate(&mut rec, &logits, 0, &targets, &mut short).is_err());
}
