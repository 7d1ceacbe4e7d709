//! Prints every kernel of the portable tier as JSON, `[{"name", "source"}]`. Other compilers than naga can be tried on it, such as a
//! browser's, whose rules on uniform control flow are stricter.

use aquatint::device::shader;
use serde_json::json;

fn main() {
    let list: Vec<_> = shader::permutations()
        .filter(|permutation| !permutation.is_fast())
        .map(|permutation| json!({ "name": permutation.name, "source": permutation.source(false) }))
        .collect();
    println!("{}", serde_json::Value::from(list));
}
