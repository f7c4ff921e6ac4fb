//! A program as it was built: how large it is, and that it can start where there is no CUDA.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

/// What begins the names of CUDA's libraries, which must not be needed to start.
const CUDA: [&str; 3] = ["libcu", "libnv", "libnccl"];

/// A program.
pub(crate) struct Program {
    path: PathBuf,
    /// Its size.
    pub(crate) bytes: u64,
    /// The libraries without which it does not start; empty where nothing could tell.
    needed: Vec<String>,
}

/// Starts it once, asking for its version, and reads what it needs.
pub(crate) fn examine(path: &Path) -> Result<Program> {
    let size = std::fs::metadata(path);
    let bytes = size
        .with_context(|| format!("cannot find {}", path.display()))?
        .len();
    let read = Command::new("readelf").arg("-d").arg(path).output();
    let needed = match read {
        Ok(output) if output.status.success() => needed(&String::from_utf8_lossy(&output.stdout)),
        _ => Vec::new(),
    };
    let cuda = |name: &&String| CUDA.iter().any(|begin| name.starts_with(begin));
    if let Some(name) = needed.iter().find(cuda) {
        bail!("{} does not start without {name}", path.display());
    }
    let started = Command::new(path).arg("--version").output();
    let started = started.with_context(|| format!("cannot start {}", path.display()))?;
    ensure!(
        started.status.success(),
        "{} --version: {}",
        path.display(),
        started.status
    );
    Ok(Program {
        path: path.to_owned(),
        bytes,
        needed,
    })
}

/// The names in `readelf -d`'s lines of kind NEEDED.
fn needed(text: &str) -> Vec<String> {
    let lines = text.lines().filter(|line| line.contains("(NEEDED)"));
    let name = |line: &str| Some(line.split_once('[')?.1.split_once(']')?.0.to_owned());
    lines.filter_map(name).collect()
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let megabytes = self.bytes as f64 / f64::from(1 << 20);
        write!(f, "{}: {megabytes:.1} MiB", self.path.display())?;
        match self.needed.as_slice() {
            [] => Ok(()),
            some => write!(f, ", needs {}", some.join(" ")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn needed_libraries_are_read() {
        let text = "Dynamic section at offset 0x1 contains 3 entries:\n  Tag Type Name/Value\n \
            0x0000000000000001 (NEEDED)             Shared library: [libm.so.6]\n \
            0x0000000000000001 (NEEDED)             Shared library: [libc.so.6]\n \
            0x000000000000000e (SONAME)             Library soname: [libcuda.so.1]\n";
        assert_eq!(needed(text), ["libm.so.6", "libc.so.6"]);
    }
}
