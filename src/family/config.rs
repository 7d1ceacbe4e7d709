//! Readers of what many families write into `config.json` in the same way.

pub(super) mod dimensions;
pub(crate) mod fields;
pub(super) mod rope;
pub(super) mod window;
