//! `aquatint devices`: the list of adapters.

use aquatint::Result;
use aquatint::device::{Choice, Precision};
use aquatint::ops::tier;
use comfy_table::{Table, presets};
use indicatif::HumanBytes;

use super::names::OptionNames;
use super::shapes::CommandLine;

/// Prints the adapters, and which device `auto` takes.
pub fn run() -> Result<()> {
    let adapters = pollster::block_on(tier::adapters(&CommandLine));
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(vec![
        "",
        "name",
        "backend",
        "kind",
        "tier",
        "binding",
        "buffer",
        "workgroup",
        "threads",
        "driver",
    ]);
    for a in &adapters {
        table.add_row(vec![
            a.index.to_string(),
            a.name.clone(),
            a.backend.clone(),
            if a.software { "software" } else { "GPU" }.to_string(),
            a.tier.with_names(&OptionNames),
            HumanBytes(a.largest_binding).to_string(),
            HumanBytes(a.largest_buffer).to_string(),
            HumanBytes(a.workgroup_memory.into()).to_string(),
            a.workgroup_invocations.to_string(),
            a.driver.clone(),
        ]);
    }
    table.add_row(vec!["cpu".to_string(), format!("{} threads", rayon::current_num_threads())]);
    say!("{table}");
    let (device, reason) = pollster::block_on(tier::open(&Choice::Auto, Precision::Portable, &CommandLine))?;
    say!("auto takes {}: {}", device.name(), reason.with_names(&OptionNames));
    Ok(())
}
