//! The key-value pairs at the head of a GGUF file.

/// A value of the metadata.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// An unsigned number of 8 bits.
    U8(u8),
    /// A signed number of 8 bits.
    I8(i8),
    /// An unsigned number of 16 bits.
    U16(u16),
    /// A signed number of 16 bits.
    I16(i16),
    /// An unsigned number of 32 bits.
    U32(u32),
    /// A signed number of 32 bits.
    I32(i32),
    /// A float of 32 bits.
    F32(f32),
    /// A truth value.
    Bool(bool),
    /// A text.
    Text(String),
    /// A list of values of one type, which is not a list itself. An empty list counts as one of signed 32-bit numbers.
    List(Vec<Value>),
    /// An unsigned number of 64 bits.
    U64(u64),
    /// A signed number of 64 bits.
    I64(i64),
    /// A float of 64 bits.
    F64(f64),
}

/// The key-value pairs of a file, in the order in which they are stored. Every key occurs once.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Metadata {
    pairs: Vec<(String, Value)>,
}

impl Metadata {
    /// No pairs.
    pub fn new() -> Self {
        Self::default()
    }

    /// These pairs. Every key must occur once.
    pub(super) fn from_pairs(pairs: Vec<(String, Value)>) -> Self {
        Self { pairs }
    }

    /// Sets `key` to `value`, in the place of its previous value or at the end.
    pub fn set(&mut self, key: impl Into<String>, value: Value) {
        let key = key.into();
        match self.pairs.iter_mut().find(|(known, _)| *known == key) {
            Some((_, old)) => *old = value,
            None => self.pairs.push((key, value)),
        }
    }

    /// The value of `key`.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.pairs.iter().find(|(known, _)| known == key).map(|(_, value)| value)
    }

    /// All pairs in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.pairs.iter().map(|(key, value)| (key.as_str(), value))
    }
}
