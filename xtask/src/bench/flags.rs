//! What was typed after `cargo xtask bench`.

use std::path::PathBuf;
use std::time::Duration;

use super::work::{Network, Operation, Peer, Precision, Work};
use crate::Usage;

/// What to measure, and how often.
#[derive(Debug, PartialEq)]
pub(crate) struct Flags {
    /// The Python that has the peers.
    pub(crate) python: String,
    /// Which networks.
    pub(crate) networks: Vec<Network>,
    /// Which work.
    pub(crate) works: Vec<Work>,
    /// Which operations, if they are part of the work.
    pub(crate) operations: Vec<Operation>,
    /// What networks compute in.
    pub(crate) precision: Precision,
    /// Beside whom.
    pub(crate) peers: Vec<Peer>,
    /// Threads of every contender.
    pub(crate) threads: usize,
    /// Turns that count.
    pub(crate) rounds: usize,
    /// Turns before them that do not.
    pub(crate) warm_ups: usize,
    /// How long a turn of the fastest should last.
    pub(crate) turn: Duration,
    /// How long a contender may take to be ready.
    pub(crate) set_up: Duration,
    /// Whether this is only a look, not for the record.
    pub(crate) quick: bool,
    /// Whether to measure the way to the first image.
    pub(crate) start_up: bool,
    /// Where the page goes besides the standard output.
    pub(crate) out: Option<PathBuf>,
    /// The command line again, without the place of Python and of the page.
    pub(crate) command: String,
}

impl Flags {
    /// Reads the words, each flag with its value.
    pub(crate) fn parse(typed: &[String]) -> Result<Self, Usage> {
        let mut flags = Self::defaults();
        let mut rounds = None;
        let mut words = typed.iter();
        while let Some(flag) = words.next() {
            let mut value = || {
                let next = words.next().filter(|word| !word.starts_with("--"));
                next.cloned()
                    .ok_or_else(|| Usage(format!("`{flag}` needs a value")))
            };
            let mut shown = format!(" {flag}");
            match flag.as_str() {
                "--python" => {
                    flags.python = value()?;
                    shown += " PYTHON";
                }
                "--out" => {
                    flags.out = Some(value()?.into());
                    shown.clear();
                }
                "--quick" => flags.quick = true,
                "--no-start-up" => flags.start_up = false,
                name => {
                    let text = value()?;
                    shown = format!("{shown} {text}");
                    match name {
                        "--networks" => {
                            flags.networks = list(flag, &text, &Network::ALL, Network::letter)?;
                        }
                        "--work" => flags.works = list(flag, &text, &Work::ALL, Work::word)?,
                        "--operations" => {
                            flags.operations = list(flag, &text, &Operation::ALL, Operation::word)?;
                        }
                        "--peers" => flags.peers = list(flag, &text, &Peer::ALL, Peer::word)?,
                        "--precision" => {
                            let asked = list(flag, &text, &Precision::ALL, Precision::word)?;
                            let &[precision] = asked.as_slice() else {
                                return Err(Usage(format!("`{flag}` takes one of them")));
                            };
                            flags.precision = precision;
                        }
                        // Another device has a bench of its own.
                        "--device" => {}
                        "--rounds" => rounds = Some(count(flag, &text)?),
                        "--threads" => flags.threads = count(flag, &text)?,
                        "--set-up" => {
                            flags.set_up = Duration::from_secs(count(flag, &text)? as u64);
                        }
                        other => return Err(Usage(format!("unknown flag `{other}`"))),
                    }
                }
            }
            flags.command += &shown;
        }
        if flags.quick {
            (flags.rounds, flags.warm_ups) = (2, 1);
            flags.turn = Duration::from_secs(1);
        }
        flags.rounds = rounds.unwrap_or(flags.rounds);
        let chosen = flags.operations.len() < Operation::ALL.len();
        if chosen && !flags.works.contains(&Work::Operations) {
            return Err(Usage(
                "`--operations` needs `operations` among `--work`".to_owned(),
            ));
        }
        if flags.precision == Precision::Bf16 {
            // Single operations and the way to the first image are f32.
            flags.works.retain(|&work| work != Work::Operations);
            flags.start_up = false;
        }
        Ok(flags)
    }

    fn defaults() -> Self {
        Self {
            python: "python3".to_owned(),
            networks: Network::ALL.to_vec(),
            works: Work::ALL.to_vec(),
            operations: Operation::ALL.to_vec(),
            precision: Precision::F32,
            peers: Peer::ALL.to_vec(),
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            rounds: 5,
            warm_ups: 2,
            turn: Duration::from_secs(2),
            set_up: Duration::from_secs(1200),
            quick: false,
            start_up: true,
            out: None,
            command: "cargo xtask bench".to_owned(),
        }
    }
}

/// Names with commas between them, in the order of `all`, each once.
pub(super) fn list<T: Copy, N: Into<String>>(
    flag: &str,
    text: &str,
    all: &[T],
    name: fn(T) -> N,
) -> Result<Vec<T>, Usage> {
    let typed: Vec<&str> = text.split(',').collect();
    let known: Vec<String> = all.iter().map(|&item| name(item).into()).collect();
    let is_known = |word: &str| known.iter().any(|name| name == word);
    if let Some(unknown) = typed.iter().find(|word| !is_known(word)) {
        let known = known.join(", ");
        return Err(Usage(format!(
            "`{flag}` knows {known}; it does not know `{unknown}`"
        )));
    }
    let asked = all.iter().zip(&known);
    let asked = asked.filter(|(_, name)| typed.contains(&name.as_str()));
    Ok(asked.map(|(&item, _)| item).collect())
}

pub(super) fn count(flag: &str, text: &str) -> Result<usize, Usage> {
    let number = text.parse().ok().filter(|&number| number > 0);
    number.ok_or_else(|| {
        Usage(format!(
            "`{flag}` needs a whole number above 0, found `{text}`"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Flags, Usage> {
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        Flags::parse(&words)
    }

    #[test]
    fn nothing_typed_is_everything_in_five_rounds() {
        let flags = parse("").unwrap();
        assert_eq!((flags.rounds, flags.warm_ups), (5, 2));
        assert_eq!(flags.networks, Network::ALL);
        assert_eq!(flags.works, Work::ALL);
        assert_eq!(flags.peers, Peer::ALL);
        assert_eq!(flags.operations, Operation::ALL);
        assert!(flags.start_up && !flags.quick);
    }

    #[test]
    fn a_quick_look_is_short_unless_rounds_are_given() {
        let flags = parse("--quick --networks m --work evaluate --peers compile,eager").unwrap();
        assert_eq!((flags.rounds, flags.warm_ups), (2, 1));
        assert_eq!(flags.peers, [Peer::Eager, Peer::Compile]);
        assert_eq!(parse("--rounds 3 --quick").unwrap().rounds, 3);
        assert_eq!(
            parse("--set-up 60").unwrap().set_up,
            Duration::from_secs(60)
        );
    }

    #[test]
    fn the_processor_is_the_device_whether_said_or_not() {
        let (said, unsaid) = (parse("--device cpu").unwrap(), parse("").unwrap());
        assert_eq!(said.command, "cargo xtask bench --device cpu");
        let command = unsaid.command.clone();
        assert_eq!(Flags { command, ..said }, unsaid);
    }

    #[test]
    fn bf16_is_for_networks() {
        let flags = parse("--precision bf16").unwrap();
        assert_eq!(flags.precision, Precision::Bf16);
        assert_eq!(flags.works, [Work::Train, Work::Evaluate]);
        assert!(!flags.start_up);
        let both = Usage("`--precision` takes one of them".to_owned());
        assert_eq!(parse("--precision f32,bf16"), Err(both));
    }

    #[test]
    fn the_page_names_no_place_of_this_machine() {
        let flags = parse("--python /a/python --out /b.md --work train --quick").unwrap();
        assert_eq!(flags.python, "/a/python");
        assert_eq!(
            flags.command,
            "cargo xtask bench --python PYTHON --work train --quick"
        );
    }

    #[test]
    fn wrong_usage_says_what_was_typed() {
        for (line, expected) in [
            ("--fast", "`--fast` needs a value"),
            ("--fast 3", "unknown flag `--fast`"),
            ("--rounds", "`--rounds` needs a value"),
            ("--python --quick", "`--python` needs a value"),
            (
                "--rounds 0",
                "`--rounds` needs a whole number above 0, found `0`",
            ),
            (
                "--networks s,l",
                "`--networks` knows s, m; it does not know `l`",
            ),
            (
                "--work train --operations norm-32x128-28x28",
                "`--operations` needs `operations` among `--work`",
            ),
            (
                "--work eval",
                "`--work` knows train, evaluate, operations; it does not know `eval`",
            ),
        ] {
            assert_eq!(parse(line), Err(Usage(expected.to_owned())), "{line}");
        }
    }
}
