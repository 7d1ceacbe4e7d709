//! Fuzz target: multiple-choice questions in lines of JSON.

#![no_main]

aquatint_fuzz::target!(tasks);
