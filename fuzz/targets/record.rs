//! The record of a finished block, for --resume.

#![no_main]

aquatint_fuzz::target!(record, weights after |_| 0);
