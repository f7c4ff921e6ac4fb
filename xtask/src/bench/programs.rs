//! The programs that a bench starts: ours, built in release, and the peers' script.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::contender::last_lines;
use super::flags::Flags;
use super::work::{Network, Operation, Peer, Precision, Task, Work};
use crate::cargo::cargo;

/// Where everything is, and the command line of each.
pub(crate) struct Programs {
    root: PathBuf,
    release: PathBuf,
    python: String,
    threads: String,
    versions: String,
}

/// Floating-point operations of one pass.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Flop {
    evaluate: f64,
    train: f64,
}

impl Flop {
    /// Of a pass of this work.
    pub(crate) fn of(self, work: Work) -> f64 {
        match work {
            Work::Train => self.train,
            _ => self.evaluate,
        }
    }
}

impl Programs {
    /// Asks Python for what it has, then builds ours.
    pub(crate) fn build(flags: &Flags) -> Result<Self> {
        let mut programs = Self {
            release: release_folder()?,
            root: root()?,
            python: flags.python.clone(),
            threads: flags.threads.to_string(),
            versions: String::new(),
        };
        programs.versions = programs.ask_versions(&flags.peers)?;
        let mut ours = vec!["build", "--release"];
        if flags.works.iter().any(|&work| work != Work::Operations) {
            ours.extend(["--package", "ddpm-train", "--example", "network_speed"]);
        }
        if flags.works.contains(&Work::Operations) {
            ours.extend(["--package", "ddpm-kernels", "--example", "operation_speed"]);
        }
        if flags.start_up {
            ours.extend(["--package", "ddpm-sample", "--bin", "ddpm-sample"]);
        }
        let status = cargo().args(&ours).current_dir(&programs.root).status();
        if !status.context("cannot start cargo")?.success() {
            bail!("`cargo {}` failed", ours.join(" "));
        }
        Ok(programs)
    }

    /// Names and versions of what takes part.
    pub(crate) fn versions(&self) -> &str {
        &self.versions
    }

    /// GFLOP/s of PyTorch's largest matrix product: about the most that these threads can do.
    pub(crate) fn peak(&self, precision: Precision) -> Result<f64> {
        let mut command = self.script("peak");
        command.args(["--threads", &self.threads, "--precision", precision.word()]);
        let said = answer(&mut command)?;
        let peak = said.trim().parse();
        peak.with_context(|| format!("peers.py said `{}`, expected GFLOP/s", said.trim()))
    }

    /// What a pass costs, as PyTorch counts it.
    pub(crate) fn count(&self, folder: &Path) -> Result<Flop> {
        let said = answer(self.script("count").arg("--folder").arg(folder))?;
        let numbers: Vec<f64> = said.split_whitespace().flat_map(str::parse).collect();
        let &[evaluate, train] = numbers.as_slice() else {
            bail!("peers.py said `{}`, expected two counts", said.trim());
        };
        Ok(Flop { evaluate, train })
    }

    /// Fills a folder with a network, its weights and its inputs.
    pub(crate) fn prepare(&self, network: Network, folder: &Path) -> Result<()> {
        let mut command = Command::new(self.example("network_speed"));
        command.args(["prepare", "--network", network.letter(), "--batch"]);
        command
            .arg(network.batch().to_string())
            .arg("--folder")
            .arg(folder);
        answer(&mut command).map(drop)
    }

    /// Fills a folder with an operation's inputs.
    pub(crate) fn prepare_operation(&self, operation: Operation, folder: &Path) -> Result<()> {
        let mut command = Command::new(self.example("operation_speed"));
        command.args(["prepare", "--operation", &operation.word()]);
        answer(command.arg("--folder").arg(folder)).map(drop)
    }

    /// Ours at work.
    pub(crate) fn ours(
        &self,
        task: Task,
        precision: Precision,
        folder: &Path,
        output: &Path,
    ) -> Command {
        let command = match task {
            Task::Network(..) => self.network(precision),
            Task::Operation(_) => self.operation("graph"),
        };
        self.at_work(command, task, folder, output)
    }

    /// Our network in a precision.
    fn network(&self, precision: Precision) -> Command {
        let mut command = Command::new(self.example("network_speed"));
        command.args(["contend", "--precision", precision.word()]);
        command
    }

    /// A peer at work; one that reads ONNX gets its file first.
    pub(crate) fn peer(
        &self,
        peer: Peer,
        task: Task,
        precision: Precision,
        folder: &Path,
        output: &Path,
    ) -> Result<Command> {
        match peer {
            Peer::Plan => {
                return Ok(self.at_work(self.operation(peer.word()), task, folder, output));
            }
            Peer::Float => {
                return Ok(self.at_work(self.network(Precision::F32), task, folder, output));
            }
            _ => {}
        }
        if peer.reads_onnx() && !folder.join("network.onnx").exists() {
            answer(self.script("export").arg("--folder").arg(folder))?;
        }
        let mut command = self.script("contend");
        command.args(["--kind", peer.word(), "--precision", precision.word()]);
        Ok(self.at_work(command, task, folder, output))
    }

    /// Ours at an operation, with the memory and the threads that `ddpm-train` gives itself.
    fn operation(&self, how: &str) -> Command {
        let mut command = Command::new(self.example("operation_speed"));
        command.args(["contend", "--as", how]);
        command.env("MIMALLOC_PURGE_DELAY", "-1");
        command.env("CANDLE_NUM_THREADS", &self.threads);
        command
    }

    /// Ours from its start to one image of the shipped digits.
    pub(crate) fn our_first_image(&self, picture: &Path) -> Command {
        let mut command = Command::new(self.release.join(program("ddpm-sample")));
        command
            .args("--num 1 --sampler ddim --steps 50 --quiet".split(' '))
            .args(["--threads", &self.threads, "--model"])
            .arg(self.digits())
            .arg("--out")
            .arg(picture);
        command
    }

    /// diffusers from its start to one image of the same model.
    pub(crate) fn their_first_image(&self, picture: &Path) -> Command {
        let mut command = self.script("first-image");
        command
            .args(["--threads", &self.threads, "--model"])
            .arg(self.digits())
            .arg("--out")
            .arg(picture);
        command
    }

    fn at_work(&self, mut command: Command, task: Task, folder: &Path, output: &Path) -> Command {
        command.args(["--work", task.work().word(), "--threads", &self.threads]);
        if let Task::Operation(operation) = task {
            command.args(["--operation", &operation.word()]);
        }
        command
            .arg("--folder")
            .arg(folder)
            .arg("--output")
            .arg(output);
        command
    }

    fn ask_versions(&self, peers: &[Peer]) -> Result<String> {
        let mut command = self.script("versions");
        command.arg("--kinds");
        command.args(peers.iter().map(|peer| peer.word()));
        let mut versions = vec![format!(
            "ddpm {}{}",
            env!("CARGO_PKG_VERSION"),
            commit(&self.root)
        )];
        if let Ok(rustc) = answer(Command::new("rustc").arg("--version")) {
            versions.extend(rustc.split(" (").next().map(str::to_owned));
        }
        versions.extend(answer(&mut command)?.lines().map(str::to_owned));
        Ok(versions.join(", "))
    }

    fn script(&self, task: &str) -> Command {
        let mut command = Command::new(&self.python);
        command
            .arg(self.root.join("xtask/bench/peers.py"))
            .arg(task);
        command.env("OMP_NUM_THREADS", &self.threads);
        // torch.compile: in its own process, one kernel after the other (its pool of workers can wait for ever), and what
        // it has compiled once it finds again.
        command.env("TORCHINDUCTOR_COMPILE_THREADS", "1");
        command.env(
            "TORCHINDUCTOR_CACHE_DIR",
            self.release.with_file_name("inductor"),
        );
        command
    }

    fn example(&self, name: &str) -> PathBuf {
        self.release.join("examples").join(program(name))
    }

    fn digits(&self) -> PathBuf {
        self.root.join("checkpoints/digits")
    }
}

/// The folder of the workspace.
pub(super) fn root() -> Result<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
    Ok(root.context("xtask lies in no workspace")?.to_owned())
}

/// Where cargo puts what is built in release.
pub(super) fn release_folder() -> Result<PathBuf> {
    let this = std::env::current_exe().context("where is this program?")?;
    let profiles = this.parent().and_then(Path::parent);
    let profiles = profiles.context("this program lies in no build folder")?;
    Ok(profiles.join("release"))
}

/// Which sources these are, where git knows.
pub(super) fn commit(root: &Path) -> String {
    let mut git = Command::new("git");
    git.args(["describe", "--always", "--dirty"])
        .current_dir(root);
    answer(&mut git).map_or(String::new(), |commit| format!(" ({})", commit.trim()))
}

/// What a command prints; where it fails, an error with the end of its complaints.
pub(crate) fn answer(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_owned();
    let program = program.to_string_lossy();
    let output = command.output();
    let output = output.with_context(|| match program.contains("python") {
        true => format!("cannot start `{program}`; --python PYTHON names another"),
        false => format!("cannot start `{program}`"),
    })?;
    if !output.status.success() {
        let complaints = String::from_utf8_lossy(&output.stderr);
        let (status, last) = (output.status, last_lines(&complaints, 12));
        bail!("`{program}` ended ({status}):\n{last}");
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

pub(super) fn program(name: &str) -> String {
    format!("{name}{}", std::env::consts::EXE_SUFFIX)
}
