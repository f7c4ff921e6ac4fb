//! What was found out at work: which ways were taken, and why one could not be. Libraries print nothing; programs ask for it.

use std::collections::HashSet;
use std::mem::take;
use std::sync::{Mutex, OnceLock, PoisonError};

/// How much it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Weight {
    /// A way that was taken as it should be.
    Choice,
    /// A way that was taken because a better one could not be.
    Fallback,
}

/// Notes that are kept at most, told or not: shapes come in hundreds, not in thousands.
const MOST: usize = 4096;

#[derive(Default)]
struct Notes {
    /// All that was ever noted.
    known: HashSet<String>,
    untold: Vec<(Weight, String)>,
}

/// Notes something, once.
pub(crate) fn note(weight: Weight, text: String) {
    notes().note(weight, text);
}

/// What was noted since this was last asked, in order; only what matters, unless all is wanted.
pub(crate) fn untold(all: bool) -> Vec<String> {
    notes().untold(all)
}

fn notes() -> std::sync::MutexGuard<'static, Notes> {
    static NOTES: OnceLock<Mutex<Notes>> = OnceLock::new();
    let notes = NOTES.get_or_init(Mutex::default);
    notes.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Notes {
    fn note(&mut self, weight: Weight, text: String) {
        if self.known.len() < MOST && self.known.insert(text.clone()) {
            self.untold.push((weight, text));
        }
    }

    fn untold(&mut self, all: bool) -> Vec<String> {
        let untold = take(&mut self.untold).into_iter();
        untold
            .filter(|(weight, _)| all || *weight == Weight::Fallback)
            .map(|(_, text)| text)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_told_once_and_choices_only_when_asked_for() {
        let mut notes = Notes::default();
        for _ in 0..2 {
            notes.note(Weight::Choice, "a way".into());
            notes.note(Weight::Fallback, "a detour".into());
        }
        assert_eq!(notes.untold(true), ["a way", "a detour"]);
        assert!(notes.untold(true).is_empty());
        notes.note(Weight::Choice, "another way".into());
        notes.note(Weight::Fallback, "another detour".into());
        notes.note(Weight::Fallback, "a detour".into());
        assert_eq!(notes.untold(false), ["another detour"]);
        for i in 0..2 * MOST {
            notes.note(Weight::Choice, i.to_string());
        }
        assert!(notes.untold(true).len() < MOST);
    }
}
