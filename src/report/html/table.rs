//! Tables, each in a box of its own that scrolls sideways where the page is too narrow.

use super::Escaped;

/// Up to this many columns fit on paper in type of ordinary size.
const NARROW: usize = 8;

/// A table of text: every row begins with its heading.
pub struct Table {
    /// Headings of the columns, that of the row headings included.
    pub head: Vec<String>,
    /// Rows as long as `head`.
    pub rows: Vec<Vec<String>>,
}

impl Table {
    /// Rows as columns and columns as rows.
    pub fn transposed(&self) -> Self {
        let column = |at: usize| std::iter::once(&self.head).chain(&self.rows).map(|row| row[at].clone()).collect();
        Self { head: column(0), rows: (1..self.head.len()).map(column).collect() }
    }

    /// The element. `name`: what the table holds, for those who do not see it.
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
