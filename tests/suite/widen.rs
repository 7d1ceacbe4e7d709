//! `ops::widen`: stored elements as f32, compared with the definition of each format, bit for bit.

use crate::common::{device_tests, recorder};
use aquatint::device::{Device, Recorder};
use aquatint::ops::widen::{Encoding, widen};
use aquatint::tensor::Tensor;
use pollster::block_on;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// The number that `bits` stand for: a sign, `exponent` bits and `mantissa` bits. `None` for a NaN or an infinity.
fn defined(bits: u32, exponent: u32, mantissa: u32) -> Option<f32> {
    let sign = if bits >> (exponent + mantissa) == 1 { -1.0 } else { 1.0 };
    let field = (bits >> mantissa) & ((1 << exponent) - 1);
    let fraction = f64::from(bits & ((1 << mantissa) - 1)) / f64::from(1u32 << mantissa);
    let bias = (1 << (exponent - 1)) - 1;
    match field {
        0 => Some((sign * fraction * 2f64.powi(1 - bias)) as f32),
        _ if field == (1 << exponent) - 1 => None,
        _ => Some((sign * (1.0 + fraction) * 2f64.powi(field as i32 - bias)) as f32),
    }
}

fn value(encoding: Encoding, bits: u32) -> Option<f32> {
    match encoding {
        Encoding::F32 => defined(bits, 8, 23),
        Encoding::F16 => defined(bits, 5, 10),
        Encoding::Bf16 => defined(bits, 8, 7),
    }
}

fn stored(encoding: Encoding, elements: &[u32]) -> Vec<u8> {
    elements.iter().flat_map(|bits| bits.to_le_bytes()[..encoding.size()].to_vec()).collect()
}

/// Widens `elements` into a tensor of sevens, from `start` on, with three more elements after them. Returns its bits and the flag.
fn run(rec: &mut Recorder, encoding: Encoding, elements: &[u32], start: usize) -> (Vec<u32>, Tensor<u32>) {
    let end = start + elements.len();
    let words = rec.upload_bytes(&stored(encoding, elements)).unwrap();
    let mut out = rec.upload(&[end + 3], vec![7.0; end + 3]).unwrap();
    let mut flag = rec.zeros(&[1]).unwrap();
    widen(rec, encoding, &words, start..end, &mut out, &mut flag).unwrap();
    let bits = block_on(rec.read(&out)).unwrap().into_iter().map(f32::to_bits).collect();
    (bits, flag)
}

fn flag(rec: &mut Recorder, flag: &Tensor<u32>) -> u32 {
    block_on(rec.read(flag)).unwrap()[0]
}

/// Checks that the finite `elements` come out exact and unflagged, and that nothing around them is written.
fn check(device: &Device, rec: &mut Recorder, encoding: Encoding, elements: &[u32], start: usize) {
    let (bits, raised) = run(rec, encoding, elements, start);
    let around = [7.0f32; 3].map(f32::to_bits);
    let inside = elements.iter().map(|&bits| value(encoding, bits).expect("a finite element").to_bits());
    let expected: Vec<u32> = vec![around[0]; start].into_iter().chain(inside).chain(around).collect();
    let first = bits.iter().zip(&expected).position(|(a, b)| a != b);
    let at = format!("{} {encoding:?}, {} elements from {start} on", device.name(), elements.len());
    assert_eq!(first.map(|i| (i, bits[i], expected[i])), None, "{at}");
    assert_eq!(flag(rec, &raised), 0, "{at}");
}

const HALVES: [Encoding; 2] = [Encoding::F16, Encoding::Bf16];

device_tests!(every_finite_pattern_of_sixteen_bits_is_exact: cpu, software_gpu);
fn every_finite_pattern_of_sixteen_bits_is_exact(device: Device) {
    let mut rec = recorder(&device);
    for encoding in HALVES {
        let finite: Vec<u32> = (0..1 << 16).filter(|&bits| value(encoding, bits).is_some()).collect();
        assert_eq!(finite.len(), if encoding == Encoding::F16 { 63488 } else { 65280 });
        check(&device, &mut rec, encoding, &finite, 0);
        // Once more, each element in the other half of its word.
        check(&device, &mut rec, encoding, &finite[1..], 5);
    }
}

device_tests!(every_pattern_of_sixteen_bits_that_is_not_finite_raises_the_flag: cpu, software_gpu);
fn every_pattern_of_sixteen_bits_that_is_not_finite_raises_the_flag(device: Device) {
    let mut rec = recorder(&device);
    for encoding in HALVES {
        let bad: Vec<u32> = (0..1 << 16).filter(|&bits| value(encoding, bits).is_none()).collect();
        assert_eq!(bad.len(), if encoding == Encoding::F16 { 2048 } else { 256 });
        let mut out = rec.zeros(&[5]).unwrap();
        let flags: Vec<Tensor<u32>> = (0..bad.len())
            .map(|i| {
                let mut elements = vec![0x3c00; 1 + i % 5];
                let place = i / 5 % elements.len();
                elements[place] = bad[i];
                let words = rec.upload_bytes(&stored(encoding, &elements)).unwrap();
                let mut flag = rec.zeros(&[1]).unwrap();
                widen(&mut rec, encoding, &words, 0..elements.len(), &mut out, &mut flag).unwrap();
                flag
            })
            .collect();
        for (bits, raised) in bad.iter().zip(&flags) {
            assert_eq!(flag(&mut rec, raised), 1, "{} {encoding:?} {bits:#06x}", device.name());
        }
    }
}

device_tests!(thirty_two_bits_stay_as_they_are: cpu, software_gpu);
fn thirty_two_bits_stay_as_they_are(device: Device) {
    let edges = [0, 1, 0x007f_ffff, 0x0080_0000, 0x3f80_0000, 0x7f7f_ffff];
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let random = (0..5000).map(|_| rng.random::<u32>()).filter(|&bits| value(Encoding::F32, bits).is_some());
    let finite: Vec<u32> = edges.into_iter().chain(edges.map(|bits| bits | 1 << 31)).chain(random).collect();
    let mut rec = recorder(&device);
    check(&device, &mut rec, Encoding::F32, &finite, 3);
    for bad in [0x7f80_0000, 0xff80_0000, 0x7f80_0001, 0x7fc0_0000, 0xffff_ffff] {
        let (_, raised) = run(&mut rec, Encoding::F32, &[0x3f80_0000, bad, 0], 1);
        assert_eq!(flag(&mut rec, &raised), 1, "{} {bad:#x}", device.name());
    }
}

device_tests!(odd_counts_at_odd_places: cpu, software_gpu);
fn odd_counts_at_odd_places(device: Device) {
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    let mut rec = recorder(&device);
    for encoding in [Encoding::F32, Encoding::F16, Encoding::Bf16] {
        let limit = if encoding == Encoding::F32 { u32::MAX } else { 0xffff };
        // The last count takes more workgroups than `spread` gives one axis.
        for (count, start) in [(1, 0), (2, 1), (3, 7), (255, 2), (257, 1), (511, 0), (513, 3), (2_100_001, 1)] {
            let elements: Vec<u32> = std::iter::repeat_with(|| rng.random_range(0..=limit))
                .filter(|&bits| value(encoding, bits).is_some())
                .take(count)
                .collect();
            check(&device, &mut rec, encoding, &elements, start);
        }
    }
}

device_tests!(what_lies_behind_the_last_element_is_not_looked_at_and_a_raised_flag_stays: cpu, software_gpu);
fn what_lies_behind_the_last_element_is_not_looked_at_and_a_raised_flag_stays(device: Device) {
    let mut rec = recorder(&device);
    for encoding in HALVES {
        let words = rec.upload(&[2], vec![0, 0xffff_0000]).unwrap();
        let mut out = rec.zeros(&[4]).unwrap();
        let mut raised = rec.zeros(&[1]).unwrap();
        widen(&mut rec, encoding, &words, 1..4, &mut out, &mut raised).unwrap();
        assert_eq!(flag(&mut rec, &raised), 0, "{} {encoding:?}", device.name());
        widen(&mut rec, encoding, &words, 0..4, &mut out, &mut raised).unwrap();
        let zero = rec.zeros(&[1]).unwrap();
        widen(&mut rec, encoding, &zero, 0..2, &mut out, &mut raised).unwrap();
        assert_eq!(flag(&mut rec, &raised), 1, "{} {encoding:?}", device.name());
    }
}

#[test]
fn operands_that_do_not_fit_are_an_error() {
    let mut rec = recorder(&Device::Cpu);
    let words = rec.zeros(&[2]).unwrap();
    let mut out = rec.zeros(&[4]).unwrap();
    let mut flag = rec.zeros(&[1]).unwrap();
    let mut refused = |encoding, range| widen(&mut rec, encoding, &words, range, &mut out, &mut flag).is_err();
    assert!(refused(Encoding::F32, 0..3));
    assert!(refused(Encoding::F16, 0..2));
    assert!(refused(Encoding::F16, 1..5));
    assert!(!refused(Encoding::F16, 1..4));
    assert!(!refused(Encoding::Bf16, 0..4));
    assert!(!refused(Encoding::F32, 2..4));
}
