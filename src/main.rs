//! The `aquatint` command.
fn main() {}
