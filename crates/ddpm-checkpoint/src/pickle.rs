//! Pickles as PyTorch writes them, read by a machine that builds containers, numbers, texts and tensors and calls nothing.
//!
//! A pickle is a program for a stack machine; Python's own lets it call any function of any module. This one knows the
//! names of a few containers and of PyTorch's tensors and storages, makes those values itself, and refuses every other
//! name. candle has a reader too, but it copies a value each time the program refers to it again (a kilobyte can ask for
//! more memory than there is), believes lengths before they are read, and knows no lists.
//!
//! Values lie in one list and refer to each other by place, so a pickle that contains itself costs no more than its
//! bytes, and one that is a million tuples deep is freed without a million calls.

mod class;
mod machine;

pub(crate) use class::{Element, StoredTensor};
pub(crate) use machine::run;

/// A value's place.
pub(crate) type Id = usize;

/// What a pickle makes.
#[derive(Debug)]
pub(crate) enum Value {
    None,
    Int(i64),
    Fraction(f64),
    Truth(bool),
    Text(String),
    /// Tuples, lists and sets.
    Items(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Class(class::Class),
    Storage(class::Storage),
    Tensor(StoredTensor),
}

/// The values of a pickle that was read.
#[derive(Debug)]
pub(crate) struct Pickle {
    pub(crate) values: Vec<Value>,
    /// The value that the pickle is.
    pub(crate) root: Id,
}

impl Pickle {
    pub(crate) fn get(&self, id: Id) -> &Value {
        // Every place was made by the machine.
        self.values.get(id).unwrap_or(&Value::None)
    }

    pub(crate) fn text(&self, id: Id) -> Option<&str> {
        match self.get(id) {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The items of a tuple or list.
    pub(crate) fn items(&self, id: Id) -> Option<&[Id]> {
        match self.get(id) {
            Value::Items(items) => Some(items),
            _ => None,
        }
    }
}
