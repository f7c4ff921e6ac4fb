//! `cargo xtask cuda`: builds the programs so that they open the CUDA libraries when they start, if there are any.
//!
//! Three things make it possible with candle as it is published. cudarc's source opens libraries at run time where it sees
//! its feature `dynamic-loading`, which candle switches off: here the compiler is told of the feature, and cargo is not.
//! What the build scripts want to link is found as empty libraries, of which the linker keeps none. And candle's kernels
//! for language models, which would need CUDA's C++ runtime, are compiled to nothing by the [`nvcc`] that stands between.

pub(crate) mod nvcc;
mod program;
mod toolkit;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, ExitStatus, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::Usage;
use crate::cargo::cargo;
use toolkit::Toolkit;

/// What is built where nothing else is asked for.
const PROGRAMS: [&str; 2] = ["ddpm-train", "ddpm-sample"];

/// Bytes that the programs may have in all.
const LARGEST: u64 = 64 << 20;

/// What the build scripts of cudarc and candle-kernels ask the linker for.
const LIBRARIES: [&str; 7] = [
    "cuda", "cudart", "cublas", "cublasLt", "curand", "nvrtc", "cudnn",
];

/// NVIDIA's Hopper: H100, H200.
const DEFAULT_CAPABILITY: &str = "90";

/// What was typed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Flags {
    /// The folder of an installed toolkit, above `bin/nvcc`.
    toolkit: Option<PathBuf>,
    /// A command line for cargo in place of building the programs.
    cargo: Vec<String>,
}

impl Flags {
    pub(crate) fn parse(typed: &[String]) -> Result<Self, Usage> {
        let end = typed.iter().position(|word| word == "--");
        let cargo = end.and_then(|end| typed.get(end + 1..)).unwrap_or_default();
        let mut flags = Self {
            toolkit: None,
            cargo: cargo.to_vec(),
        };
        let mut words = typed[..end.unwrap_or(typed.len())].iter();
        while let Some(word) = words.next() {
            if word != "--toolkit" {
                let message = format!("unknown flag `{word}`; what cargo is to do follows `--`");
                return Err(Usage(message));
            }
            let folder = words.next();
            let folder = folder.ok_or_else(|| Usage("`--toolkit` needs a folder".to_owned()))?;
            flags.toolkit = Some(folder.into());
        }
        if end.is_some() && cargo.is_empty() {
            let message = "`--` is followed by what cargo is to do, such as: test -p ddpm-kernels";
            return Err(Usage(message.to_owned()));
        }
        Ok(flags)
    }
}

/// Builds the programs, or does with cargo what was asked for.
pub(crate) fn run(typed: &[String]) -> Result<Result<ExitCode>, Usage> {
    let flags = Flags::parse(typed)?;
    Ok(build(&flags))
}

/// Builds an example so; its file.
pub(crate) fn example(toolkit: Option<&Path>, package: &str, name: &str) -> Result<PathBuf> {
    let words = [
        "build",
        "--release",
        "--package",
        package,
        "--example",
        name,
    ];
    let flags = Flags {
        toolkit: toolkit.map(Path::to_owned),
        cargo: words.map(str::to_owned).to_vec(),
    };
    let (status, built) = start(&flags, |line| eprintln!("{line}"))?;
    ensure!(
        status.success(),
        "`cargo {}` failed, as `cargo xtask cuda -- ` has it",
        words.join(" ")
    );
    Ok(built.join("release/examples").join(name))
}

fn build(flags: &Flags) -> Result<ExitCode> {
    let (status, built) = start(flags, |line| println!("{line}"))?;
    if !status.success() || !flags.cargo.is_empty() {
        let code = status.code().and_then(|code| u8::try_from(code).ok());
        return Ok(ExitCode::from(code.unwrap_or(1)));
    }
    let mut bytes = 0;
    for name in PROGRAMS {
        let program = program::examine(&built.join("release").join(name))?;
        println!("{program}");
        bytes += program.bytes;
    }
    let megabytes = bytes as f64 / f64::from(1 << 20);
    ensure!(
        bytes < LARGEST,
        "the programs have {megabytes:.1} MiB in all, more than {}",
        LARGEST >> 20
    );
    println!(
        "{megabytes:.1} MiB in all. They run on any machine with glibc as new as this one's: --device says on what. \
         docs/cuda.md says which libraries they look for"
    );
    Ok(ExitCode::SUCCESS)
}

/// Does with cargo what the flags say, once `say` was told by which compiler. How it ended, and the folder that it builds into.
fn start(flags: &Flags, say: impl Fn(&str)) -> Result<(ExitStatus, PathBuf)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .context("xtask lies in no workspace")?;
    let folder = target_folder(root).join("cuda");
    let target = host()?;
    compiler()?;
    let toolkit = Toolkit::find(flags.toolkit.as_deref(), &folder)?;
    let capability = capability(std::env::var("CUDA_COMPUTE_CAP").ok().as_deref())?;
    toolkit.check_capability(&capability)?;
    say(&format!(
        "{toolkit}; kernels for compute capability {capability}"
    ));
    let stage = Stage::set(&folder, &toolkit)?;
    let mut cargo = stage.cargo(&toolkit, &capability, &target);
    cargo
        .current_dir(root)
        .args(cargo_words(flags, &target, &folder));
    let status = cargo.status().context("cannot start cargo")?;
    Ok((status, folder.join(target)))
}

/// The words for cargo: the user's, with the feature and the folder, or what builds the programs.
fn cargo_words(flags: &Flags, target: &str, folder: &Path) -> Vec<OsString> {
    let typed = flags.cargo.iter().map(String::as_str);
    let (mut words, rest): (Vec<&str>, Vec<&str>) = match flags.cargo.as_slice() {
        [] => (
            vec!["build", "--release", "-p", PROGRAMS[0], "-p", PROGRAMS[1]],
            vec![],
        ),
        // Behind a second `--` are words for the program that cargo starts.
        some => {
            let end = some.iter().position(|word| word == "--");
            let end = end.unwrap_or(some.len());
            (typed.clone().take(end).collect(), typed.skip(end).collect())
        }
    };
    words.extend(["--features", "cuda", "--target", target, "--target-dir"]);
    let words = words.into_iter().map(OsString::from);
    let words = words.chain([folder.as_os_str().to_owned()]);
    words.chain(rest.into_iter().map(OsString::from)).collect()
}

/// The folder that cargo builds into.
fn target_folder(root: &Path) -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), |dir| root.join(dir))
}

/// The platform that is built on and for.
fn host() -> Result<String> {
    let (arch, os) = (std::env::consts::ARCH, std::env::consts::OS);
    ensure!(
        os == "linux" && cfg!(target_env = "gnu"),
        "this way of building is for Linux with glibc, not for {arch} {os}; with everything installed \
         `cargo build --release --features cuda` builds programs that are linked with CUDA's libraries"
    );
    Ok(format!("{arch}-unknown-linux-gnu"))
}

/// nvcc compiles what is for the processor with g++, and gcc makes the empty libraries.
fn compiler() -> Result<()> {
    for name in ["gcc", "g++"] {
        let asked = quiet(Command::new(name).arg("--version")).status();
        if !asked.is_ok_and(|status| status.success()) {
            bail!(
                "`{name}` is not on the PATH; nvcc needs it: install a C++ compiler (on Debian: apt install g++)"
            );
        }
    }
    Ok(())
}

/// `90`, also written `9.0` or `sm_90`; with the letter of an architecture's own instructions if asked: `90a`.
fn capability(asked: Option<&str>) -> Result<String> {
    let asked = asked.unwrap_or(DEFAULT_CAPABILITY);
    let plain = asked.trim().trim_start_matches("sm_").replace('.', "");
    let digits = plain.trim_end_matches(['a', 'f']);
    let whole = (2..=3).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit());
    ensure!(
        whole && plain.len() - digits.len() <= 1,
        "CUDA_COMPUTE_CAP is `{asked}`, expected a compute capability such as 90 (H100, H200), 80 (A100) or 89 (RTX 4090)"
    );
    Ok(plain)
}

/// What a build with CUDA finds where it looks.
struct Stage {
    /// Has the `bin/nvcc` that stands between, and the toolkit's headers.
    home: PathBuf,
    /// The empty libraries.
    libraries: PathBuf,
}

impl Stage {
    /// Sets it up, once or anew.
    fn set(folder: &Path, toolkit: &Toolkit) -> Result<Self> {
        let (home, libraries) = (folder.join("stage"), folder.join("libraries"));
        let bin = home.join("bin");
        for new in [&bin, &libraries] {
            let made = std::fs::create_dir_all(new);
            made.with_context(|| format!("cannot make the folder {}", new.display()))?;
        }
        let this = std::env::current_exe().context("cannot find this program's own file")?;
        link(&this, &bin.join("nvcc"))?;
        link(&toolkit.home.join("include"), &home.join("include"))?;
        for name in LIBRARIES {
            let path = libraries.join(format!("lib{name}.so"));
            if !path.exists() {
                let mut gcc = Command::new("gcc");
                gcc.args(["-shared", "-x", "c", "/dev/null", "-o"])
                    .arg(&path);
                let made = gcc.status().context("cannot start gcc")?;
                ensure!(made.success(), "gcc could not make {}", path.display());
            }
        }
        Ok(Self { home, libraries })
    }

    /// cargo, told all of it.
    fn cargo(&self, toolkit: &Toolkit, capability: &str, target: &str) -> Command {
        let mut cargo = cargo();
        // Only the target's code sees the flags: build scripts, which check that one way of linking is chosen, do not.
        let mut flags: Vec<OsString> = Vec::new();
        match std::env::var_os("CARGO_ENCODED_RUSTFLAGS") {
            Some(encoded) => flags.push(encoded),
            None => {
                let plain = std::env::var("RUSTFLAGS").unwrap_or_default();
                flags.extend(plain.split_whitespace().map(OsString::from));
            }
        }
        flags.extend(["--cfg", "feature=\"dynamic-loading\"", "-L"].map(OsString::from));
        let mut search = OsString::from("native=");
        search.push(&self.libraries);
        flags.push(search);
        flags.retain(|flag| !flag.is_empty());
        cargo
            .env(
                "CARGO_ENCODED_RUSTFLAGS",
                flags.join(OsString::from("\u{1f}").as_os_str()),
            )
            .env("CARGO_PROFILE_RELEASE_STRIP", "symbols")
            .env("CARGO_BUILD_TARGET", target)
            .env("CUDA_HOME", &self.home)
            .env("NVCC", self.home.join("bin/nvcc"))
            .env(nvcc::REAL, &toolkit.nvcc)
            .env("CUDARC_CUDA_VERSION", toolkit.for_cudarc())
            .env("CUDA_COMPUTE_CAP", capability)
            .env_remove("CUDA_PATH");
        cargo
    }
}

/// Makes a symbolic link, or turns one.
#[cfg(unix)]
fn link(to: &Path, at: &Path) -> Result<()> {
    if std::fs::read_link(at).is_ok_and(|now| now == to) {
        return Ok(());
    }
    drop(std::fs::remove_file(at));
    std::os::unix::fs::symlink(to, at)
        .with_context(|| format!("cannot link {} to {}", at.display(), to.display()))
}

#[cfg(not(unix))]
fn link(_: &Path, _: &Path) -> Result<()> {
    bail!("this way of building is for Linux")
}

/// A command whose words nobody wants to read.
fn quiet(command: &mut Command) -> &mut Command {
    command.stdout(Stdio::null()).stderr(Stdio::null())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn capabilities_are_written_in_many_ways() {
        for (asked, expected) in [
            (None, "90"),
            (Some("90"), "90"),
            (Some("9.0"), "90"),
            (Some("sm_80"), "80"),
            (Some("12.0"), "120"),
            (Some("90a"), "90a"),
        ] {
            assert_eq!(capability(asked).unwrap(), expected);
        }
        for wrong in ["", "9", "hopper", "90b", "90aa", "9000"] {
            let error = capability(Some(wrong)).unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("CUDA_COMPUTE_CAP is `{wrong}`")),
                "{error}"
            );
        }
    }

    #[test]
    fn cargo_is_told_the_feature_before_the_words_for_a_program() {
        let line = |typed: &str| {
            let flags = Flags::parse(&words(typed)).unwrap();
            let words = cargo_words(&flags, "T", Path::new("D"));
            words
                .join(OsString::from(" ").as_os_str())
                .into_string()
                .unwrap()
        };
        let ours = "--features cuda --target T --target-dir D";
        assert_eq!(
            line(""),
            format!("build --release -p ddpm-train -p ddpm-sample {ours}")
        );
        assert_eq!(
            line("--toolkit /t -- test -p a"),
            format!("test -p a {ours}")
        );
        assert_eq!(
            line("-- test -p a -- b --nocapture"),
            format!("test -p a {ours} -- b --nocapture")
        );
    }
}
