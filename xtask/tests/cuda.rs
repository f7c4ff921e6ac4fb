//! `cargo xtask cuda` with compilers, a pip and a cargo that only pretend: what is chosen, what cargo is told, what is missing.
#![cfg(all(target_os = "linux", target_env = "gnu"))]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "clippy takes the functions that tests share for library code"
)]

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Makes the file behind `-o`, as gcc would, and writes down what it was told.
const GCC: &str = "\
echo \"gcc $*\" >> \"$LOG\"
while [ $# -gt 1 ]; do
  if [ \"$1\" = -o ]; then : > \"$2\"; fi
  shift
done";

/// Says that it is nvcc 13.0 for two kinds of cards, and writes down what else it is told.
const NVCC: &str = "\
case \"$1\" in
  --version) echo 'Cuda compilation tools, release 13.0, V13.0.88';;
  --list-gpu-arch) echo compute_80; echo compute_90;;
  *) echo \"nvcc $*\" >> \"$LOG\";;
esac";

/// Writes down what it is told, by words and by variables.
const CARGO: &str = "\
echo \"cargo $*\" >> \"$LOG\"
for name in CARGO_ENCODED_RUSTFLAGS CUDA_HOME NVCC CUDARC_CUDA_VERSION CUDA_COMPUTE_CAP CARGO_PROFILE_RELEASE_STRIP; do
  eval echo \"$name=\\$$name\" >> \"$LOG\"
done";

/// A folder with programs that pretend, on a PATH of nothing else.
struct Pretence {
    folder: PathBuf,
}

impl Pretence {
    fn new(name: &str) -> Self {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR"))
            .join("cuda")
            .join(name);
        drop(std::fs::remove_dir_all(&folder));
        std::fs::create_dir_all(folder.join("bin")).unwrap();
        let it = Self { folder };
        it.program("bin/gcc", GCC);
        it.program("bin/g++", GCC);
        it.program("bin/cargo", CARGO);
        it
    }

    fn program(&self, name: &str, text: &str) {
        assert!(
            !name.starts_with('/'),
            "{name} would lie outside of the pretence"
        );
        let path = self.folder.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        // Under another name first: a file that is being written cannot be executed.
        let written = path.with_extension("new");
        std::fs::write(&written, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&written, std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::rename(written, path).unwrap();
    }

    /// A toolkit whose nvcc is this.
    fn toolkit(&self, name: &str, nvcc: &str) {
        self.program(&format!("{name}/bin/nvcc"), nvcc);
        std::fs::create_dir_all(self.folder.join(name).join("include")).unwrap();
        std::fs::write(self.folder.join(name).join("include/cuda.h"), "").unwrap();
    }

    fn path(&self, name: &str) -> String {
        self.folder.join(name).to_str().unwrap().to_owned()
    }

    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command
            .env_clear()
            .env("PATH", self.folder.join("bin"))
            .env("LOG", self.folder.join("log"))
            .env("CARGO", self.folder.join("bin/cargo"))
            .env("CARGO_TARGET_DIR", self.folder.join("target"));
        command
    }

    fn run(&self, flags: &[&str], variables: &[(&str, &str)]) -> Output {
        let mut command = self.command(Path::new(env!("CARGO_BIN_EXE_xtask")));
        command
            .arg("cuda")
            .args(flags)
            .envs(variables.iter().copied());
        command.output().unwrap()
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    /// Expects failure, with these words on the standard error and cargo not started.
    #[track_caller]
    fn refused(&self, flags: &[&str], variables: &[(&str, &str)], expected: &[&str]) {
        let output = self.run(flags, variables);
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{text}");
        for part in expected {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
        assert!(!self.log().contains("cargo "), "cargo was started");
    }
}

#[test]
fn cargo_is_told_everything_and_nothing_is_left_in_the_toolkit() {
    let it = Pretence::new("whole");
    it.toolkit("kit", NVCC);
    let kit = it.path("kit");
    let variables = [
        ("CUDA_HOME", kit.as_str()),
        ("RUSTFLAGS", "-C target-cpu=native"),
    ];
    let output = it.run(
        &["--", "test", "-p", "ddpm-kernels", "--", "--nocapture"],
        &variables,
    );
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{said}");
    let (log, target) = (it.log(), it.path("target/cuda"));
    let flags = format!(
        "-C\u{1f}target-cpu=native\u{1f}--cfg\u{1f}feature=\"dynamic-loading\"\u{1f}-L\u{1f}native={target}/libraries"
    );
    for line in [
        format!(
            "cargo test -p ddpm-kernels --features cuda --target x86_64-unknown-linux-gnu --target-dir {target} -- --nocapture"
        )
        .replace("x86_64", std::env::consts::ARCH),
        format!("CARGO_ENCODED_RUSTFLAGS={flags}"),
        format!("CUDA_HOME={target}/stage"),
        format!("NVCC={target}/stage/bin/nvcc"),
        "CUDARC_CUDA_VERSION=13000".to_owned(),
        "CUDA_COMPUTE_CAP=90".to_owned(),
        "CARGO_PROFILE_RELEASE_STRIP=symbols".to_owned(),
    ] {
        assert!(log.lines().any(|found| found == line), "{line:?} is not in\n{log}");
    }
    for name in [
        "cuda", "cudart", "cublas", "cublasLt", "curand", "nvrtc", "cudnn",
    ] {
        let library = format!("{target}/libraries/lib{name}.so");
        assert!(Path::new(&library).exists(), "{library}");
    }
    assert!(Path::new(&format!("{target}/stage/include/cuda.h")).exists());
    assert_eq!(std::fs::read_dir(it.path("kit/bin")).unwrap().count(), 1);
}

#[test]
fn the_nvcc_that_stands_between_passes_on_what_is_wanted() {
    let it = Pretence::new("between");
    it.toolkit("kit", NVCC);
    let output = it.run(&["--toolkit", &it.path("kit"), "--", "check"], &[]);
    assert!(output.status.success(), "{output:?}");
    std::fs::remove_file(it.folder.join("log")).unwrap();
    let between = it.folder.join("target/cuda/stage/bin/nvcc");
    let nvcc = |words: &str, capability: &str| {
        let mut command = it.command(&between);
        command.env("DDPM_NVCC", it.path("kit/bin/nvcc"));
        command.env("CUDA_COMPUTE_CAP", capability);
        assert!(command.args(words.split(' ')).status().unwrap().success());
    };
    let object = it.path("x.o");
    let gencode = "-gencode=arch=compute_90a,code=sm_90a";
    nvcc(
        &format!("{gencode} -c -o {object} src/moe/moe_gguf.cu"),
        "90",
    );
    nvcc(&format!("{gencode} --ptx src/unary.cu"), "90");
    nvcc(&format!("{gencode} --ptx src/unary.cu"), "90a");
    assert!(Path::new(&object).exists());
    let expected = format!(
        "gcc -c -x c /dev/null -o {object}\n\
         nvcc -gencode=arch=compute_90,code=sm_90 --ptx src/unary.cu\n\
         nvcc {gencode} --ptx src/unary.cu\n"
    );
    assert_eq!(it.log(), expected);
}

#[test]
fn what_is_missing_is_said_before_anything_is_built() {
    let it = Pretence::new("missing");
    it.refused(
        &[],
        &[],
        &[
            "no nvcc of a fitting release is installed, and there is no pip",
            "--toolkit DIR",
        ],
    );
    let nowhere = it.path("nowhere");
    it.refused(
        &["--toolkit", &nowhere],
        &[],
        &["--toolkit cannot be used: cannot start", "nowhere/bin/nvcc"],
    );
    it.toolkit("kit", NVCC);
    let kit = it.path("kit");
    let wrong = ("CUDA_COMPUTE_CAP", "hopper");
    it.refused(
        &["--toolkit", &kit],
        &[wrong],
        &["CUDA_COMPUTE_CAP is `hopper`, expected a compute capability such as 90"],
    );
    let late = ("CUDA_COMPUTE_CAP", "12.0");
    it.refused(
        &["--toolkit", &kit],
        &[late],
        &["nvcc 13.0 knows no compute capability 120 (CUDA_COMPUTE_CAP), only 80, 90"],
    );
    std::fs::remove_file(it.folder.join("kit/include/cuda.h")).unwrap();
    it.refused(&["--toolkit", &kit], &[], &["kit has no include/cuda.h"]);
    std::fs::remove_file(it.folder.join("bin/g++")).unwrap();
    it.refused(
        &[],
        &[],
        &["`g++` is not on the PATH; nvcc needs it: install a C++ compiler"],
    );
}

#[test]
fn an_nvcc_that_is_named_must_fit_and_one_on_the_path_is_passed_over() {
    let it = Pretence::new("old");
    let old = NVCC.replace("13.0", "11.8");
    it.toolkit("kit", &old);
    let kit = it.path("kit");
    let home = [("CUDA_HOME", kit.as_str())];
    let release = "kit/bin/nvcc is of release 11.8, expected one of 12.4, 12.5";
    it.refused(
        &[],
        &home,
        &[
            "CUDA_HOME cannot be used (without it nvcc 13.0 is fetched): ",
            release,
        ],
    );
    it.toolkit("kit", "exit 0");
    it.refused(&[], &home, &["--version does not say its release"]);
    it.toolkit(".", &old); // its nvcc is the one on the PATH
    let output = it.run(&[], &[]);
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(
        said.starts_with("not used: ") && said.contains("is of release 11.8"),
        "{said}"
    );
}

#[test]
fn pip_is_told_the_hashes_and_its_failures_are_put_in_words() {
    let it = Pretence::new("pip");
    let pip = |failure: &str| {
        let text = format!(
            "[ \"$3\" = --version ] && exit 0\necho \"python3 $*\" >> \"$LOG\"\necho '{failure}' >&2\nexit 1"
        );
        it.program("bin/python3", &text);
    };
    pip("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE");
    it.refused(
        &[],
        &[],
        &[
            "error: a wheel of nvcc is not the one whose SHA-256 is recorded",
            "  ERROR: THESE PACKAGES",
        ],
    );
    pip("WARNING: Retrying after connection broken by NewConnectionError");
    it.refused(&[], &[], &["error: pip reaches no package index that has nvcc's wheels; an installed CUDA toolkit is taken by --toolkit DIR"]);
    let log = it.log();
    let asked =
        "python3 -m pip install --no-deps --only-binary :all: --require-hashes --no-compile";
    assert_eq!(
        log.lines().filter(|line| line.starts_with(asked)).count(),
        2,
        "{log}"
    );
    let left: Vec<_> = std::fs::read_dir(it.folder.join("target/cuda"))
        .unwrap()
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

/// The card's bench builds our contender by the same rules, once PyTorch has seen a card.
#[test]
fn a_bench_on_a_card_builds_its_contender_so() {
    let it = Pretence::new("bench");
    it.toolkit("kit", NVCC);
    let kit = it.path("kit");
    let bench = |python: &str| {
        it.program("bin/python3", python);
        let mut command = it.command(Path::new(env!("CARGO_BIN_EXE_xtask")));
        command.args(["bench", "--device", "cuda", "--toolkit", &kit]);
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8(output.stderr).unwrap()
    };
    let text = bench("echo PyTorch finds no card >&2; exit 1");
    assert!(text.ends_with("PyTorch finds no card\n"), "{text}");
    assert!(!it.log().contains("cargo "), "cargo was started");
    let text = bench("echo card Pretence");
    let (log, target) = (it.log(), it.path("target/cuda"));
    let triple = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let line = format!(
        "cargo build --release --package ddpm-train --example network_speed --features cuda --target {triple} --target-dir {target}"
    );
    assert!(
        log.lines().any(|found| found == line),
        "{line:?} is not in\n{log}"
    );
    let example = format!("cannot start `{target}/{triple}/release/examples/network_speed`");
    assert!(text.contains(&example), "{text}");
}
