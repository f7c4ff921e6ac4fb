//! The stack machine: one instruction a byte, and for each that can be met in PyTorch's files what it does.

use std::collections::HashMap;

use super::class::{Class, MOST_AXES, Storage, StoredTensor};
use super::{Id, Pickle, Value};

/// The most instructions: a hundred thousand tensors, and what bounds memory and time whatever the bytes are.
const MOST_STEPS: usize = 4_000_000;
/// The most arguments of a call that are looked at.
const MOST_ARGUMENTS: usize = 8;
/// Letters of a storage's name, which is a number or an address.
const LONGEST_KEY: usize = 100;

/// What went wrong, in words that follow "pickle:".
type Step<T> = Result<T, String>;

/// Runs the pickle that begins at `start`; returns it and the place after it.
///
/// # Errors
/// Words that say what is wrong with it, with the place of the byte.
pub(crate) fn run(bytes: &[u8], start: usize) -> Result<(Pickle, usize), String> {
    let mut machine = Machine {
        bytes,
        at: start,
        values: Vec::new(),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
        copied: 0,
    };
    for _ in 0..MOST_STEPS {
        let place = machine.at;
        let done = machine
            .step()
            .map_err(|what| format!("{what} (byte {place})"))?;
        if let Some(root) = done {
            let values = machine.values;
            return Ok((Pickle { values, root }, machine.at));
        }
    }
    Err(format!("it has more than {MOST_STEPS} instructions"))
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    values: Vec<Value>,
    stack: Vec<Id>,
    /// How high the stack was at each mark that is open.
    marks: Vec<usize>,
    memo: HashMap<usize, Id>,
    /// Values that calls have copied into dicts.
    copied: usize,
}

impl Machine<'_> {
    /// One instruction; the root value if it is the last.
    fn step(&mut self) -> Step<Option<Id>> {
        match self.byte()? {
            b'.' => return self.pop().map(Some),
            0x80 => {
                let version = self.byte()?;
                if version > 5 {
                    return Err(format!("protocol {version} is not known"));
                }
            }
            0x95 => drop(self.take(8)?),
            b'N' => self.push(Value::None),
            code @ (0x88 | 0x89) => self.push(Value::Truth(code == 0x88)),
            code @ (b'K' | b'M' | b'J' | 0x8a | 0x8b | b'G') => self.number(code)?,
            code @ (b'X' | 0x8c | 0x8d | b'T' | b'U' | b'B' | b'C' | 0x8e) => self.text(code)?,
            b'}' => self.push(Value::Dict(Vec::new())),
            b']' | b')' | 0x8f => self.push(Value::Items(Vec::new())),
            code @ (0x85..=0x87) => {
                let items = self.pop_many(usize::from(code - 0x84))?;
                self.push(Value::Items(items));
            }
            b'(' => self.marks.push(self.stack.len()),
            b't' | b'l' | 0x91 => {
                let items = self.pop_to_mark()?;
                self.push(Value::Items(items));
            }
            b'd' => {
                let pairs = pairs(&self.pop_to_mark()?)?;
                self.push(Value::Dict(pairs));
            }
            b'a' => {
                let items = self.pop_many(1)?;
                self.append(&items)?;
            }
            b'e' | 0x90 => {
                let items = self.pop_to_mark()?;
                self.append(&items)?;
            }
            b's' => {
                let items = self.pop_many(2)?;
                self.set(&items)?;
            }
            b'u' => {
                let items = self.pop_to_mark()?;
                self.set(&items)?;
            }
            code => self.rest(code)?,
        }
        Ok(None)
    }

    /// Memory, names and calls.
    fn rest(&mut self, code: u8) -> Step<()> {
        match code {
            b'0' => drop(self.pop()?),
            b'1' => drop(self.pop_to_mark()?),
            b'2' => {
                let top = self.top()?;
                self.stack.push(top);
            }
            b'q' => {
                let place = self.unsigned(1)?;
                self.remember(place)?;
            }
            b'r' => {
                let place = self.unsigned(4)?;
                self.remember(place)?;
            }
            0x94 => self.remember(self.memo.len())?,
            code @ (b'h' | b'j') => {
                let place = self.unsigned(if code == b'h' { 1 } else { 4 })?;
                let known = self.memo.get(&place).copied();
                let known = known
                    .ok_or_else(|| format!("it recalls value {place}, which it never kept"))?;
                self.stack.push(known);
            }
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.name(&module, &name)?;
            }
            0x93 => {
                let parts = self.pop_many(2)?;
                let text = |id: Id| match &self.values[id] {
                    Value::Text(text) => Ok(text.clone()),
                    _ => Err("the name of a class is no text".to_owned()),
                };
                let (module, name) = (text(parts[0])?, text(parts[1])?);
                self.name(&module, &name)?;
            }
            b'Q' => self.persistent()?,
            b'R' | 0x81 => {
                let parts = self.pop_many(2)?;
                let made = self.call(parts[0], parts[1])?;
                self.stack.push(made);
            }
            b'b' => self.build()?,
            code => {
                return Err(format!(
                    "instruction {code:#04x} is not one of those that tensors and containers need"
                ));
            }
        }
        Ok(())
    }

    // ------------------------------------------------------------ bytes

    fn take(&mut self, count: usize) -> Step<&[u8]> {
        let end = self.at.checked_add(count);
        let taken = end.and_then(|end| self.bytes.get(self.at..end));
        let taken = taken.ok_or("it is cut short")?;
        self.at += count;
        Ok(taken)
    }

    fn byte(&mut self) -> Step<u8> {
        Ok(self.take(1)?[0])
    }

    /// A little-endian number of so many bytes, at most 8.
    fn unsigned(&mut self, count: usize) -> Step<usize> {
        let mut number = [0; 8];
        number[..count].copy_from_slice(self.take(count)?);
        usize::try_from(u64::from_le_bytes(number)).map_err(|_| "a length is too large".to_owned())
    }

    fn line(&mut self) -> Step<String> {
        let rest = &self.bytes[self.at..];
        let end = rest.iter().position(|&byte| byte == b'\n');
        let end = end.ok_or("it is cut short in a name")?;
        let line = String::from_utf8_lossy(self.take(end)?).into_owned();
        self.at += 1;
        Ok(line)
    }

    fn number(&mut self, code: u8) -> Step<()> {
        let value = match code {
            b'K' => Value::Int(i64::from(self.byte()?)),
            b'M' => Value::Int(self.unsigned(2)? as i64),
            b'J' => {
                let mut number = [0; 4];
                number.copy_from_slice(self.take(4)?);
                Value::Int(i64::from(i32::from_le_bytes(number)))
            }
            b'G' => {
                let mut number = [0; 8];
                number.copy_from_slice(self.take(8)?);
                Value::Fraction(f64::from_be_bytes(number))
            }
            code => {
                let count = self.unsigned(if code == 0x8a { 1 } else { 4 })?;
                long(self.take(count)?)
            }
        };
        self.push(value);
        Ok(())
    }

    /// Texts, and bytes as texts: no number of a model is in them.
    fn text(&mut self, code: u8) -> Step<()> {
        let width = match code {
            0x8c | b'U' | b'C' => 1,
            0x8d | 0x8e => 8,
            _ => 4,
        };
        let count = self.unsigned(width)?;
        let text = String::from_utf8_lossy(self.take(count)?).into_owned();
        self.push(Value::Text(text));
        Ok(())
    }

    // ------------------------------------------------------------ the stack

    fn push(&mut self, value: Value) {
        self.stack.push(self.values.len());
        self.values.push(value);
    }

    fn top(&self) -> Step<Id> {
        let floor = self.marks.last().copied().unwrap_or(0);
        match self.stack.last() {
            Some(&top) if self.stack.len() > floor => Ok(top),
            _ => Err("it takes a value where there is none".to_owned()),
        }
    }

    fn pop(&mut self) -> Step<Id> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    fn pop_many(&mut self, count: usize) -> Step<Vec<Id>> {
        let mut items = Vec::with_capacity(count);
        for _ in 0..count {
            items.push(self.pop()?);
        }
        items.reverse();
        Ok(items)
    }

    fn pop_to_mark(&mut self) -> Step<Vec<Id>> {
        let mark = self.marks.pop().ok_or("it ends a list that never began")?;
        Ok(self.stack.split_off(mark.min(self.stack.len())))
    }

    fn append(&mut self, items: &[Id]) -> Step<()> {
        let list = self.top()?;
        match &mut self.values[list] {
            Value::Items(there) => there.extend(items),
            _ => return Err("it appends to what is no list".to_owned()),
        }
        Ok(())
    }

    fn set(&mut self, items: &[Id]) -> Step<()> {
        let (dict, new) = (self.top()?, pairs(items)?);
        match &mut self.values[dict] {
            Value::Dict(there) => there.extend(new),
            _ => return Err("it sets keys of what is no dict".to_owned()),
        }
        Ok(())
    }

    fn remember(&mut self, place: usize) -> Step<()> {
        let top = self.top()?;
        self.memo.insert(place, top);
        Ok(())
    }

    // ------------------------------------------------------------ names and calls

    fn name(&mut self, module: &str, name: &str) -> Step<()> {
        let class = Class::named(module, name).ok_or_else(|| {
            let full: String = format!("{module}.{name}").chars().take(200).collect();
            format!(
                "it asks for `{full}`, which is not among the tensors and containers that are read; nothing was run"
            )
        })?;
        self.push(Value::Class(class));
        Ok(())
    }

    /// `("storage", class, key, device, length)`, and in old files what it is a view of.
    fn persistent(&mut self) -> Step<()> {
        let id = self.pop()?;
        let Value::Items(parts) = &self.values[id] else {
            return Err("a persistent id is not that of a storage".to_owned());
        };
        let part = |index: usize| parts.get(index).map(|&id| &self.values[id]);
        let (what, class, key, length) = (part(0), part(1), part(2), part(4));
        let view = part(5).is_none_or(|view| matches!(view, Value::None));
        let storage = match (what, class, key, length) {
            (
                Some(Value::Text(what)),
                Some(Value::Class(Class::Storage(element))),
                Some(Value::Text(key)),
                Some(&Value::Int(length)),
            ) if what == "storage" && view && key.len() <= LONGEST_KEY => Storage {
                key: key.clone(),
                element: *element,
                length: usize::try_from(length)
                    .map_err(|_| format!("a storage has {length} numbers"))?,
            },
            _ => return Err("a persistent id is not that of a storage".to_owned()),
        };
        self.push(Value::Storage(storage));
        Ok(())
    }

    /// Makes what a call of one of the known names would return.
    fn call(&mut self, class: Id, arguments: Id) -> Step<Id> {
        let Value::Class(class) = self.values[class] else {
            return Err("it calls what is no class".to_owned());
        };
        let Value::Items(arguments) = &self.values[arguments] else {
            return Err("the arguments of a call are no tuple".to_owned());
        };
        let arguments: Vec<Id> = arguments.iter().take(MOST_ARGUMENTS).copied().collect();
        let wrong = || format!("the arguments of {class:?} are not as PyTorch writes them");
        let first = arguments.first().copied();
        let made = match class {
            Class::Dict => {
                let given = first.map(|id| &self.values[id]);
                Value::Dict(match given {
                    Some(Value::Items(items)) => {
                        self.copied += items.len();
                        if self.copied > MOST_STEPS {
                            return Err(format!("it copies more than {MOST_STEPS} values"));
                        }
                        let pair = |&id: &Id| match &self.values[id] {
                            Value::Items(pair) if pair.len() == 2 => Ok((pair[0], pair[1])),
                            _ => Err(wrong()),
                        };
                        items.iter().map(pair).collect::<Step<_>>()?
                    }
                    _ => Vec::new(),
                })
            }
            Class::Items => match first.map(|id| (id, &self.values[id])) {
                // The list itself: a copy for each call would be a way to ask for memory.
                Some((id, Value::Items(_))) => return Ok(id),
                None => Value::Items(Vec::new()),
                _ => return Err(wrong()),
            },
            Class::Device => Value::None,
            Class::RebuildTensor => Value::Tensor(self.tensor(&arguments)?),
            Class::RebuildParameter => {
                return first
                    .filter(|&id| matches!(self.values[id], Value::Tensor(_)))
                    .ok_or_else(wrong);
            }
            Class::RebuildFromType => {
                let (function, inner) = match arguments[..] {
                    [function, _, inner, ..] => (function, inner),
                    _ => return Err(wrong()),
                };
                // Once: PyTorch never nests it.
                if matches!(self.values[function], Value::Class(Class::RebuildFromType)) {
                    return Err(wrong());
                }
                return self.call(function, inner);
            }
            Class::TensorType | Class::Storage(_) => return Err(wrong()),
        };
        self.values.push(made);
        Ok(self.values.len() - 1)
    }

    /// Storage, offset, sizes, strides; what follows is of no use here.
    fn tensor(&self, arguments: &[Id]) -> Step<StoredTensor> {
        let wrong = || "a tensor is not written as PyTorch writes it".to_owned();
        let whole = |&id: &Id| match self.values[id] {
            Value::Int(number) => usize::try_from(number).map_err(|_| wrong()),
            _ => Err(wrong()),
        };
        let wholes = |&id: &Id| match &self.values[id] {
            Value::Items(items) if items.len() <= MOST_AXES => {
                items.iter().map(whole).collect::<Step<Vec<usize>>>()
            }
            _ => Err(wrong()),
        };
        let [storage, offset, shape, strides, ..] = arguments else {
            return Err(wrong());
        };
        let Value::Storage(storage) = &self.values[*storage] else {
            return Err(wrong());
        };
        StoredTensor::new(
            storage.clone(),
            whole(offset)?,
            wholes(shape)?,
            wholes(strides)?,
        )
    }

    /// A state dict carries notes of its modules' versions, which are passed over.
    fn build(&mut self) -> Step<()> {
        self.pop()?;
        let top = self.top()?;
        match self.values[top] {
            Value::Dict(_) => Ok(()),
            _ => Err("it sets the attributes of what is no dict".to_owned()),
        }
    }
}

fn pairs(items: &[Id]) -> Step<Vec<(Id, Id)>> {
    if !items.len().is_multiple_of(2) {
        return Err("a dict has a key without a value".to_owned());
    }
    let pairs = items.chunks_exact(2);
    Ok(pairs.map(|pair| (pair[0], pair[1])).collect())
}

/// A two's-complement number, least byte first; those beyond 64 bits (PyTorch's mark of its own files is one) as 0.
fn long(bytes: &[u8]) -> Value {
    if bytes.len() > 8 {
        return Value::Int(0);
    }
    let negative = bytes.last().is_some_and(|&byte| byte >= 0x80);
    let mut number = if negative { [0xff; 8] } else { [0; 8] };
    number[..bytes.len()].copy_from_slice(bytes);
    Value::Int(i64::from_le_bytes(number))
}
