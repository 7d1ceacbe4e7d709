//! Operations in words, and the memory of this process.

use std::collections::BTreeMap;

use aquatint::record::Phase;

/// Operations as a phrase: 7.1 Tflop.
pub fn operations(count: f64) -> String {
    let units = ["flop", "kflop", "Mflop", "Gflop", "Tflop", "Pflop", "Eflop"];
    let step = if count < 1.0 { 0 } else { ((count.log10() / 3.0) as usize).min(units.len() - 1) };
    format!("{:.3} {}", count / 1000f64.powi(step as i32), units[step])
}

/// The operations of each phase, in order, as a phrase.
pub fn summary(work: &BTreeMap<Phase, f64>) -> String {
    let parts: Vec<String> =
        work.iter().map(|(phase, count)| format!("{} {}", phase.label(), operations(*count))).collect();
    parts.join(", ")
}

/// The most memory that this process has held, in bytes; `None` where the system does not say.
pub fn peak_memory() -> Option<u64> {
    status("VmHWM:")
}

/// The memory of this process that no file backs, in bytes; `None` where the system does not say.
pub fn anonymous_memory() -> Option<u64> {
    status("RssAnon:")
}

/// The size in bytes that Linux reports under `key`.
fn status(key: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(key))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
}
