//! Prints the source of every kernel of the portable tier as JSON, `[{"name", "source"}]`.
//!
//! The output can be used to test other WGSL compilers than naga. The compiler of a browser, for example, has stricter
//! rules on uniform control flow.

use aquatint::device::shader;
use serde_json::json;

fn main() {
    let list: Vec<_> = shader::permutations()
        .filter(|permutation| !permutation.is_fast())
        .map(|permutation| json!({ "name": permutation.name, "source": permutation.source(false) }))
        .collect();
    println!("{}", serde_json::Value::from(list));
}
