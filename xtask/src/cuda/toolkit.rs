//! nvcc and CUDA's headers: installed, or from pinned wheels of the Python package index, each with its SHA-256.

use std::ffi::OsStr;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

/// The wheels of CUDA 13.0 that nvcc consists of, as pip's own requirements file has them. Later ones emit PTX that the
/// drivers of CUDA 13.0 refuse.
const WHEELS: &str = "\
nvidia-cuda-nvcc==13.0.88 --hash=sha256:56fe502eb77625a12f25172caa3cdddb4e4c8ba2c8c17dba44b164761b380f03
nvidia-nvvm==13.0.88 --hash=sha256:c5f41ffeb6466944a026dfa5317d7d85355c119bbec279205d22f1869d1054e0
nvidia-cuda-crt==13.0.88 --hash=sha256:2c8043c7c9e02492716426e9919fc78d2c5b3b2a7a768a88e952676b08aa55a4
nvidia-cuda-runtime==13.0.96 --hash=sha256:7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548
nvidia-cuda-cccl==13.0.85 --hash=sha256:e0da7ad981f3a8aff08241b5bfc1af868742a63e2762f53a5171c492ef242649
";

/// Where the wheels are unpacked, beneath the target folder.
const UNPACKED: &str = "nvcc-13.0.88";

/// The releases of nvcc that are taken: those that cudarc knows, from the first whose C++ library candle's kernels compile
/// with.
const RELEASES: [(u32, u32); 10] = [
    (12, 4),
    (12, 5),
    (12, 6),
    (12, 8),
    (12, 9),
    (13, 0),
    (13, 1),
    (13, 2),
    (13, 3),
    (13, 4),
];

/// A toolkit that can be used.
#[derive(Debug)]
pub(crate) struct Toolkit {
    /// The folder with `bin`, `include` and `nvvm`.
    pub(crate) home: PathBuf,
    /// The real nvcc.
    pub(crate) nvcc: PathBuf,
    release: (u32, u32),
}

impl Toolkit {
    /// The one that is named, else the one of `CUDA_HOME`, else that of the nvcc on the PATH, else the wheels'.
    ///
    /// # Errors
    /// One that was named, by flag or by variable, cannot be used; the wheels cannot be had.
    pub(crate) fn find(named: Option<&Path>, folder: &Path) -> Result<Self> {
        if let Some(home) = named {
            return Self::at(home).context("--toolkit cannot be used");
        }
        if let Some(home) = std::env::var_os("CUDA_HOME").filter(|home| !home.is_empty()) {
            return Self::at(Path::new(&home))
                .context("CUDA_HOME cannot be used (without it nvcc 13.0 is fetched)");
        }
        if let Some(home) = on_the_path("nvcc") {
            match Self::at(&home) {
                Ok(toolkit) => return Ok(toolkit),
                Err(error) => println!("not used: {error:#}"),
            }
        }
        fetched(folder)
    }

    /// The toolkit in a folder.
    fn at(home: &Path) -> Result<Self> {
        let nvcc = home.join("bin/nvcc");
        let asked = Command::new(&nvcc).arg("--version").output();
        let asked = asked.with_context(|| format!("cannot start {}", nvcc.display()))?;
        let text = String::from_utf8_lossy(&asked.stdout);
        let found = release(&text);
        let found = found
            .with_context(|| format!("{} --version does not say its release", nvcc.display()))?;
        ensure!(
            RELEASES.contains(&found),
            "{} is of release {}, expected one of {}",
            nvcc.display(),
            dotted(found),
            RELEASES.map(dotted).join(", ")
        );
        ensure!(
            home.join("include/cuda.h").is_file(),
            "{} has no include/cuda.h",
            home.display()
        );
        Ok(Self {
            home: home.to_owned(),
            nvcc,
            release: found,
        })
    }

    /// The version as cudarc's build script wants it.
    pub(crate) fn for_cudarc(&self) -> String {
        format!("{}0{}0", self.release.0, self.release.1)
    }

    /// # Errors
    /// This nvcc compiles for other cards only.
    pub(crate) fn check_capability(&self, capability: &str) -> Result<()> {
        let listed = Command::new(&self.nvcc).arg("--list-gpu-arch").output();
        let listed = listed.with_context(|| format!("cannot start {}", self.nvcc.display()))?;
        let text = String::from_utf8_lossy(&listed.stdout);
        let known: Vec<&str> = text
            .lines()
            .filter_map(|line| line.trim().strip_prefix("compute_"))
            .collect();
        let plain = capability.trim_end_matches(['a', 'f']);
        ensure!(
            known.is_empty() || known.contains(&plain),
            "nvcc {} knows no compute capability {capability} (CUDA_COMPUTE_CAP), only {}",
            dotted(self.release),
            known.join(", ")
        );
        Ok(())
    }
}

impl fmt::Display for Toolkit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "nvcc {} in {}",
            dotted(self.release),
            self.home.display()
        )
    }
}

fn dotted((major, minor): (u32, u32)) -> String {
    format!("{major}.{minor}")
}

/// `Cuda compilation tools, release 13.0, V13.0.88` -> (13, 0).
fn release(text: &str) -> Option<(u32, u32)> {
    let (_, after) = text.split_once("release ")?;
    let (major, minor) = after.split(',').next()?.trim().split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// The folder above the folder of a program on the PATH, links followed.
fn on_the_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let file = std::env::split_paths(&path)
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())?;
    Some(
        std::fs::canonicalize(file)
            .ok()?
            .parent()?
            .parent()?
            .to_owned(),
    )
}

/// The wheels' toolkit, unpacked before or now.
fn fetched(folder: &Path) -> Result<Toolkit> {
    let unpacked = folder.join(UNPACKED);
    let home = unpacked.join("nvidia/cu13");
    if let Ok(toolkit) = Toolkit::at(&home) {
        return Ok(toolkit);
    }
    ensure!(
        std::env::consts::ARCH == "x86_64",
        "no nvcc of a fitting release is installed, and the wheels of one are pinned for x86_64 only, not for {}; \
         install the CUDA toolkit and name it: --toolkit DIR",
        std::env::consts::ARCH
    );
    println!(
        "fetching nvcc 13.0 (105 MB, once; an installed one is taken from CUDA_HOME or the PATH)"
    );
    let partial = folder.join(format!("{UNPACKED}.partial"));
    drop(std::fs::remove_dir_all(&partial));
    std::fs::create_dir_all(&partial)
        .with_context(|| format!("cannot make the folder {}", partial.display()))?;
    let list = partial.join("requirements.txt");
    std::fs::write(&list, WHEELS).with_context(|| format!("cannot write {}", list.display()))?;
    let mut pip = pip()?;
    pip.args("install --no-deps --only-binary :all: --require-hashes --no-compile --disable-pip-version-check".split(' '));
    pip.args([
        OsStr::new("--quiet"),
        "--target".as_ref(),
        partial.as_os_str(),
        "--requirement".as_ref(),
        list.as_os_str(),
    ]);
    let output = pip.output().context("cannot start pip")?;
    if !output.status.success() {
        drop(std::fs::remove_dir_all(&partial));
        bail!(refused(&String::from_utf8_lossy(&output.stderr)));
    }
    make_executable(&partial.join("nvidia/cu13"))?;
    drop(std::fs::remove_dir_all(&unpacked));
    std::fs::rename(&partial, &unpacked).with_context(|| {
        format!(
            "cannot rename {} to {}",
            partial.display(),
            unpacked.display()
        )
    })?;
    Toolkit::at(&home)
}

/// The pip of a Python that has one.
fn pip() -> Result<Command> {
    for (program, words) in [("python3", &["-m", "pip"][..]), ("pip3", &[]), ("pip", &[])] {
        let asked = super::quiet(Command::new(program).args(words).arg("--version")).status();
        if asked.is_ok_and(|status| status.success()) {
            let mut pip = Command::new(program);
            pip.args(words);
            return Ok(pip);
        }
    }
    bail!(
        "no nvcc of a fitting release is installed, and there is no pip to fetch one with: install pip (on Debian: \
         apt install python3-pip), or the CUDA toolkit and name it: --toolkit DIR"
    )
}

/// What pip says where it cannot speak to an index, or finds nothing there. Without warnings it says only the last.
const NO_INDEX: [&str; 7] = [
    "onnection",
    "resolve",
    "timed out",
    "SSL",
    "Proxy",
    "network",
    "from versions: none",
];

/// Why pip failed, in a sentence, and what it said itself.
fn refused(said: &str) -> String {
    let why = if said.contains("DO NOT MATCH THE HASHES") {
        "a wheel of nvcc is not the one whose SHA-256 is recorded; nothing of it was unpacked"
    } else if NO_INDEX.iter().any(|word| said.contains(word)) {
        "pip reaches no package index that has nvcc's wheels; an installed CUDA toolkit is taken by --toolkit DIR"
    } else if said.contains("No matching distribution") {
        "pip finds no such wheel of nvcc for this Python and system"
    } else {
        "pip could not fetch nvcc"
    };
    let lines: Vec<&str> = said
        .lines()
        .map(str::trim_end)
        .filter(|line| !line.trim().is_empty())
        .collect();
    let last = lines[lines.len().saturating_sub(12)..].join("\n  ");
    format!("{why}\n  {last}")
}

/// Wheels do not always say which of their files are programs.
fn make_executable(home: &Path) -> Result<()> {
    #[cfg(unix)]
    for folder in ["bin", "nvvm/bin"] {
        use std::os::unix::fs::PermissionsExt;
        let folder = home.join(folder);
        let files = std::fs::read_dir(&folder)
            .with_context(|| format!("cannot read {}", folder.display()))?;
        for file in files {
            let path = file?.path();
            if path.is_file() {
                std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))
                    .with_context(|| format!("cannot make {} executable", path.display()))?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_release_is_read() {
        let text = "nvcc: NVIDIA (R) Cuda compiler driver\nBuilt on Wed\nCuda compilation tools, release 13.0, V13.0.88\n";
        assert_eq!(release(text), Some((13, 0)));
        assert_eq!(release("clang version 17"), None);
    }

    #[test]
    fn every_wheel_is_pinned_to_a_hash() {
        for line in WHEELS.lines() {
            let (name, hash) = line.split_once(" --hash=sha256:").unwrap();
            assert!(name.contains("==13.0."), "{line}");
            assert!(
                hash.len() == 64 && hash.bytes().all(|b| b.is_ascii_hexdigit()),
                "{line}"
            );
        }
    }

    #[test]
    fn what_pip_says_is_put_in_a_sentence() {
        for (said, expected) in [
            (
                "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.",
                "a wheel of nvcc is not the one",
            ),
            (
                "WARNING: Retrying after connection broken by 'NewConnectionError'\nERROR: No matching distribution found",
                "pip reaches no package index",
            ),
            (
                "ERROR: Could not find a version (from versions: 13.5.37)\nERROR: No matching distribution found for nvidia-nvvm==13.0.88",
                "pip finds no such wheel",
            ),
            (
                "ERROR: No space left on device",
                "pip could not fetch nvcc\n  ERROR: No space left on device",
            ),
        ] {
            let sentence = refused(said);
            assert!(sentence.starts_with(expected), "{sentence}");
        }
    }
}
