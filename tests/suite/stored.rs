//! `stored`: layers on every kind of grid, what of them is refused, rows that are divided, and the records that keep them.

use crate::common::{device_tests, kinds, random, read, recorder};
use aquatint::Error;
use aquatint::device::{Device, Recorder};
use aquatint::ops::grid::{GridSpec, ScaleType, Search, Steps, Symmetry, Zero, search};
use aquatint::ops::rtn;
use aquatint::pipeline::BlockRecord;
use aquatint::quant::{Codes, RoundedWeight};
use aquatint::record::BlockReport;
use aquatint::stored::{QuantizedLinear, StoredLinear};
use pollster::block_on;

const ROWS: usize = 5;
const COLUMNS: usize = 83;
const GROUP_SIZE: usize = 4;

/// Every kind of grid.
fn all() -> Vec<(&'static str, GridSpec)> {
    kinds::own(GROUP_SIZE).into_iter().chain(kinds::shared(GROUP_SIZE)).collect()
}

/// A weight with two columns of zeros, rounded to nearest, and what it stands for on the device.
fn layer(rec: &mut Recorder, spec: &GridSpec) -> (QuantizedLinear, Vec<f32>) {
    let values = random(2, ROWS * COLUMNS);
    let values = values.iter().enumerate().map(|(at, v)| if at % COLUMNS < 2 { 0.0 } else { 20.0 * v });
    let weight = rec.upload(&[ROWS, COLUMNS], values.collect()).unwrap();
    let grid = search(rec, &weight, None, spec, Search::Mse).unwrap();
    let (codes, dequantized) = rtn::round(rec, &weight, &grid, spec).unwrap();
    let rounded = RoundedWeight { codes: Some(Codes { spec: *spec, codes, grid }), dequantized };
    let StoredLinear::Codes(linear) = block_on(rounded.store(rec, "layer")).unwrap() else { panic!("no codes") };
    (linear, read(rec, &rounded.dequantized))
}

/// The layers of all kinds, made on the CPU.
fn layers() -> Vec<(&'static str, QuantizedLinear)> {
    let mut rec = recorder(&Device::Cpu);
    all().into_iter().map(|(kind, spec)| (kind, layer(&mut rec, &spec).0)).collect()
}

fn check(linear: &QuantizedLinear) -> aquatint::Result<()> {
    StoredLinear::from(linear.clone()).check()
}

device_tests!(what_is_stored_is_what_the_device_computes_with: cpu, software_gpu);
fn what_is_stored_is_what_the_device_computes_with(device: Device) {
    let mut rec = recorder(&device);
    for (kind, spec) in all() {
        let (linear, dequantized) = layer(&mut rec, &spec);
        check(&linear).unwrap_or_else(|error| panic!("{} {kind}: {error}", device.name()));
        for (at, (stored, computed)) in linear.dequantize().into_iter().zip(dequantized).enumerate() {
            // A device may round the product before it adds the offset.
            let cell = at / COLUMNS * linear.groups() + at % COLUMNS / GROUP_SIZE;
            let slack = if spec.has_offsets() { 2e-7 * linear.zeros[cell].abs() } else { 0.0 };
            assert!((stored - computed).abs() <= slack, "{} {kind} {at}: {stored} {computed}", device.name());
        }
    }
}

#[test]
fn arrays_of_other_sizes_and_codes_beyond_the_largest_are_refused() {
    for (kind, linear) in layers() {
        let refused = |change: &dyn Fn(&mut QuantizedLinear)| {
            let mut other = linear.clone();
            change(&mut other);
            assert!(matches!(check(&other), Err(Error::Shape { .. })), "{kind}");
        };
        refused(&|other| other.codes.truncate(1));
        refused(&|other| other.scales.truncate(1));
        refused(&|other| other.zeros.truncate(1));
        refused(&|other| other.units.push(1.0));
        refused(&|other| other.grid.group_size += 1);
        refused(&|other| other.codes[7] = other.grid.top() as u8 + 1);
        if linear.grid.shared_groups().is_some() {
            refused(&|other| other.units.truncate(1));
            refused(&|other| other.units.clear());
        }
    }
}

#[test]
fn numbers_that_cannot_be_stored_are_refused() {
    for (kind, linear) in layers() {
        let refused = |what: &str, change: &dyn Fn(&mut QuantizedLinear)| {
            let mut other = linear.clone();
            change(&mut other);
            assert!(matches!(check(&other), Err(Error::Shape { .. })), "{kind}: {what}");
        };
        // The bits after the last one of bf16 and of f16.
        let off = |x: f32| f32::from_bits(x.to_bits() ^ 1);
        if linear.grid.scale != Steps::Own(ScaleType::F32) {
            refused("a scale of another type", &|other| other.scales[3] = off(other.scales[3]));
        }
        match linear.grid.zero {
            Zero::Fixed(_) => refused("another fixed zero", &|other| other.zeros[3] += 1.0),
            Zero::Code => {
                refused("a zero with a fraction", &|other| other.zeros[3] = 0.5);
                refused("a zero below 0", &|other| other.zeros[3] = -1.0);
                refused("a zero beyond the codes", &|other| other.zeros[3] = other.grid.top() + 1.0);
            }
            Zero::Offset(Steps::Own(ScaleType::F32)) => {}
            Zero::Offset(_) => refused("an offset of another type", &|other| {
                let cell = other.zeros.iter().position(|o| *o != 0.0).unwrap();
                other.zeros[cell] = off(other.zeros[cell]);
            }),
        }
        if let Steps::Shared { bits, signed, .. } = linear.grid.scale {
            refused("a unit of another type", &|other| other.units[1] = off(other.units[1]));
            let beyond = if signed { 1 << (bits - 1) } else { 1 << bits };
            refused("too many units", &|other| other.scales[3] = beyond as f32 * other.units[0]);
            refused("half a unit", &|other| other.scales[3] = 1.5 * other.units[0]);
            if !signed {
                refused("less than no units", &|other| other.scales[3] = -other.units[0]);
                refused("a positive offset", &|other| other.zeros[3] = other.units[other.units.len() / 2]);
            }
        }
        for number in [f32::NAN, f32::INFINITY] {
            let mut other = linear.clone();
            other.scales[3] = number;
            assert!(matches!(check(&other), Err(Error::NotFinite { .. })), "{kind}");
        }
    }
}

#[test]
fn a_row_that_is_divided_keeps_its_codes_and_stands_for_the_quotient() {
    for (kind, linear) in layers() {
        for divisor in [0.37f32, 1.0, 2.0, 3.3] {
            let mut divided = linear.clone();
            divided.divide_row(2, divisor);
            check(&divided).unwrap_or_else(|error| panic!("{kind} / {divisor}: {error}"));
            assert_eq!(divided.codes, linear.codes, "{kind}");
            // Half of the last bit of the type in which a number, or its unit, is stored.
            let precision = match linear.grid.scale {
                Steps::Own(ScaleType::F32) => 1e-7,
                Steps::Own(ScaleType::Bf16) => 1.0 / 256.0,
                Steps::Own(ScaleType::F16) | Steps::Shared { .. } => 1.0 / 2048.0,
            };
            let (old, new) = (linear.dequantize(), divided.dequantize());
            for (at, (old, new)) in old.into_iter().zip(new).enumerate() {
                if at / COLUMNS != 2 {
                    assert_eq!(old, new, "{kind}: another row");
                    continue;
                }
                let cell = 2 * linear.groups() + at % COLUMNS / GROUP_SIZE;
                let offset = if linear.grid.has_offsets() { linear.zeros[cell] } else { 0.0 };
                let size = ((old - offset).abs() + offset.abs()) / divisor;
                let slack = if matches!(divisor, 1.0 | 2.0) { 0.0 } else { (precision + 2e-7) * size + 1e-7 };
                assert!((new - old / divisor).abs() <= slack, "{kind} / {divisor}: {old} became {new}");
            }
            let quotients = divided.divisible(2).iter().zip(linear.divisible(2));
            for (new, old) in quotients {
                assert!((new * divisor / old - 1.0).abs() <= precision + 2e-7, "{kind} / {divisor}: {old} {new}");
            }
        }
    }
}

#[test]
fn a_record_keeps_every_kind() {
    let linears: Vec<StoredLinear> = layers()
        .into_iter()
        .map(|(kind, linear)| QuantizedLinear { name: format!("layer {kind}"), ..linear }.into())
        .collect();
    let record = BlockRecord {
        block: BlockReport { block: 0, delta: 0.25, error: 0.5 },
        layers: Vec::new(),
        seconds: Default::default(),
        tensors: Vec::new(),
        linears,
        stream: Vec::new(),
    };
    assert_eq!(BlockRecord::from_bytes(&record.to_bytes().unwrap()).as_ref(), Ok(&record));
    for linear in &record.linears {
        let StoredLinear::Codes(whole) = linear else { panic!("no codes") };
        let spec = whole.grid;
        let wrong = [
            QuantizedLinear { units: [&whole.units[..], &[1.0]].concat(), ..whole.clone() },
            QuantizedLinear { grid: GridSpec { bits: 9, ..spec }, ..whole.clone() },
            QuantizedLinear { grid: GridSpec { group_size: 0, ..spec }, ..whole.clone() },
            QuantizedLinear { grid: GridSpec { zero: Zero::Fixed(1 << spec.bits), ..spec }, ..whole.clone() },
            QuantizedLinear {
                grid: GridSpec { scale: Steps::Shared { bits: 40, signed: false, groups: 1 }, ..spec },
                ..whole.clone()
            },
            QuantizedLinear {
                grid: GridSpec { scale: Steps::Shared { bits: 6, signed: false, groups: 0 }, ..spec },
                ..whole.clone()
            },
        ];
        for linear in wrong {
            let bytes = BlockRecord { linears: vec![linear.into()], ..record.clone() }.to_bytes().unwrap();
            assert!(BlockRecord::from_bytes(&bytes).is_err());
        }
    }
}

#[test]
fn a_scale_of_the_wrong_sign_is_not_stored() {
    let mut rec = recorder(&Device::Cpu);
    for (spec, scale, stores) in [
        (GridSpec::new(4, 2, Symmetry::Symmetric, ScaleType::F16), -0.5, false),
        (kinds::signed(4, 8, 2, ScaleType::F16), -0.5, true),
        (kinds::signed(4, 8, 2, ScaleType::F16), 0.0, false),
        (GridSpec::with_offsets(4, 2, ScaleType::F16), -0.5, false),
    ] {
        let grid = crate::common::grid_of(&mut rec, [1, 1], vec![scale], vec![8.0]);
        let codes = Some(Codes { spec, codes: rec.zeros(&[1, 2]).unwrap(), grid });
        let rounded = RoundedWeight { codes, dequantized: rec.zeros(&[1, 2]).unwrap() };
        let stored = block_on(rounded.store(&mut rec, "layer"));
        assert_eq!(stored.is_ok(), stores, "{spec:?} {scale}");
    }
}
