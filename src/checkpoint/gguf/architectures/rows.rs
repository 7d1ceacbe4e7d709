//! The order of the rows of a tensor in a GGUF file, where it is not that of the model.

use crate::family::Columns;

/// Which row of a tensor of the model each row in the file is. Codes and scales of quantized rows move alike.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RowOrder {
    /// The order of the model.
    Same,
    /// Heads of `head_dim` rows, in each of which two rows that turn together lie side by side. In the model, the first
    /// half of a head turns with its second half.
    Neighbours {
        /// Rows of a head.
        head_dim: usize,
    },
    /// All rows of the first part, then those of the next ones. In the model, the parts lie side by side in every run of
    /// rows: the query, the key and the value of a head.
    Parts(Vec<Columns>),
}

impl RowOrder {
    /// For each of the `rows` rows in the file, the row of the model.
    pub fn sources(&self, rows: usize) -> Vec<usize> {
        match self {
            Self::Same => (0..rows).collect(),
            &Self::Neighbours { head_dim } => {
                let source = |row: usize| {
                    let (head, inner) = (row / head_dim, row % head_dim);
                    head * head_dim + inner / 2 + inner % 2 * (head_dim / 2)
                };
                (0..rows).map(source).collect()
            }
            Self::Parts(parts) => {
                let part = |part: &Columns| {
                    let part = *part;
                    (0..rows / part.period * part.width).map(move |row| part.source(row))
                };
                parts.iter().flat_map(part).collect()
            }
        }
    }

    /// For each of the `rows` rows of the model, the row in the file.
    pub fn targets(&self, rows: usize) -> Vec<usize> {
        let mut targets = vec![0; rows];
        self.sources(rows).into_iter().enumerate().for_each(|(row, source)| targets[source] = row);
        targets
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_move_into_each_other_within_each_head() {
        // w.reshape(heads, 2, half, …).swapaxes(1, 2), as llama.cpp's converter writes it.
        for (heads, half) in [(1, 3), (3, 2), (2, 4)] {
            let places = (0..heads).flat_map(|head| (0..half).flat_map(move |j| [(head, j, 0), (head, j, 1)]));
            let expected: Vec<usize> = places.map(|(head, j, side)| head * 2 * half + side * half + j).collect();
            assert_eq!(RowOrder::Neighbours { head_dim: 2 * half }.sources(heads * 2 * half), expected);
        }
    }
}
