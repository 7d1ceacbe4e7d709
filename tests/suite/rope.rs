//! `ops::rope`: compared with the rotation of each pair in float64.

use crate::common::{device_tests, random, read, recorder, relative_error};
use aquatint::device::Device;
use aquatint::ops::Positions;
use aquatint::ops::rope::{Pairs, rope};

/// The table of angles with base 10000, in f32 as the loader of a checkpoint makes it.
fn table(positions: usize, head_dim: usize) -> Vec<f32> {
    let half = head_dim / 2;
    let angle = |p: usize, i: usize| p as f64 * 10000f64.powf(-(i as f64) / half as f64);
    (0..positions)
        .flat_map(|p| {
            let cos = (0..half).map(move |i| angle(p, i).cos() as f32);
            cos.chain((0..half).map(move |i| angle(p, i).sin() as f32))
        })
        .collect()
}

fn reference(
    x: &[f32],
    table: &[f32],
    [heads, head_dim, rotated]: [usize; 3],
    pairs: Pairs,
    positions: Positions,
) -> Vec<f64> {
    let half = rotated / 2;
    let turned = |at: usize| {
        let (token, i) = (at / (heads * head_dim), at % head_dim);
        if i >= rotated {
            return f64::from(x[at]);
        }
        let row = &table[(positions.first + token % positions.seq_len) * rotated..][..rotated];
        // The number of the pair, the distance of its columns, and whether this is its first column.
        let (pair, distance, is_first) = match pairs {
            Pairs::Halves => (i % half, half, i < half),
            Pairs::Neighbours => (i / 2, 1, i % 2 == 0),
        };
        let (cos, sin) = (f64::from(row[pair]), f64::from(row[half + pair]));
        let other = f64::from(if is_first { -x[at + distance] } else { x[at - distance] });
        f64::from(x[at]) * cos + other * sin
    };
    (0..x.len()).map(turned).collect()
}

device_tests!(turns_each_pair_by_its_position: cpu, software_gpu);
fn turns_each_pair_by_its_position(device: Device) {
    let mut rec = recorder(&device);
    for (case, [sequences, first, seq_len, heads, head_dim, rotated]) in [
        [1, 0, 1, 1, 2, 2],
        [1, 0, 5, 3, 6, 6],
        [2, 0, 21, 1, 64, 64],
        [3, 0, 65, 9, 10, 10],
        [3, 0, 65, 9, 10, 4],
        [2, 5, 9, 3, 7, 2],
        [41, 0, 200, 4, 64, 64],
        [1, 300, 1, 3, 8, 8],
        [2, 7, 33, 5, 6, 6],
    ]
    .into_iter()
    .enumerate()
    {
        let positions = Positions { first, seq_len };
        let longest = positions.end() + 3;
        let tokens = sequences * seq_len;
        let values = random(case as u64, tokens * heads * head_dim);
        let angles = table(longest, rotated);
        let t = rec.upload(&[longest, rotated], angles.clone()).unwrap();
        for pairs in [Pairs::Halves, Pairs::Neighbours] {
            let mut x = rec.upload(&[tokens, heads * head_dim], values.clone()).unwrap();
            rope(&mut rec, &mut x, &t, head_dim, pairs, positions).unwrap();
            let expected = reference(&values, &angles, [heads, head_dim, rotated], pairs, positions);
            let error = relative_error(&read(&mut rec, &x), &expected);
            assert!(
                error < 1e-6,
                "{} {sequences} of {positions:?}, {heads}×{head_dim}, {rotated} turned as {pairs:?}: {error}",
                device.name()
            );
        }
    }
}

#[test]
fn an_odd_head_and_a_short_table_are_errors() {
    let mut rec = recorder(&Device::Cpu);
    let mut x = rec.zeros(&[4, 6]).unwrap();
    let odd = rec.zeros(&[4, 3]).unwrap();
    assert!(rope(&mut rec, &mut x, &odd, 3, Pairs::Halves, Positions::whole(4)).is_err());
    let wide = rec.zeros(&[4, 6]).unwrap();
    assert!(
        rope(&mut rec, &mut x, &wide, 3, Pairs::Halves, Positions::whole(4)).is_err(),
        "more columns turn than a head has"
    );
    let short = rec.zeros(&[3, 6]).unwrap();
    for (first, seq_len) in [(0, 4), (2, 2)] {
        let refused = rope(&mut rec, &mut x, &short, 6, Pairs::Neighbours, Positions { first, seq_len }).unwrap_err();
        assert!(refused.to_string().contains("table [3, 6]"));
    }
    assert!(rope(&mut rec, &mut x, &short, 6, Pairs::Neighbours, Positions::whole(3)).is_ok());
    assert!(rope(&mut rec, &mut x, &short, 6, Pairs::Neighbours, Positions { first: 1, seq_len: 2 }).is_ok());
}
