//! Readers of what many families write into `config.json` in the same way.

pub(crate) mod fields;
pub(super) mod rope;
