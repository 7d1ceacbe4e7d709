//! Fuzz target: the record of a finished block, which `--resume` reads.

#![no_main]

aquatint_fuzz::target!(record, weights after |_| 0);
