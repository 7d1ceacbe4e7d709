//! Causal grouped-query attention against its definition in float64.

use crate::common::{devices, random, read, recorder, relative_error};
use aquatint::device::{Device, Recorder};
use aquatint::ops::attention::{Heads, attention};

fn heads(heads: usize, kv_heads: usize, head_dim: usize, seq_len: usize) -> Heads {
    Heads { heads, kv_heads, head_dim, seq_len, window: None }
}

/// One query head at one token: softmax over the keys that it sees, then the weighted sum of their values.
fn one_head(q: &[f32], k: &[f32], v: &[f32], h: Heads, token: usize, head: usize) -> Vec<f64> {
    let dim = h.head_dim;
    let position = token % h.seq_len;
    let sees = |j: usize| j <= position && h.window.is_none_or(|window| j + window > position);
    let row = |j: usize| ((token - position + j) * h.kv_heads + head / (h.heads / h.kv_heads)) * dim;
    let query = &q[(token * h.heads + head) * dim..][..dim];
    let score = |j: usize| {
        let product: f64 = query.iter().zip(&k[row(j)..]).map(|(&q, &k)| f64::from(q) * f64::from(k)).sum();
        product / (dim as f64).sqrt()
    };
    let scores: Vec<(usize, f64)> = (0..h.seq_len).filter(|&j| sees(j)).map(|j| (j, score(j))).collect();
    let max = scores.iter().map(|s| s.1).fold(f64::NEG_INFINITY, f64::max);
    let total: f64 = scores.iter().map(|s| (s.1 - max).exp()).sum();
    (0..dim).map(|i| scores.iter().map(|&(j, s)| (s - max).exp() / total * f64::from(v[row(j) + i])).sum()).collect()
}

fn compare(rec: &mut Recorder, h: Heads, sequences: usize, spread: f32) {
    let tokens = sequences * h.seq_len;
    let (q_width, kv_width) = (h.heads * h.head_dim, h.kv_heads * h.head_dim);
    let q: Vec<f32> = random(1, tokens * q_width).iter().map(|x| x * spread).collect();
    let (k, v) = (random(2, tokens * kv_width), random(3, tokens * kv_width));
    let q_tensor = rec.upload(&[tokens, q_width], q.clone()).unwrap();
    let k_tensor = rec.upload(&[tokens, kv_width], k.clone()).unwrap();
    let v_tensor = rec.upload(&[tokens, kv_width], v.clone()).unwrap();
    let out = attention(rec, &q_tensor, &k_tensor, &v_tensor, h).unwrap();
    assert_eq!(out.shape(), [tokens, q_width]);
    let expected: Vec<f64> =
        (0..tokens * h.heads).flat_map(|row| one_head(&q, &k, &v, h, row / h.heads, row % h.heads)).collect();
    let error = relative_error(&read(rec, &out), &expected);
    // A score of size s has an absolute error of about s·ε, which is the relative error of its exponential.
    let bound = 1e-6 * f64::from(spread);
    assert!(error < bound, "{} {h:?}, {sequences} sequences: {error}", rec.device().name());
}

#[test]
fn every_grouping_of_heads_and_length() {
    for device in devices() {
        let mut rec = recorder(&device);
        for (h, sequences) in [
            (heads(1, 1, 4, 1), 1),
            (heads(9, 3, 6, 1), 5),
            (heads(9, 3, 6, 21), 2),
            (heads(2, 1, 64, 65), 2),
            (heads(3, 3, 17, 64), 1),
            (heads(4, 2, 32, 150), 1),
        ] {
            compare(&mut rec, h, sequences, 1.0);
        }
    }
}

#[test]
fn wide_heads() {
    for device in devices() {
        let mut rec = recorder(&device);
        for head_dim in [65, 80, 128, 129, 256] {
            compare(&mut rec, heads(2, 1, head_dim, 135), 1, 1.0);
        }
    }
}

#[test]
fn a_window_hides_old_keys() {
    for device in devices() {
        let mut rec = recorder(&device);
        for (seq_len, window) in [(21, 1), (21, 5), (150, 3), (150, 64), (150, 70), (150, 149), (21, 21), (21, 500)] {
            compare(&mut rec, Heads { window: Some(window), ..heads(2, 1, 6, seq_len) }, 2, 1.0);
        }
    }
}

#[test]
fn large_scores_do_not_overflow() {
    for device in devices() {
        compare(&mut recorder(&device), heads(2, 2, 16, 90), 1, 300.0);
    }
}

#[test]
fn more_workgroups_than_an_axis_is_given() {
    for device in devices() {
        compare(&mut recorder(&device), heads(2, 1, 2, 1), 2_100, 1.0);
    }
}

#[test]
fn later_tokens_and_other_sequences_change_nothing() {
    for device in devices() {
        let mut rec = recorder(&device);
        let h = heads(1, 1, 8, 70);
        let run = |rec: &mut Recorder, k: Vec<f32>| {
            let q = rec.upload(&[140, 8], random(1, 140 * 8)).unwrap();
            let k = rec.upload(&[140, 8], k).unwrap();
            let out = attention(rec, &q, &k, &k, h).unwrap();
            read(rec, &out)
        };
        let k = random(2, 140 * 8);
        let mut changed = k.clone();
        changed[66 * 8..70 * 8].fill(50.0);
        let (before, after) = (run(&mut rec, k), run(&mut rec, changed));
        assert_eq!(before[..66 * 8], after[..66 * 8]);
        assert_eq!(before[70 * 8..], after[70 * 8..]);
        assert!((66 * 8..70 * 8).all(|i| before[i] != after[i]));
    }
}

#[test]
fn heads_that_do_not_fit_are_an_error() {
    let mut rec = recorder(&Device::Cpu);
    let q = rec.zeros(&[6, 12]).unwrap();
    let k = rec.zeros(&[6, 4]).unwrap();
    let fits = heads(3, 1, 4, 3);
    assert!(attention(&mut rec, &q, &k, &k, fits).is_ok());
    for wrong in [
        Heads { kv_heads: 2, ..fits },
        Heads { kv_heads: 3, ..fits },
        Heads { seq_len: 4, ..fits },
        Heads { head_dim: 2, ..fits },
        Heads { window: Some(0), ..fits },
    ] {
        assert!(attention(&mut rec, &q, &k, &k, wrong).is_err(), "{wrong:?}");
    }
}
