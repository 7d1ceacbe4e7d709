//! Changes of the values of a tensor on its way from one checkpoint into another. Formats differ from the source in
//! such conventions: where the gain of a norm counts from, in which order rows lie, which side of a matrix comes first.

use super::floats;
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
    /// Rows and columns of a matrix change places.
    Transpose,
}

impl Change {
    /// The order of rows that moves the two halves of each head into each other: row 2j of a head is row j of its first
    /// half, row 2j + 1 is row j of its second half. A projection of queries or keys whose rotary embedding turns halves
    /// then suits one that turns neighbours.
    ///
    /// Errors: `Error::Shape` unless `rows` is a multiple of 2·`heads`.
    pub fn halves_to_neighbours(rows: usize, heads: usize) -> Result<Self> {
        if heads == 0 || !rows.is_multiple_of(2 * heads) {
            return Err(Error::shape("Change::halves_to_neighbours", format!("{rows} rows in {heads} heads")));
        }
        let width = rows / heads;
        let row = |at: usize| at / width * width + at % 2 * (width / 2) + at % width / 2;
        Ok(Self::Rows((0..rows).map(|at| row(at) as u32).collect()))
    }

    /// The shape of the result for a tensor of the shape `shape`.
    ///
    /// Errors: `Error::Shape` if the change does not suit the shape: an order of other rows, or a transposition of
    /// anything but a matrix.
    pub fn shape(&self, shape: &[usize]) -> Result<Vec<usize>> {
        match (self, shape) {
            (Self::None | Self::PlusOne, _) => Ok(shape.to_vec()),
            (Self::Rows(order), [rows, ..]) if is_order(order, *rows) => Ok(shape.to_vec()),
            (Self::Transpose, [rows, columns]) => Ok(vec![*columns, *rows]),
            _ => Err(Error::shape("Change::shape", format!("{self:?} of a tensor of shape {shape:?}"))),
        }
    }

    /// Whether a row of the result depends on the same row of the tensor only, so that rows can be changed one by one.
    pub fn is_by_row(&self) -> bool {
        matches!(self, Self::None | Self::PlusOne)
    }

    /// Changes `values`, a tensor of the shape `shape`, row-major. The shape must have passed [`Change::shape`].
    pub fn apply(&self, mut values: Vec<f32>, shape: &[usize]) -> Vec<f32> {
        match self {
            Self::None => values,
            Self::PlusOne => {
                values.iter_mut().for_each(|value| *value += 1.0);
                values
            }
            Self::Rows(order) => ordered(&values, order),
            Self::Transpose => floats::transpose(&values, [shape[0], shape[1]]),
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
    fn values_and_shapes_change_together() {
        let shape = [3, 2];
        let changed = |change: &Change| (change.apply(numbers(6), &shape), change.shape(&shape).unwrap());
        assert_eq!(changed(&Change::None), (numbers(6), vec![3, 2]));
        assert_eq!(changed(&Change::PlusOne), (vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0], vec![3, 2]));
        assert_eq!(changed(&Change::Rows(vec![2, 0, 1])), (vec![4.0, 5.0, 0.0, 1.0, 2.0, 3.0], vec![3, 2]));
        assert_eq!(changed(&Change::Transpose), (vec![0.0, 2.0, 4.0, 1.0, 3.0, 5.0], vec![2, 3]));
        // A bias has rows of one number; a stack of matrices has rows that are matrices.
        assert_eq!(Change::Rows(vec![1, 0]).apply(numbers(2), &[2]), [1.0, 0.0]);
        assert_eq!(Change::Rows(vec![1, 0]).apply(numbers(8), &[2, 2, 2])[..2], [4.0, 5.0]);
    }

    #[test]
    fn a_change_that_does_not_suit_the_shape_is_an_error() {
        assert!(Change::Transpose.shape(&[4]).is_err() && Change::Transpose.shape(&[1, 2, 3]).is_err());
        for order in [vec![0, 1], vec![0, 1, 1], vec![0, 1, 3], vec![0, 1, 2, 3]] {
            assert!(Change::Rows(order).shape(&[3, 2]).is_err());
        }
        assert!(Change::Rows(Vec::new()).shape(&[]).is_err());
    }

    #[test]
    fn halves_move_into_each_other_within_each_head() {
        // w.reshape(heads, 2, half, columns).swapaxes(1, 2), as llama.cpp's converter writes it.
        for (heads, half, columns) in [(1, 3, 2), (3, 2, 1), (2, 4, 5)] {
            let rows = heads * 2 * half;
            let mut expected = Vec::new();
            for (head, j, side) in (0..heads).flat_map(|h| (0..half).flat_map(move |j| [(h, j, 0), (h, j, 1)])) {
                let row = head * 2 * half + side * half + j;
                expected.extend((0..columns).map(|column| (row * columns + column) as f32));
            }
            let change = Change::halves_to_neighbours(rows, heads).unwrap();
            assert_eq!(change.shape(&[rows, columns]).unwrap(), [rows, columns]);
            assert_eq!(change.apply(numbers(rows * columns), &[rows, columns]), expected);
        }
        assert!(Change::halves_to_neighbours(6, 2).is_err() && Change::halves_to_neighbours(6, 0).is_err());
    }
}
