//! What `--dry-run` says a run will compute, hold and take.

use std::time::Duration;

use aquatint::device::{Device, Memory, Recorder};
use aquatint::quant::QuantizeOptions;
use aquatint::study::forecast::{Extrapolation, Forecast};
use aquatint::{Checkpoint, Result};
use indicatif::{HumanBytes, HumanDuration};

use super::console::Console;
use super::memory::describe;
use super::speed::{operations, summary};

/// Prints the forecast of a run.
pub fn forecast(device: &Device, memory: Memory, model: &Checkpoint, options: &QuantizeOptions) -> Result<()> {
    let mut rec = Recorder::new(device);
    rec.set_memory(memory);
    let forecast = pollster::block_on(Forecast::new(&mut rec, model, options, &Console::quiet()))?;
    say!("work: {}; in all {}", summary(&forecast.work), operations(forecast.operations()));
    if let Some(Extrapolation { seconds, blocks, hidden, tokens }) = forecast.extrapolation {
        say!(
            "time: about {}, as {blocks} random blocks {hidden} wide just took with {tokens} tokens",
            duration(seconds)
        );
    }
    say!(
        "time: at least {}, were all of it as fast as the f32 matrix products just measured, {:.1} Gflop/s",
        duration(forecast.least_seconds()),
        forecast.product_rate / 1e9
    );
    let weights = HumanBytes(model.bytes());
    say!("memory: {}; {weights} of weights are read group by group", describe(&forecast.plan));
    Ok(())
}

fn duration(seconds: f64) -> String {
    match seconds {
        ..600.0 => format!("{seconds:.0} seconds"),
        _ => HumanDuration(Duration::from_secs_f64(seconds)).to_string(),
    }
}
