//! Fuzz target: config.json.

#![no_main]

aquatint_fuzz::target!(config);
