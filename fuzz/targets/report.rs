//! What --json or --report wrote.

#![no_main]

aquatint_fuzz::target!(report);
