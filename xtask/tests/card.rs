//! `cargo xtask bench --device cuda` with a Python, a network and a driver that only pretend: who works when, what is written,
//! what is refused.
#![cfg(unix)]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "clippy takes the functions that tests share for library code"
)]

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Speaks as a contender does. Its first output is 1.0, or what `first` is where it is given.
const CONTEND: &str = r#"
contend() {
  output=
  while [ $# -gt 0 ]; do
    if [ "$1" = --output ]; then output=$2; fi
    if [ "$1" = --kind ]; then name=$2; fi
    shift
  done
  printf "${first:-\\000\\000\\200\\077}" > "$output"
  echo "$name starts" >> "$LOG"
  echo ready
  while read word n; do
    echo "$name $word" >> "$LOG"
    case $word in
      go) echo 0.25;;
      rest) echo resting;;
      wake) echo ready;;
      quit) echo $left; exit;;
    esac
  done
}
"#;

/// Ours: half of the memory of a card, if it is let near one.
const OURS: &str = r#"
name=ddpm left=77
case $1 in
  look) [ -z "$NO_CUDNN" ] || { echo "error: cuda cannot be had: no libcudnn.so is found" >&2; exit 1; }
        echo "cuda:0: Pretence 9000, $LD_LIBRARY_PATH";;
  prepare) for folder; do :; done; mkdir -p "$folder";;
  contend) contend "$@";;
esac
"#;

/// Python: the peers and the driver. The first peer has another output.
const PYTHON: &str = r#"
left="77 104857600 209715200"
shift
case $1 in
  look) [ -z "$NO_CARD" ] || { echo "PyTorch 2 finds no card" >&2; exit 1; }
        echo "card Pretence 9000, 8.0 GiB, compute 9.0"; echo "uuid 12-34"; echo "libraries /pip/lib"; echo "version torch 2";;
  peak) echo 2e9;;
  count) echo 1e6 3e6;;
  watch) echo ready; while read line; do if [ $line = end ]; then echo 104857600; else echo 0; fi; done;;
  contend) case "$*" in *"--kind eager"*) first='\000\000\000\000';; esac
           case "$*" in *"--kind compile "*) echo "torch.OutOfMemoryError: CUDA out of memory" >&2; exit 1;; esac
           contend "$@";;
esac
"#;

struct Pretence(PathBuf);

impl Pretence {
    fn new(name: &str) -> Self {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR"))
            .join("card")
            .join(name);
        drop(std::fs::remove_dir_all(&folder));
        std::fs::create_dir_all(&folder).unwrap();
        for (name, text) in [("ours", OURS), ("python", PYTHON)] {
            let path = folder.join(name);
            std::fs::write(&path, format!("#!/bin/sh\n{CONTEND}{text}")).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        Self(folder)
    }

    fn bench(&self, more: &str, variable: &str) -> Output {
        let mut xtask = Command::new(env!("CARGO_BIN_EXE_xtask"));
        xtask.args(["bench", "--device", "cuda", "--python"]);
        xtask.arg(self.0.join("python"));
        xtask.arg("--ours").arg(self.0.join("ours"));
        xtask.args(more.split_whitespace());
        xtask.env("LOG", self.0.join("log"));
        xtask.env_remove("LD_LIBRARY_PATH");
        if !variable.is_empty() {
            xtask.env(variable, "1");
        }
        xtask.output().unwrap()
    }

    fn log(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.0.join("log")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }
}

fn complaints(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn one_is_on_the_card_at_a_time_and_the_page_says_what_came_of_each() {
    let pretence = Pretence::new("whole");
    let page = pretence.0.join("page.md");
    let more = format!(
        "--quick --rounds 1 --networks m128 --work sample --precision bf16 --peers eager,compile,graphs --out {}",
        page.display()
    );
    let output = pretence.bench(&more, "");
    // One output is another.
    assert_eq!(output.status.code(), Some(1), "{}", complaints(&output));
    let turn = |name: &str| ["wake", "go", "rest"].map(|word| format!("{name} {word}"));
    let enters = |name: &str| ["starts", "rest"].map(|word| format!("{name} {word}"));
    let mut expected = enters("ddpm").to_vec();
    expected.extend(enters("eager"));
    expected.extend(enters("graphs"));
    for _ in 0..2 {
        expected.extend(turn("ddpm"));
        expected.extend(turn("graphs"));
    }
    expected.extend(["ddpm", "graphs"].map(|name| format!("{name} quit")));
    assert_eq!(pretence.log(), expected);

    let text = std::fs::read_to_string(page).unwrap();
    assert_eq!(text, String::from_utf8_lossy(&output.stdout));
    let row = |start: &str| {
        let mut rows = text.lines().filter(|line| line.starts_with(start));
        rows.next().unwrap_or_else(|| panic!("{start}: {text}"))
    };
    assert!(text.starts_with(
        "Pretence 9000, 8.0 GiB, compute 9.0 (ddpm: cuda:0: Pretence 9000, /pip/lib); host: "
    ));
    // 2 passes in 0.25 s, each of 64 images and 50 steps of 1 MFLOP, at a peak of 2 GFLOP/s.
    assert_eq!(
        row("| ddpm | 512"),
        "| ddpm | 512.0 (512.0-512.0) | 8.000 |  | 0.0, 1280 % | 100 |  |  |  |"
    );
    assert_eq!(
        row("| CUDA graph, channels_last, weights in bf16 |"),
        "| CUDA graph, channels_last, weights in bf16 | 512.0 (512.0-512.0) | 8.000 | **1.00** (1.00-1.00) | 0.0, 1280 % | 100 | 1.00 | 100, 200 | 0e0 |"
    );
    assert!(row("| PyTorch eager, autocast |").contains("not compared"));
    assert!(row("| torch.compile").contains("failed: torch.OutOfMemoryError: CUDA out of memory"));
    assert_eq!(
        row("| M, 50 DDIM"),
        "| M, 50 DDIM steps of 64, bf16 | 512.0 | CUDA graph, channels_last, weights in bf16 | **1.00** (1.00-1.00) | 1.00 |"
    );
}

#[test]
fn what_is_missing_is_said_before_anything_is_measured() {
    let pretence = Pretence::new("missing");
    for (variable, expected) in [
        ("NO_CARD", "PyTorch 2 finds no card"),
        ("NO_CUDNN", "no libcudnn.so is found"),
    ] {
        let output = pretence.bench("", variable);
        assert_eq!(output.status.code(), Some(1));
        let text = complaints(&output);
        assert!(text.contains(expected), "{text}");
    }
    std::fs::remove_file(pretence.0.join("ours")).unwrap();
    let text = complaints(&pretence.bench("", ""));
    assert!(
        text.starts_with("error: there is no ") && text.ends_with("ours (--ours)\n"),
        "{text}"
    );
    assert!(pretence.log().is_empty());
}
