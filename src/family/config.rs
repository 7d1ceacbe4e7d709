//! Readers of the parts of `config.json` that many families write in the same way.
//!
//! `fields` gives typed access to JSON and records what was read, `dimensions` reads widths and counts, `activation` the
//! function of the MLP, `rope` the rotary position embedding, and `window` the sliding windows of attention. `unread`
//! judges the keys that nobody read.

pub(super) mod activation;
pub(super) mod dimensions;
pub(crate) mod fields;
pub(super) mod rope;
pub(super) mod unread;
pub(super) mod window;
