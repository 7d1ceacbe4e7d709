//! Tables. Each is in a box that scrolls sideways if the page is too narrow.

use super::Escaped;

/// Up to this many columns fit on paper in type of normal size.
const NARROW: usize = 8;

/// A table of text. Every row begins with its heading.
pub struct Table {
    /// Headings of the columns, including the column of row headings.
    pub head: Vec<String>,
    /// Rows, each as long as `head`.
    pub rows: Vec<Vec<String>>,
}

impl Table {
    /// The table with rows and columns exchanged.
    pub fn transposed(&self) -> Self {
        let column = |at: usize| std::iter::once(&self.head).chain(&self.rows).map(|row| row[at].clone()).collect();
        Self { head: column(0), rows: (1..self.head.len()).map(column).collect() }
    }

    /// The element. `name`: a description for readers who do not see the table.
    pub fn html(&self, name: &str) -> String {
        let head: String = self.head.iter().map(|cell| format!("<th scope=\"col\">{}</th>", Escaped(cell))).collect();
        let rows: String = self.rows.iter().map(|row| tr(row)).collect();
        let class = if self.head.len() > NARROW { "scroll wide" } else { "scroll" };
        format!(
            "<div class=\"{class}\" role=\"region\" tabindex=\"0\" aria-label=\"{}\"><table>\n\
             <thead><tr>{head}</tr></thead>\n<tbody>\n{rows}</tbody></table></div>\n",
            Escaped(name)
        )
    }
}

fn tr(row: &[String]) -> String {
    let cell = |(at, cell): (usize, &String)| match at {
        0 => format!("<th scope=\"row\">{}</th>", Escaped(cell)),
        _ => format!("<td>{}</td>", Escaped(cell)),
    };
    let cells: String = row.iter().enumerate().map(cell).collect();
    format!("<tr>{cells}</tr>\n")
}
