//! The keys of a `scheduler_config.json` while they are read: a key that is missing or null has its class's default.

use crate::{Error, Result, SchedulerClass};
use serde_json::{Map, Value};

/// The keys of a file and the class they are read as.
#[derive(Clone, Copy)]
pub(crate) struct Keys<'a> {
    pub(crate) class: SchedulerClass,
    pub(crate) said: &'a Map<String, Value>,
}

impl Keys<'_> {
    /// The value of a key, or its default; none where both are null or the class has no such key.
    pub(crate) fn value(&self, key: &str) -> Option<Value> {
        let default = self.class.default(key)?;
        let said = self.said.get(key).filter(|value| !value.is_null());
        let value = said.unwrap_or(default);
        (!value.is_null()).then(|| value.clone())
    }

    pub(crate) fn number(&self, key: &str) -> Result<Option<f64>> {
        let Some(value) = self.value(key) else {
            return Ok(None);
        };
        // Python writes infinities into JSON; `strict` has quoted them.
        let number = match value.as_str() {
            Some("-Infinity") => Some(f64::NEG_INFINITY),
            Some("Infinity") => Some(f64::INFINITY),
            _ => value.as_f64(),
        };
        let number = number.ok_or_else(|| wrong(key, &value, "a number"))?;
        Ok(Some(number))
    }

    /// A number within bounds that the words name.
    pub(crate) fn number_in(
        &self,
        key: &str,
        otherwise: f64,
        right: impl Fn(f64) -> bool,
        expected: &str,
    ) -> Result<f64> {
        let number = self.number(key)?.unwrap_or(otherwise);
        match right(number) {
            true => Ok(number),
            false => Err(wrong(key, number, expected)),
        }
    }

    pub(crate) fn count(&self, key: &str, otherwise: usize) -> Result<usize> {
        let Some(value) = self.value(key) else {
            return Ok(otherwise);
        };
        let count = value.as_u64().and_then(|count| usize::try_from(count).ok());
        count.ok_or_else(|| wrong(key, &value, "a whole number of at least 0"))
    }

    /// Whether a flag is set; one that the class lacks is not.
    pub(crate) fn flag(&self, key: &str) -> Result<bool> {
        let Some(value) = self.value(key) else {
            return Ok(false);
        };
        value
            .as_bool()
            .ok_or_else(|| wrong(key, &value, "true or false"))
    }

    /// The meaning of a word; none where the class has no such key or it is null.
    pub(crate) fn word<T: Clone>(&self, key: &str, words: &[(&str, T)]) -> Result<Option<T>> {
        match self.value(key) {
            None => Ok(None),
            Some(value) => meaning(key, &value, words).map(Some),
        }
    }
}

/// The meaning of a word that must be one of these.
pub(crate) fn meaning<T: Clone>(key: &str, value: &Value, words: &[(&str, T)]) -> Result<T> {
    let word = value.as_str();
    let found = words.iter().find(|(name, _)| Some(*name) == word);
    found.map(|(_, meaning)| meaning.clone()).ok_or_else(|| {
        let names: Vec<String> = words.iter().map(|(name, _)| format!("`{name}`")).collect();
        wrong(key, value, format!("one of {}", names.join(", ")))
    })
}

pub(crate) fn wrong(key: &str, value: impl ToString, expected: impl Into<String>) -> Error {
    Error::Value {
        key: key.to_owned(),
        value: value.to_string(),
        expected: expected.into(),
    }
}

/// Python's JSON as JSON: NaN and the infinities, which it writes bare, in quotes.
pub(crate) fn strict(text: &str) -> String {
    let mut strict = String::with_capacity(text.len());
    let (mut rest, mut quoted) = (text, false);
    while let Some(letter) = rest.chars().next() {
        let words = ["-Infinity", "Infinity", "NaN"];
        let word = words
            .iter()
            .find(|word| !quoted && rest.starts_with(**word));
        if let Some(word) = word {
            strict.extend(["\"", word, "\""]);
            rest = rest.get(word.len()..).unwrap_or_default();
            continue;
        }
        let taken = match letter {
            '\\' if quoted => rest.chars().take(2).map(char::len_utf8).sum(),
            _ => letter.len_utf8(),
        };
        quoted ^= letter == '"';
        let (head, tail) = rest.split_at(taken);
        strict.push_str(head);
        rest = tail;
    }
    strict
}
