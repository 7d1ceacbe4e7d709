//! Fuzz target: a calibration text, plain or in lines of JSON.

#![no_main]

aquatint_fuzz::target!(calibration);
