//! Prints every shader permutation as JSON, `[{"name", "source"}]`: for compilers other than naga, such as a browser's, whose
//! rules on uniform control flow are stricter.

use aquatint::device::shader;
use serde_json::json;

fn main() {
    let list: Vec<_> = shader::permutations()
        .map(|permutation| json!({ "name": permutation.name, "source": permutation.source() }))
        .collect();
    println!("{}", serde_json::Value::from(list));
}
