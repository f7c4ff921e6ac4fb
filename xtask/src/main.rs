//! `cargo xtask`: spawns cargo and the programs; holds no logic of the product.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program speaks to the person who started it"
)]

mod bench;
mod cargo;
mod ci;
mod conformance;
mod cuda;
mod data;
mod train;

use std::process::ExitCode;

const HELP: &str = "\
cargo xtask COMMAND

  train [PRESET] [-- FLAGS]   build in release, then train; no PRESET: digits
                              FLAGS are those of ddpm-train (cargo xtask train -- --help)
  data [NAME] [--where] [--data-dir DIR] [--from URL]
                              say where a data set is found, and fetch it if it is nowhere: verified by SHA-256, going
                              on with what has come before; no NAME: say it of all of them and fetch none, as with
                              --where (status 3: not found). URL: a folder of another server with the same files
  bench [--python PYTHON] [--networks s,m] [--work train,evaluate,operations] [--operations NAME,...]
        [--precision f32|bf16] [--peers eager,channels_last,compile,onnxruntime,openvino] [--threads N] [--rounds N]
        [--set-up SECONDS] [--quick] [--no-start-up] [--out FILE]
                              the program beside PyTorch, torch.compile, onnxruntime and OpenVINO on the same work, in
                              turns: outputs compared first, then a page of ratios (status 1: outputs differ);
                              PYTHON, python3 if not named, has the peers: pip install torch diffusers
                              onnx onnxscript onnxruntime openvino
  bench --device cuda[:N] [--python PYTHON] [--networks m128,m512,adm64] [--work train,evaluate,sample]
        [--precision f32,tf32,bf16] [--peers eager,channels_last,compile,graphs,compile_graphs,autotune] [--rounds N]
        [--set-up SECONDS] [--threads N] [--quick] [--out FILE] [--toolkit DIR | --ours FILE]
                              the same on an NVIDIA card, beside PyTorch on the same card, built as `cargo xtask cuda`
                              builds (FILE: network_speed, built so before); PYTHON has a PyTorch with CUDA, and diffusers.
                              --device cpu-graph rehearses it in small, without a card
  conformance [--python PYTHON] [--model FOLDER]... [--networks N] [--seed S]
                              real diffusers beside the program, both ways: random networks, a model by every scheduler
                              from the same noise, images seed for seed (status 1: a difference above 1e-4); makes its
                              Python environment under target/, or takes PYTHON
  conformance --page          write docs/conformance.md from the conformance tests
  cuda [--toolkit DIR] [-- CARGO COMMAND]
                              build the programs so that they train and sample on an NVIDIA card where there is one, and
                              run where there is none: with the CUDA toolkit in DIR, $CUDA_HOME or on the PATH, else with
                              nvcc 13.0 from pinned wheels (pip, 105 MB); $CUDA_COMPUTE_CAP is the card's, 90 if not set;
                              or do with cargo what is said, the same way (-- test -p ddpm-kernels): docs/cuda.md
  ci                          every check, cheapest first: format, lints, tests, documentation
  help                        this text

examples
  cargo xtask train
  cargo xtask train fashion-mnist -- --minutes 20
  cargo xtask train digits -- --out runs/second --seed 1
  cargo xtask data fashion-mnist
  cargo xtask bench --quick --networks s
  cargo xtask bench --device cuda --networks m128 --work train --precision bf16
  cargo xtask conformance --networks 100 --seed 7
  cargo xtask cuda
";

/// What a person typed that no command understands.
#[derive(Debug, PartialEq, Eq)]
struct Usage(String);

fn main() -> ExitCode {
    let mut words = std::env::args_os();
    if cuda::nvcc::is_meant(words.next().as_deref()) {
        return cuda::nvcc::run(&words.collect::<Vec<_>>()).unwrap_or_else(|error| {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        });
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments) {
        Ok(Ok(code)) => code,
        Ok(Err(error)) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
        Err(Usage(message)) => {
            eprintln!("error: {message}\n\n{HELP}");
            ExitCode::from(2)
        }
    }
}

/// Outer error: wrong usage. Inner: what was asked for failed.
fn run(arguments: &[String]) -> Result<anyhow::Result<ExitCode>, Usage> {
    let Some((command, rest)) = arguments.split_first() else {
        return Err(Usage("no command given".to_owned()));
    };
    // What comes after `--` is for the program that is started.
    let mut ours = rest.iter().take_while(|word| *word != "--");
    if ours.any(|word| word == "--help" || word == "-h") {
        print!("{HELP}");
        return Ok(Ok(ExitCode::SUCCESS));
    }
    match command.as_str() {
        "train" => Ok(cargo::become_cargo(&train::cargo_arguments(rest)?)),
        "data" => Ok(data::run(&data::typed(rest)?)),
        "bench" => bench::run(rest),
        "conformance" => conformance::run(rest),
        "cuda" => cuda::run(rest),
        "ci" if rest.is_empty() => Ok(ci::run()),
        "ci" => Err(Usage(format!(
            "`ci` takes no arguments, found `{}`",
            rest.join(" ")
        ))),
        "help" | "--help" | "-h" => {
            print!("{HELP}");
            Ok(Ok(ExitCode::SUCCESS))
        }
        other => Err(Usage(format!("unknown command `{other}`"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).collect()
    }

    #[track_caller]
    fn check_usage(line: &str, expected: &str) {
        match run(&words(line)) {
            Err(Usage(message)) => assert_eq!(message, expected),
            Ok(_) => panic!("`{line}` was accepted"),
        }
    }

    #[test]
    fn help_is_had_of_every_command() {
        for command in [
            "help",
            "--help",
            "train --help",
            "bench --quick -h",
            "ci --help",
        ] {
            assert!(matches!(run(&words(command)), Ok(Ok(_))), "{command}");
        }
    }

    #[test]
    fn wrong_usage_says_what_was_typed() {
        check_usage("", "no command given");
        check_usage("trian", "unknown command `trian`");
        check_usage("ci fast", "`ci` takes no arguments, found `fast`");
        check_usage(
            "train digits --minutes 5",
            "`--minutes` is no preset; flags of ddpm-train follow `--`: cargo xtask train digits -- --minutes 5",
        );
        check_usage(
            "train a b",
            "`b` is one preset too many; flags of ddpm-train follow `--`: cargo xtask train a -- b",
        );
        check_usage(
            "data mnist digits",
            "one data set at a time, found `mnist digits`",
        );
        check_usage("data --data-dir", "`--data-dir` needs a folder");
        check_usage("data --wher mnist", "unknown flag `--wher`");
        check_usage("data mnist --from", "`--from` needs an address");
        check_usage("bench --rounds", "`--rounds` needs a value");
        check_usage("conformance --python", "`--python` needs a value");
        check_usage("conformance --deep", "unknown flag `--deep`");
        check_usage(
            "conformance --seed one",
            "`--seed` needs a whole number, found `one`",
        );
        check_usage("conformance --page --seed 1", "`--page` goes alone");
        check_usage("cuda --toolkit", "`--toolkit` needs a folder");
        check_usage(
            "cuda --release",
            "unknown flag `--release`; what cargo is to do follows `--`",
        );
        check_usage(
            "cuda --",
            "`--` is followed by what cargo is to do, such as: test -p ddpm-kernels",
        );
    }

    #[test]
    fn training_runs_the_preset_asked_for() {
        let run = "run --release --package ddpm-train --";
        for (typed, expected) in [
            ("", "--preset digits"),
            ("fashion-mnist", "--preset fashion-mnist"),
            ("-- --minutes 5", "--preset digits --minutes 5"),
            ("mnist -- --seed 1 -- x", "--preset mnist --seed 1 -- x"),
            (
                "-- --config my.toml --steps 3",
                "--config my.toml --steps 3",
            ),
            ("-- --config=my.toml", "--config=my.toml"),
            ("-- --preset mnist", "--preset mnist"),
            ("-- --list-presets", "--list-presets"),
            ("-- --help", "--help"),
            ("-- --resume", "--preset digits --resume"),
            ("-- --resume --out d", "--resume --out d"),
            (
                "-- --out=d --steps 9 --resume",
                "--out=d --steps 9 --resume",
            ),
            (
                "mnist -- --resume --out d",
                "--preset mnist --resume --out d",
            ),
        ] {
            assert_eq!(
                train::cargo_arguments(&words(typed)),
                Ok(words(&format!("{run} {expected}"))),
                "{typed}"
            );
        }
    }
}
