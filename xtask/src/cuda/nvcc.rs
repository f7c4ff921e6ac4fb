//! The nvcc that build scripts are given: the real one, but for two things of candle-kernels' that are not wanted.

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};

/// The variable that names the real one.
pub(crate) const REAL: &str = "DDPM_NVCC";

/// Whether this process was started as nvcc.
pub(crate) fn is_meant(program: Option<&OsStr>) -> bool {
    program.is_some_and(|program| Path::new(program).file_name() == Some(OsStr::new("nvcc")))
}

/// Compiles as the real nvcc does; a file of which nothing is wanted becomes an empty object, and PTX is made for every card
/// from the given one on, where candle asks for what only that one has.
pub(crate) fn run(typed: &[OsString]) -> Result<ExitCode> {
    let explicit = std::env::var("CUDA_COMPUTE_CAP").is_ok_and(|cap| cap.ends_with(['a', 'f']));
    let (program, words) = match empty_object(typed) {
        Some(words) => ("gcc".into(), words),
        None => {
            let real = std::env::var_os(REAL).with_context(|| {
                format!("this nvcc is started by `cargo xtask cuda`, which sets {REAL}")
            })?;
            (
                real,
                if explicit {
                    typed.to_vec()
                } else {
                    forward_compatible(typed)
                },
            )
        }
    };
    let status = Command::new(&program).args(words).status();
    let status = status.with_context(|| format!("cannot start {}", program.display()))?;
    Ok(ExitCode::from(
        status
            .code()
            .and_then(|code| u8::try_from(code).ok())
            .unwrap_or(1),
    ))
}

/// The words that make gcc compile nothing, where an object of candle-kernels' for language models is asked for.
fn empty_object(typed: &[OsString]) -> Option<Vec<OsString>> {
    let has = |word: &str| typed.iter().any(|typed| typed == word);
    let unwanted = |path: &OsString| {
        let path = Path::new(path);
        let in_folder = |name: &str| path.parent().is_some_and(|folder| folder.ends_with(name));
        path.extension() == Some(OsStr::new("cu"))
            && (in_folder("src/moe")
                || in_folder("src/mmq_gguf")
                || path.ends_with("src/mmvq_gguf.cu"))
    };
    let output = typed.iter().skip_while(|word| *word != "-o").nth(1)?;
    (has("-c") && typed.iter().any(unwanted)).then(|| {
        let words = ["-c", "-x", "c", "/dev/null", "-o"].map(OsString::from);
        words.into_iter().chain([output.clone()]).collect()
    })
}

/// `-gencode=arch=compute_90a,code=sm_90a` becomes `-gencode=arch=compute_90,code=sm_90` where PTX is asked for: what a letter
/// names exists on no later card.
fn forward_compatible(typed: &[OsString]) -> Vec<OsString> {
    if !typed.iter().any(|word| word == "--ptx") {
        return typed.to_vec();
    }
    let plain = |word: &OsString| {
        let text = word
            .to_str()
            .filter(|text| text.starts_with("-gencode=arch=compute_"));
        let Some(text) = text else {
            return word.clone();
        };
        let parts = text
            .split(',')
            .map(|part| part.trim_end_matches(['a', 'f']));
        OsString::from(parts.collect::<Vec<_>>().join(","))
    };
    typed.iter().map(plain).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<OsString> {
        line.split_whitespace().map(OsString::from).collect()
    }

    #[test]
    fn only_what_language_models_need_becomes_nothing() {
        let options = "-gencode=arch=compute_90a,code=sm_90a -c -o out/x.o -O3";
        for unwanted in [
            "src/moe/moe_gguf.cu",
            "src/mmq_gguf/mmq_quantize.cu",
            "src/mmvq_gguf.cu",
        ] {
            let typed = words(&format!("{options} {unwanted}"));
            assert_eq!(
                empty_object(&typed),
                Some(words("-c -x c /dev/null -o out/x.o")),
                "{unwanted}"
            );
        }
        for wanted in [
            "src/conv.cu",
            "cuda/moe_norm.cu",
            "src/moe.cu",
            "src/moe/x.o",
        ] {
            assert_eq!(
                empty_object(&words(&format!("{options} {wanted}"))),
                None,
                "{wanted}"
            );
        }
        assert_eq!(empty_object(&words("--lib -o libmoe.a src/moe/a.o")), None);
    }

    #[test]
    fn ptx_is_for_later_cards_too_and_objects_are_as_asked() {
        let asked = "-gencode=arch=compute_90a,code=sm_90a --default-stream per-thread src/fill.cu";
        let plain = "-gencode=arch=compute_90,code=sm_90 --default-stream per-thread src/fill.cu";
        assert_eq!(
            forward_compatible(&words(&format!("--ptx {asked}"))),
            words(&format!("--ptx {plain}"))
        );
        assert_eq!(
            forward_compatible(&words(&format!("-cubin {asked}"))),
            words(&format!("-cubin {asked}"))
        );
    }

    #[test]
    fn the_name_decides() {
        assert!(is_meant(Some(OsStr::new("/a/stage/bin/nvcc"))));
        assert!(!is_meant(Some(OsStr::new("target/debug/xtask"))));
        assert!(!is_meant(None));
    }
}
