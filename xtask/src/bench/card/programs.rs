//! The programs that a card's bench starts, and what they need: looked for before anything is built.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use super::super::programs::{answer, commit, program, release_folder, root};
use super::flags::Flags;
use super::work::{Device, Network, Peer, Precision, Task, Work};
use crate::cargo::cargo;
use crate::cuda;

/// Where everything is, and the command line of each.
pub(crate) struct Programs {
    root: PathBuf,
    release: PathBuf,
    ours: PathBuf,
    python: String,
    threads: String,
    device: Device,
    seen: Seen,
    /// What ours says of the device.
    story: String,
}

/// What PyTorch sees.
#[derive(Debug, Default, PartialEq)]
struct Seen {
    card: String,
    uuid: Option<String>,
    /// Folders of the CUDA libraries that it uses.
    libraries: Vec<PathBuf>,
    /// Names and versions.
    versions: Vec<String>,
}

/// Floating-point operations of one image.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Flop {
    evaluate: f64,
    train: f64,
}

impl Flop {
    /// Of a pass.
    pub(crate) fn of(self, task: Task) -> f64 {
        let of_an_image = match task.work {
            Work::Train => self.train,
            Work::Evaluate | Work::Sample => self.evaluate,
        };
        of_an_image * (task.images * task.steps) as f64
    }
}

impl Programs {
    /// Asks PyTorch for the card, then builds ours, then asks that for the card.
    pub(crate) fn ready(flags: &Flags) -> Result<Self> {
        let mut programs = Self {
            root: root()?,
            release: release_folder()?,
            ours: PathBuf::new(),
            python: flags.python.clone(),
            threads: flags.threads.to_string(),
            device: flags.device.clone(),
            seen: Seen::default(),
            story: String::new(),
        };
        let mut look = programs.script("look");
        look.arg("--kinds")
            .args(flags.peers.iter().map(|peer| peer.word()));
        programs.seen = Seen::read(&answer(&mut look)?);
        programs.ours = match (&flags.ours, &flags.device) {
            (Some(file), _) => {
                let there = file.is_file();
                ensure!(there, "there is no {} (--ours)", file.display());
                std::path::absolute(file)?
            }
            (None, Device::Card(_)) => {
                cuda::example(flags.toolkit.as_deref(), "ddpm-train", "network_speed")?
            }
            (None, Device::Rehearsal) => programs.build_for_the_processor()?,
        };
        let mut look = programs.network_speed();
        look.args(["look", "--device", flags.device.ours()]);
        answer(&mut look)?.trim().clone_into(&mut programs.story);
        Ok(programs)
    }

    fn build_for_the_processor(&self) -> Result<PathBuf> {
        let words = "build --release --package ddpm-train --example network_speed";
        let status = cargo()
            .args(words.split(' '))
            .current_dir(&self.root)
            .status();
        if !status.context("cannot start cargo")?.success() {
            bail!("`cargo {words}` failed");
        }
        let examples = self.release.join("examples");
        Ok(examples.join(program("network_speed")))
    }

    /// The card, as PyTorch and ours see it.
    pub(crate) fn card(&self) -> String {
        match self.device {
            Device::Card(_) => format!("{} (ddpm: {})", self.seen.card, self.story),
            Device::Rehearsal => self.story.clone(),
        }
    }

    /// Names and versions of what takes part.
    pub(crate) fn versions(&self) -> String {
        let ours = format!("ddpm {}{}", env!("CARGO_PKG_VERSION"), commit(&self.root));
        let rustc = answer(Command::new("rustc").arg("--version")).unwrap_or_default();
        let rustc = rustc.split(" (").next().map(|text| text.trim().to_owned());
        let rustc = rustc.filter(|text| !text.is_empty());
        let all = [ours].into_iter().chain(rustc);
        let all: Vec<String> = all.chain(self.seen.versions.iter().cloned()).collect();
        all.join(", ")
    }

    /// FLOP/s of PyTorch's largest matrix product: about the most that the card can do.
    pub(crate) fn peak(&self, precision: Precision) -> Result<f64> {
        let mut command = self.script("peak");
        command.args(["--precision", precision.word()]);
        let said = answer(&mut command)?;
        let peak = said.trim().parse();
        peak.with_context(|| format!("card_peers.py said `{}`, expected FLOP/s", said.trim()))
    }

    /// What an image costs, as PyTorch counts it.
    pub(crate) fn count(&self, folder: &Path) -> Result<Flop> {
        let said = answer(self.script("count").arg("--folder").arg(folder))?;
        let numbers: Vec<f64> = said.split_whitespace().flat_map(str::parse).collect();
        let &[evaluate, train] = numbers.as_slice() else {
            bail!("card_peers.py said `{}`, expected two counts", said.trim());
        };
        Ok(Flop { evaluate, train })
    }

    /// Fills a folder with a network, its weights and its inputs.
    pub(crate) fn prepare(&self, network: Network, folder: &Path) -> Result<()> {
        let mut command = self.network_speed();
        let batch = network.batch(&self.device).to_string();
        command.args(["prepare", "--network", network.prepared(&self.device)]);
        command.args(["--batch", &batch]);
        command.args(["--walk", &self.device.walk().to_string()]);
        answer(command.arg("--folder").arg(folder)).map(drop)
    }

    /// Ours at work.
    pub(crate) fn ours(&self, task: Task, folder: &Path, output: &Path) -> Command {
        let mut command = self.network_speed();
        command.args(["contend", "--device", self.device.ours()]);
        self.at_work(command, task, folder, output)
    }

    /// A peer at work.
    pub(crate) fn peer(&self, peer: Peer, task: Task, folder: &Path, output: &Path) -> Command {
        let mut command = self.script("contend");
        command.args(["--kind", peer.word()]);
        self.at_work(command, task, folder, output)
    }

    /// What says how much of the card's memory is used, if there is a card.
    pub(crate) fn watch(&self) -> Option<Command> {
        let uuid = self.seen.uuid.as_ref()?;
        let mut command = self.script("watch");
        command.args(["--uuid", uuid]);
        Some(command)
    }

    fn at_work(&self, mut command: Command, task: Task, folder: &Path, output: &Path) -> Command {
        command
            .args(["--work", task.work.word()])
            .args(["--precision", task.precision.word()])
            .args(["--threads", &self.threads])
            .args(["--steps", &self.device.steps().to_string()])
            .arg("--folder")
            .arg(folder)
            .arg("--output")
            .arg(output);
        command
    }

    /// Ours, with the very libraries that PyTorch uses where those are pip's.
    fn network_speed(&self) -> Command {
        let mut command = Command::new(&self.ours);
        let before = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
        if let Some(path) = library_path(&self.seen.libraries, before) {
            command.env("LD_LIBRARY_PATH", path);
        }
        command
    }

    fn script(&self, task: &str) -> Command {
        let mut command = Command::new(&self.python);
        command.arg(self.root.join("xtask/bench/card_peers.py"));
        command.args([task, "--device", self.device.theirs()]);
        command.env("OMP_NUM_THREADS", &self.threads);
        // What torch.compile has compiled once it finds again.
        command.env(
            "TORCHINDUCTOR_CACHE_DIR",
            self.release.with_file_name("inductor-card"),
        );
        command
    }
}

impl Seen {
    /// From lines `key value`; others are passed over.
    fn read(text: &str) -> Self {
        let mut seen = Self::default();
        for line in text.lines() {
            match line.trim().split_once(' ') {
                Some(("card", card)) => card.clone_into(&mut seen.card),
                Some(("uuid", uuid)) => seen.uuid = Some(uuid.to_owned()),
                Some(("libraries", folder)) => seen.libraries.push(folder.into()),
                Some(("version", version)) => seen.versions.push(version.to_owned()),
                _ => {}
            }
        }
        seen
    }
}

/// The folders before those that were searched anyway; `None` where there are none.
fn library_path(folders: &[PathBuf], before: OsString) -> Option<OsString> {
    if folders.is_empty() {
        return None;
    }
    let old = std::env::split_paths(&before).filter(|folder| !folder.as_os_str().is_empty());
    std::env::join_paths(folders.iter().cloned().chain(old)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_pytorch_sees_is_read_line_by_line() {
        let text = "a warning\ncard NVIDIA H200, 139.8 GiB, compute 9.0\nuuid 12-ab\nlibraries /a b/lib\n\
                    libraries /c\nversion CUDA 13.0\nversion torch 2.15.0\n";
        assert_eq!(
            Seen::read(text),
            Seen {
                card: "NVIDIA H200, 139.8 GiB, compute 9.0".to_owned(),
                uuid: Some("12-ab".to_owned()),
                libraries: vec!["/a b/lib".into(), "/c".into()],
                versions: vec!["CUDA 13.0".to_owned(), "torch 2.15.0".to_owned()],
            }
        );
        assert_eq!(Seen::read(""), Seen::default());
    }

    #[test]
    #[cfg(unix)]
    fn libraries_of_pytorch_come_first() {
        let folders = ["/a".into(), "/b".into()];
        let path = |folders: &[PathBuf], before: &str| library_path(folders, before.into());
        assert_eq!(path(&folders, "/c"), Some("/a:/b:/c".into()));
        assert_eq!(path(&folders, ""), Some("/a:/b".into()));
        assert_eq!(path(&[], "/c"), None);
    }

    #[test]
    fn a_walk_costs_its_steps() {
        let flop = Flop {
            evaluate: 10.0,
            train: 30.0,
        };
        let card = Device::Card("cuda".to_owned());
        let task = |work| Task::on(&card, Network::M128, work, Precision::F32);
        assert_eq!(flop.of(task(Work::Train)), 128.0 * 30.0);
        assert_eq!(flop.of(task(Work::Evaluate)), 128.0 * 10.0);
        assert_eq!(flop.of(task(Work::Sample)), 64.0 * 50.0 * 10.0);
    }
}
