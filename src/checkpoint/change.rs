//! Changes of the values of a tensor on its way from one checkpoint into another. Formats differ from the source in
//! such conventions: where the gain of a norm counts from, and in which order rows lie. No change moves a number out of its row.

use crate::{Error, Result};

/// What happens to the values of a tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// They stay as they are.
    None,
    /// One is added to each value. This is for norms whose gains count from 1 in the source and from 0 in the files.
    PlusOne,
    /// Rows change places: row i of the result is row `order[i]` of the tensor. Rows run along the first dimension.
    Rows(Vec<u32>),
}

impl Change {
    /// Checks that the change suits a tensor of the shape `shape`. Errors: `Error::Shape` for an order of other rows.
    pub fn check(&self, shape: &[usize]) -> Result<()> {
        match (self, shape) {
            (Self::None | Self::PlusOne, _) => Ok(()),
            (Self::Rows(order), [rows, ..]) if is_order(order, *rows) => Ok(()),
            _ => Err(Error::shape("Change::check", format!("{self:?} of a tensor of shape {shape:?}"))),
        }
    }

    /// Whether a row of the result depends on the same row of the tensor only, so that rows can be changed one by one.
    pub fn is_by_row(&self) -> bool {
        matches!(self, Self::None | Self::PlusOne)
    }

    /// Changes `values`, a tensor whose shape has passed [`Change::check`], row-major.
    pub fn apply(&self, mut values: Vec<f32>) -> Vec<f32> {
        match self {
            Self::None => values,
            Self::PlusOne => {
                values.iter_mut().for_each(|value| *value += 1.0);
                values
            }
            Self::Rows(order) => ordered(&values, order),
        }
    }
}

/// The rows of `values` in the order `order`, which names each of them. The rows are of equal length.
pub fn ordered<T: Copy>(values: &[T], order: &[u32]) -> Vec<T> {
    let width = values.len() / order.len().max(1);
    order.iter().flat_map(|&row| &values[row as usize * width..][..width]).copied().collect()
}

/// Whether `order` names each of `rows` rows once.
fn is_order(order: &[u32], rows: usize) -> bool {
    let mut sorted = order.to_vec();
    sorted.sort_unstable();
    order.len() == rows && sorted.iter().enumerate().all(|(index, &row)| index == row as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(count: usize) -> Vec<f32> {
        (0..count).map(|at| at as f32).collect()
    }

    #[test]
    fn values_change_and_the_shape_stays() {
        let changed = |change: &Change| {
            change.check(&[3, 2]).unwrap();
            change.apply(numbers(6))
        };
        assert_eq!(changed(&Change::None), numbers(6));
        assert_eq!(changed(&Change::PlusOne), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        assert_eq!(changed(&Change::Rows(vec![2, 0, 1])), [4.0, 5.0, 0.0, 1.0, 2.0, 3.0]);
        // A bias has rows of one number; a stack of matrices has rows that are matrices.
        assert_eq!(Change::Rows(vec![1, 0]).apply(numbers(2)), [1.0, 0.0]);
        assert_eq!(Change::Rows(vec![1, 0]).apply(numbers(8))[..2], [4.0, 5.0]);
    }

    #[test]
    fn a_change_that_does_not_suit_the_shape_is_an_error() {
        for order in [vec![0, 1], vec![0, 1, 1], vec![0, 1, 3], vec![0, 1, 2, 3]] {
            assert!(Change::Rows(order).check(&[3, 2]).is_err());
        }
        assert!(Change::Rows(Vec::new()).check(&[]).is_err());
    }
}
