//! Whole groups on every kind of grid: GPTQ with descent beats rounding to nearest on the same kind, and what is stored lies on it.

use crate::common::dense::{Dense, hessian, objective};
use crate::common::{device_tests, kinds, random, read, recorder};
use aquatint::device::{Device, Recorder};
use aquatint::ops::gram::{self, Packed};
use aquatint::ops::grid::GridSpec;
use aquatint::quant::methods::{GroupInput, Layer, ScaleSearch};
use aquatint::quant::{ActivationOrder, Codes, Curvature, HessianDiagonal, Method, QuantizeOptions, RoundedWeight};
use pollster::block_on;

/// Rounds and refines `w` with the method of `options` on a grid of the kind `spec`.
fn rounded(rec: &mut Recorder, w: &Dense, h: &Packed, options: &QuantizeOptions, spec: &GridSpec) -> RoundedWeight {
    let diagonal = block_on(HessianDiagonal::of(rec, h, "test")).unwrap();
    let curvature = Some(Curvature { hessian: h, diagonal: &diagonal, place: "test" });
    let input = GroupInput { options, curvature, magnitudes: None };
    let rounder = block_on(options.method.quantizer().prepare(rec, input, ScaleSearch::default())).unwrap();
    let weight = rec.upload(&[w.rows, w.columns], w.f32()).unwrap();
    let layer = Layer { name: "layer", grid: *spec };
    let rounded = block_on(rounder.round(rec, layer, &weight)).unwrap();
    rounder.refine(rec, &weight, rounded).unwrap()
}

device_tests!(gptq_and_descent_lose_less_than_rounding_to_nearest: cpu, software_gpu);
fn gptq_and_descent_lose_less_than_rounding_to_nearest(device: Device) {
    let mut rec = recorder(&device);
    for (m, n, group_size) in [(19, 131, 16), (5, 70, 70)] {
        let (w, h) = (Dense::new(m, n, &random(21, m * n)), hessian(21, n));
        let dense = rec.upload(&[n, n], h.f32()).unwrap();
        let packed = gram::pack(&mut rec, &dense).unwrap();
        for (kind, spec) in kinds::own(group_size).into_iter().chain(kinds::shared(group_size)) {
            let loss = |rec: &mut Recorder, rounded: &RoundedWeight| {
                objective(&w.minus(&Dense::new(m, n, &read(rec, &rounded.dequantized))), &h)
            };
            let rtn = QuantizeOptions { method: Method::Rtn, ..Default::default() };
            let nearest = rounded(&mut rec, &w, &packed, &rtn, &spec);
            let nearest = loss(&mut rec, &nearest);
            for order in [ActivationOrder::Natural, ActivationOrder::Descending] {
                let losses = [0, 3].map(|descent_passes| {
                    let options = QuantizeOptions { activation_order: order, descent_passes, ..Default::default() };
                    let rounded = rounded(&mut rec, &w, &packed, &options, &spec);
                    let stored = block_on(rounded.store(&mut rec, "layer")).unwrap();
                    stored.check().unwrap_or_else(|error| panic!("{} {kind}: {error}", device.name()));
                    let Some(Codes { grid, .. }) = &rounded.codes else { panic!("no codes") };
                    assert_eq!(grid.units.is_some(), spec.shared_groups().is_some());
                    loss(&mut rec, &rounded)
                });
                let context = format!("{} {m} × {n} {kind} {order:?}: RTN {nearest}, {losses:?}", device.name());
                assert!(losses[0] < 0.9 * nearest, "{context}");
                assert!(losses[1] < losses[0], "{context}");
            }
        }
    }
}
