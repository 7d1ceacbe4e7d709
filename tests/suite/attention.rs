//! `ops::attention`: causal grouped-query attention, compared with its definition in float64. Covers whole sequences, and pieces of
//! a sequence with a cache.

use crate::common::{device_tests, random, read, recorder, relative_error};
use aquatint::device::{Device, Recorder};
use aquatint::ops::Positions;
use aquatint::ops::attention::{Heads, attention};

fn heads(heads: usize, kv_heads: usize, head_dim: usize) -> Heads {
    let scale = 1.0 / (head_dim as f32).sqrt();
    Heads { heads, kv_heads, head_dim, window: None, scale, softcap: None, alibi: None }
}

/// The positions of the queries, and the number of rows of K and V that each sequence has.
#[derive(Debug, Clone, Copy)]
struct Layout {
    positions: Positions,
    capacity: usize,
}

fn whole(seq_len: usize) -> Layout {
    Layout { positions: Positions::whole(seq_len), capacity: seq_len }
}

/// The ALiBi slopes of `heads` heads, step by step as `build_alibi_tensor` of transformers makes them.
fn slopes(heads: usize) -> Vec<f64> {
    let closest = 2f64.powf((heads as f64).log2().floor());
    let base = 2f64.powf(-(2f64.powf(-(closest.log2() - 3.0))));
    let mut slopes: Vec<f64> = (1..=closest as i32).map(|power| base.powi(power)).collect();
    if heads != closest as usize {
        let extra_base = 2f64.powf(-(2f64.powf(-((2.0 * closest).log2() - 3.0))));
        let remaining = (closest as usize).min(heads - closest as usize);
        slopes.extend((1..1 + 2 * remaining as i32).step_by(2).map(|power| extra_base.powi(power)));
    }
    slopes
}

/// The reference for one query head at one token: a softmax over the visible keys, then the weighted sum of their values.
fn one_head([q, k, v]: [&[f32]; 3], h: Heads, layout: Layout, token: usize, head: usize) -> Vec<f64> {
    let dim = h.head_dim;
    let Positions { first, seq_len } = layout.positions;
    let (sequence, position) = (token / seq_len, first + token % seq_len);
    let sees = |j: &usize| h.window.is_none_or(|window| j + window > position);
    let row = |j: usize| ((sequence * layout.capacity + j) * h.kv_heads + head / (h.heads / h.kv_heads)) * dim;
    let query = &q[(token * h.heads + head) * dim..][..dim];
    let score = |j: usize| {
        let product: f64 = query.iter().zip(&k[row(j)..]).map(|(&q, &k)| f64::from(q) * f64::from(k)).sum();
        let scaled = product * f64::from(h.scale);
        let capped = h.softcap.map_or(scaled, |cap| f64::from(cap) * (scaled / f64::from(cap)).tanh());
        capped + h.alibi.map_or(0.0, |factor| f64::from(factor) * slopes(h.heads)[head] * (j as f64 - position as f64))
    };
    let scores: Vec<(usize, f64)> = (0..=position).filter(sees).map(|j| (j, score(j))).collect();
    let max = scores.iter().map(|s| s.1).fold(f64::NEG_INFINITY, f64::max);
    let total: f64 = scores.iter().map(|s| (s.1 - max).exp()).sum();
    (0..dim).map(|i| scores.iter().map(|&(j, s)| (s - max).exp() / total * f64::from(v[row(j) + i])).sum()).collect()
}

/// Random keys or values. Rows of the cache beyond the last token hold NaN, so that reading one would show.
fn cached(seed: u64, h: Heads, layout: Layout, sequences: usize) -> Vec<f32> {
    let width = h.kv_heads * h.head_dim;
    let mut values = random(seed, sequences * layout.capacity * width);
    for rows in values.chunks_exact_mut(layout.capacity * width) {
        rows[layout.positions.end() * width..].fill(f32::NAN);
    }
    values
}

fn compare(rec: &mut Recorder, h: Heads, layout: Layout, sequences: usize, spread: f32) {
    let (tokens, rows) = (sequences * layout.positions.seq_len, sequences * layout.capacity);
    let (q_width, kv_width) = (h.heads * h.head_dim, h.kv_heads * h.head_dim);
    let q: Vec<f32> = random(1, tokens * q_width).iter().map(|x| x * spread).collect();
    let (k, v) = (cached(2, h, layout, sequences), cached(3, h, layout, sequences));
    let q_tensor = rec.upload(&[tokens, q_width], q.clone()).unwrap();
    let k_tensor = rec.upload(&[rows, kv_width], k.clone()).unwrap();
    let v_tensor = rec.upload(&[rows, kv_width], v.clone()).unwrap();
    let out = attention(rec, &q_tensor, &k_tensor, &v_tensor, h, layout.positions).unwrap();
    assert_eq!(out.shape(), [tokens, q_width]);
    let expected: Vec<f64> =
        (0..tokens * h.heads).flat_map(|row| one_head([&q, &k, &v], h, layout, row / h.heads, row % h.heads)).collect();
    let error = relative_error(&read(rec, &out), &expected);
    // A score of size s has an absolute error of about s·ε, which is the relative error of its exponential.
    let bound = 1e-6 * f64::from(spread);
    assert!(error < bound, "{} {h:?}, {layout:?}, {sequences} sequences: {error}", rec.device().name());
}

device_tests!(every_grouping_of_heads_and_length: cpu, software_gpu);
fn every_grouping_of_heads_and_length(device: Device) {
    let mut rec = recorder(&device);
    for (h, seq_len, sequences) in [
        (heads(1, 1, 4), 1, 1),
        (heads(9, 3, 6), 1, 5),
        (heads(9, 3, 6), 21, 2),
        (heads(2, 1, 64), 65, 2),
        (heads(3, 3, 17), 64, 1),
        (heads(4, 2, 32), 150, 1),
    ] {
        compare(&mut rec, h, whole(seq_len), sequences, 1.0);
    }
}

device_tests!(wide_heads: cpu, software_gpu);
fn wide_heads(device: Device) {
    let mut rec = recorder(&device);
    for head_dim in [65, 80, 128, 129, 256] {
        compare(&mut rec, heads(2, 1, head_dim), whole(135), 1, 1.0);
    }
    // Heads of several parts, the last of which may be narrower than the others.
    for head_dim in [257, 320, 448, 511, 512] {
        compare(&mut rec, heads(2, 1, head_dim), whole(70), 2, 1.0);
    }
}

device_tests!(a_window_hides_old_keys: cpu, software_gpu);
fn a_window_hides_old_keys(device: Device) {
    let mut rec = recorder(&device);
    for (seq_len, window) in [(21, 1), (21, 5), (150, 3), (150, 64), (150, 70), (150, 149), (21, 21), (21, 500)] {
        compare(&mut rec, Heads { window: Some(window), ..heads(2, 1, 6) }, whole(seq_len), 2, 1.0);
    }
}

device_tests!(queries_see_what_a_cache_holds_and_no_more: cpu, software_gpu);
fn queries_see_what_a_cache_holds_and_no_more(device: Device) {
    let mut rec = recorder(&device);
    for (first, seq_len, capacity) in [(0, 3, 10), (1, 1, 2), (70, 1, 100), (64, 1, 65), (37, 70, 150), (130, 65, 195)]
    {
        let layout = Layout { positions: Positions { first, seq_len }, capacity };
        for (h, sequences) in [(heads(9, 3, 6), 1), (heads(2, 1, 32), 3), (heads(2, 1, 80), 1)] {
            compare(&mut rec, h, layout, sequences, 1.0);
            for window in [1, 5, 66] {
                compare(&mut rec, Heads { window: Some(window), ..h }, layout, sequences, 1.0);
            }
        }
    }
}

device_tests!(the_scale_is_the_callers: cpu, software_gpu);
fn the_scale_is_the_callers(device: Device) {
    let mut rec = recorder(&device);
    for scale in [1.0, 0.015_625, -0.7] {
        compare(&mut rec, Heads { scale, ..heads(4, 2, 24) }, whole(70), 1, 1.0);
    }
}

device_tests!(a_cap_bounds_the_scores: cpu, software_gpu);
fn a_cap_bounds_the_scores(device: Device) {
    let mut rec = recorder(&device);
    for (cap, spread) in [(50.0, 1.0), (2.0, 1.0), (50.0, 100.0), (0.5, 1000.0)] {
        let h = Heads { softcap: Some(cap), ..heads(4, 2, 24) };
        compare(&mut rec, h, whole(70), 2, spread);
        compare(&mut rec, Heads { window: Some(9), ..h }, whole(150), 1, spread);
    }
}

device_tests!(alibi_favours_near_keys: cpu, software_gpu);
fn alibi_favours_near_keys(device: Device) {
    let mut rec = recorder(&device);
    for (count, kv_heads) in [(1, 1), (2, 1), (3, 3), (6, 2), (8, 8), (12, 4), (71, 1)] {
        for factor in [1.0, 0.125] {
            let h = Heads { alibi: Some(factor), ..heads(count, kv_heads, 8) };
            compare(&mut rec, h, whole(21), 2, 1.0);
        }
    }
    let h = Heads { alibi: Some(1.0), ..heads(5, 1, 80) };
    compare(&mut rec, h, whole(150), 1, 1.0);
    compare(&mut rec, Heads { softcap: Some(3.0), ..h }, whole(150), 1, 1.0);
}

#[test]
fn slopes_are_those_of_the_paper() {
    let slopes = |count| (0..count).map(|head| heads(count, 1, 1).slope(head)).collect::<Vec<_>>();
    assert_eq!(slopes(8), [0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015625, 0.0078125, 0.00390625]);
    // "Train Short, Test Long": twelve heads are not a power of two. The last four lie between the first five.
    let between: Vec<f64> = (0..4).map(|head| (-0.5 - f64::from(head)).exp2()).collect();
    assert_eq!(slopes(12)[..8], slopes(8));
    assert_eq!(slopes(12)[8..], between);
    for count in 1..=130 {
        let expected = self::slopes(count);
        let close = |(ours, theirs): (&f64, &f64)| (ours / theirs - 1.0).abs() < 1e-12;
        assert_eq!(expected.len(), count);
        assert!(slopes(count).iter().zip(&expected).all(close), "{count} heads");
    }
}

device_tests!(every_form_of_score_reads_a_cache: cpu, software_gpu);
fn every_form_of_score_reads_a_cache(device: Device) {
    let mut rec = recorder(&device);
    for (first, seq_len, capacity) in [(70, 1, 100), (37, 70, 150)] {
        let layout = Layout { positions: Positions { first, seq_len }, capacity };
        for h in [
            Heads { softcap: Some(1.5), scale: 1.0, ..heads(4, 2, 24) },
            Heads { alibi: Some(1.0), ..heads(6, 2, 24) },
            heads(2, 1, 300),
            Heads { softcap: Some(1.5), alibi: Some(0.5), ..heads(3, 1, 512) },
        ] {
            for window in [None, Some(1), Some(66)] {
                compare(&mut rec, Heads { window, ..h }, layout, 2, 1.0);
            }
        }
    }
}

device_tests!(a_sequence_in_pieces_is_the_sequence_at_once: cpu, software_gpu);
fn a_sequence_in_pieces_is_the_sequence_at_once(device: Device) {
    const TOKENS: usize = 141;
    let mut rec = recorder(&device);
    for h in [
        heads(6, 2, 8),
        Heads { window: Some(9), ..heads(6, 2, 8) },
        Heads { softcap: Some(1.0), alibi: Some(1.0), ..heads(6, 2, 8) },
        heads(2, 1, 260),
    ] {
        let (q_width, kv_width) = (h.heads * h.head_dim, h.kv_heads * h.head_dim);
        let q = rec.upload(&[TOKENS, q_width], random(1, TOKENS * q_width)).unwrap();
        let k = rec.upload(&[TOKENS, kv_width], random(2, TOKENS * kv_width)).unwrap();
        let v = rec.upload(&[TOKENS, kv_width], random(3, TOKENS * kv_width)).unwrap();
        let at_once = attention(&mut rec, &q, &k, &v, h, Positions::whole(TOKENS)).unwrap();
        let at_once: Vec<f64> = read(&mut rec, &at_once).into_iter().map(f64::from).collect();
        let mut pieces = Vec::new();
        for (first, end) in [(0, 1), (1, 68), (68, 69), (69, TOKENS)] {
            let part = rec.copy_rows(&q, first, end - first).unwrap();
            let positions = Positions { first, seq_len: end - first };
            let out = attention(&mut rec, &part, &k, &v, h, positions).unwrap();
            pieces.extend(read(&mut rec, &out));
        }
        let error = relative_error(&pieces, &at_once);
        assert!(error < 1e-6, "{} {h:?}: {error}", device.name());
    }
}

device_tests!(large_scores_do_not_overflow: cpu, software_gpu);
fn large_scores_do_not_overflow(device: Device) {
    compare(&mut recorder(&device), heads(2, 2, 16), whole(90), 1, 300.0);
}

device_tests!(more_workgroups_than_an_axis_is_given: cpu, software_gpu);
fn more_workgroups_than_an_axis_is_given(device: Device) {
    let mut rec = recorder(&device);
    compare(&mut rec, heads(2, 1, 2), whole(1), 2_100, 1.0);
    compare(&mut rec, heads(2, 1, 257), whole(1), 1_050, 1.0);
}

device_tests!(later_tokens_and_other_sequences_change_nothing: cpu, software_gpu);
fn later_tokens_and_other_sequences_change_nothing(device: Device) {
    let mut rec = recorder(&device);
    let h = heads(1, 1, 8);
    let run = |rec: &mut Recorder, k: Vec<f32>| {
        let q = rec.upload(&[140, 8], random(1, 140 * 8)).unwrap();
        let k = rec.upload(&[140, 8], k).unwrap();
        let out = attention(rec, &q, &k, &k, h, Positions::whole(70)).unwrap();
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

#[test]
fn heads_that_do_not_fit_are_an_error() {
    let mut rec = recorder(&Device::Cpu);
    let q = rec.zeros(&[6, 12]).unwrap();
    let k = rec.zeros(&[6, 4]).unwrap();
    let fits = heads(3, 1, 4);
    let three = Positions::whole(3);
    for (heads, positions, is_right) in [
        (fits, three, true),
        (Heads { kv_heads: 2, ..fits }, three, false),
        (Heads { kv_heads: 3, ..fits }, three, false),
        (Heads { head_dim: 2, ..fits }, three, false),
        (Heads { window: Some(0), ..fits }, three, false),
        (Heads { softcap: Some(2.0), ..fits }, three, true),
        (Heads { softcap: Some(0.0), ..fits }, three, false),
        (Heads { softcap: Some(f32::NAN), ..fits }, three, false),
        (fits, Positions::whole(4), false),
        (fits, Positions::whole(0), false),
        (fits, Positions { first: 1, seq_len: 3 }, false),
    ] {
        let result = attention(&mut rec, &q, &k, &k, heads, positions);
        assert_eq!(result.is_ok(), is_right, "{heads:?}, {positions:?}");
    }
    // The rows of a cache for two sequences must divide by two.
    for (rows, is_right) in [(5, false), (6, true), (7, false), (8, true)] {
        let cache = rec.zeros(&[rows, 4]).unwrap();
        assert_eq!(attention(&mut rec, &q, &cache, &cache, fits, three).is_ok(), is_right, "{rows} rows");
    }
}
