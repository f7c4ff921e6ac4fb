//! What was typed after `cargo xtask bench`, where `--device` is a card.

use std::path::PathBuf;
use std::time::Duration;

use super::super::flags::{count, list};
use super::work::{Device, Network, Peer, Precision, Work};
use crate::Usage;

/// What to measure, and how often.
#[derive(Debug, PartialEq)]
pub(crate) struct Flags {
    /// Where.
    pub(crate) device: Device,
    /// The Python that has PyTorch.
    pub(crate) python: String,
    /// Our contender, if it is built already.
    pub(crate) ours: Option<PathBuf>,
    /// The CUDA toolkit to build it with, as `cargo xtask cuda` takes it.
    pub(crate) toolkit: Option<PathBuf>,
    /// Which networks.
    pub(crate) networks: Vec<Network>,
    /// Which work.
    pub(crate) works: Vec<Work>,
    /// In which precisions.
    pub(crate) precisions: Vec<Precision>,
    /// Beside whom.
    pub(crate) peers: Vec<Peer>,
    /// Threads of the host for every contender.
    pub(crate) threads: usize,
    /// Turns that count.
    pub(crate) rounds: usize,
    /// Turns before them that do not; in these memory is watched.
    pub(crate) warm_ups: usize,
    /// How long a turn of the fastest should last.
    pub(crate) turn: Duration,
    /// How long a contender may take to be ready.
    pub(crate) set_up: Duration,
    /// Whether this is only a look, not for the record.
    pub(crate) quick: bool,
    /// Where the page goes besides the standard output.
    pub(crate) out: Option<PathBuf>,
    /// The command line again, without places of this machine.
    pub(crate) command: String,
}

impl Flags {
    /// Reads the words, each flag with its value. `None` where the device is the processor, whose bench has flags of its own.
    pub(crate) fn parse(typed: &[String]) -> Result<Option<Self>, Usage> {
        let Some(device) = asked_device(typed)? else {
            return Ok(None);
        };
        let mut flags = Self::on(device);
        let mut rounds = None;
        let mut words = typed.iter();
        while let Some(flag) = words.next() {
            if flag == "--quick" {
                flags.quick = true;
                flags.command += " --quick";
                continue;
            }
            let mut shown = format!(" {flag}");
            let text = words.next().filter(|word| !word.starts_with("--"));
            let text = text.ok_or_else(|| Usage(format!("`{flag}` needs a value")))?;
            match flag.as_str() {
                "--python" => {
                    flags.python.clone_from(text);
                    shown += " PYTHON";
                }
                "--ours" | "--toolkit" | "--out" => {
                    let place = match flag.as_str() {
                        "--ours" => &mut flags.ours,
                        "--toolkit" => &mut flags.toolkit,
                        _ => &mut flags.out,
                    };
                    *place = Some(text.into());
                    shown.clear();
                }
                name => {
                    shown = format!("{shown} {text}");
                    match name {
                        "--device" => {}
                        "--networks" => {
                            flags.networks = list(flag, text, &Network::ALL, Network::word)?;
                        }
                        "--work" => flags.works = list(flag, text, &Work::ALL, Work::word)?,
                        "--precision" => {
                            flags.precisions = list(flag, text, &Precision::ALL, Precision::word)?;
                        }
                        "--peers" => flags.peers = list(flag, text, &Peer::ALL, Peer::word)?,
                        "--rounds" => rounds = Some(count(flag, text)?),
                        "--threads" => flags.threads = count(flag, text)?,
                        "--set-up" => {
                            flags.set_up = Duration::from_secs(count(flag, text)? as u64);
                        }
                        other => {
                            return Err(Usage(format!("unknown flag `{other}` of a card's bench")));
                        }
                    }
                }
            }
            flags.command += &shown;
        }
        if flags.quick {
            (flags.rounds, flags.warm_ups) = (2, 1);
            flags.turn = Duration::from_millis(500);
        }
        flags.rounds = rounds.unwrap_or(flags.rounds);
        if flags.device == Device::Rehearsal && flags.precisions.contains(&Precision::Bf16) {
            let message =
                "`--device cpu-graph` has no bf16: --precision f32,tf32, which are the same there";
            return Err(Usage(message.to_owned()));
        }
        Ok(Some(flags))
    }

    fn on(device: Device) -> Self {
        let rehearsal = device == Device::Rehearsal;
        Self {
            python: "python3".to_owned(),
            ours: None,
            toolkit: None,
            networks: Network::ALL.to_vec(),
            works: Work::ALL.to_vec(),
            precisions: match rehearsal {
                true => vec![Precision::F32],
                false => Precision::ALL.to_vec(),
            },
            // max-autotune is asked for by name: it takes many minutes to set up.
            peers: Peer::ALL[..5].to_vec(),
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            rounds: 5,
            warm_ups: 2,
            turn: Duration::from_millis(if rehearsal { 200 } else { 2000 }),
            set_up: Duration::from_secs(1200),
            quick: false,
            out: None,
            command: "cargo xtask bench".to_owned(),
            device,
        }
    }
}

/// The device behind the last `--device`, if it is not the processor.
fn asked_device(typed: &[String]) -> Result<Option<Device>, Usage> {
    let Some(place) = typed.iter().rposition(|word| word == "--device") else {
        return Ok(None);
    };
    let name = typed.get(place + 1).map_or("", String::as_str);
    let number = name.strip_prefix("cuda:");
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    match name {
        "cpu" => Ok(None),
        "cpu-graph" => Ok(Some(Device::Rehearsal)),
        "cuda" => Ok(Some(Device::Card(name.to_owned()))),
        _ if number.is_some_and(is_number) => Ok(Some(Device::Card(name.to_owned()))),
        _ => Err(Usage(format!(
            "`--device` knows cpu, cuda, cuda:N and cpu-graph; it does not know `{name}`"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Option<Flags>, Usage> {
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        Flags::parse(&words)
    }

    #[test]
    fn a_card_has_everything_but_max_autotune_in_five_rounds() {
        let flags = parse("--device cuda:1").unwrap().unwrap();
        assert_eq!(flags.device, Device::Card("cuda:1".to_owned()));
        assert_eq!((flags.rounds, flags.warm_ups), (5, 2));
        assert_eq!(flags.networks, Network::ALL);
        assert_eq!(flags.precisions, Precision::ALL);
        assert!(flags.peers.contains(&Peer::CompileGraphs));
        assert!(!flags.peers.contains(&Peer::Autotune));
    }

    #[test]
    fn the_processor_has_flags_of_its_own() {
        assert_eq!(parse(""), Ok(None));
        assert_eq!(parse("--device cpu --networks s"), Ok(None));
        let flags = parse("--device cpu-graph").unwrap().unwrap();
        assert_eq!(flags.precisions, [Precision::F32]);
    }

    #[test]
    fn the_page_names_no_place_of_this_machine() {
        let line = "--device cuda --python /a/python --ours /b --out /c.md --toolkit /d --networks adm64 --quick --rounds 3";
        let flags = parse(line).unwrap().unwrap();
        assert_eq!(flags.python, "/a/python");
        assert_eq!(flags.ours, Some("/b".into()));
        assert_eq!((flags.rounds, flags.warm_ups), (3, 1));
        assert_eq!(
            flags.command,
            "cargo xtask bench --device cuda --python PYTHON --networks adm64 --quick --rounds 3"
        );
    }

    #[test]
    fn wrong_usage_says_what_was_typed() {
        for (line, expected) in [
            (
                "--device",
                "`--device` knows cpu, cuda, cuda:N and cpu-graph; it does not know ``",
            ),
            (
                "--device cuda:x",
                "`--device` knows cpu, cuda, cuda:N and cpu-graph; it does not know `cuda:x`",
            ),
            (
                "--device cuda --networks s",
                "`--networks` knows m128, m512, adm64; it does not know `s`",
            ),
            (
                "--device cuda --peers openvino",
                "`--peers` knows eager, channels_last, compile, graphs, compile_graphs, autotune; it does not know `openvino`",
            ),
            (
                "--device cuda --operations x",
                "unknown flag `--operations` of a card's bench",
            ),
            ("--device cuda --rounds", "`--rounds` needs a value"),
            (
                "--device cpu-graph --precision bf16",
                "`--device cpu-graph` has no bf16: --precision f32,tf32, which are the same there",
            ),
        ] {
            assert_eq!(parse(line), Err(Usage(expected.to_owned())), "{line}");
        }
    }
}
