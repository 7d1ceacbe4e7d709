//! Set-up and chores, so that no shell lore is needed.
fn main() {}
