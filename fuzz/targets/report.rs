//! Fuzz target: a report, written by `--json` or `--report`.

#![no_main]

aquatint_fuzz::target!(report);
