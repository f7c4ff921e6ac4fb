//! Write barriers: the system calls of a real run, replayed; nothing is visible or relied upon before it is on the disk.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::program::{words, workplace};

/// What a power cut at this moment could still take away.
#[derive(Default)]
struct Unsynced {
    /// Files that were written to since they were last synced.
    files: BTreeSet<PathBuf>,
    /// Names in folders that were made or renamed since the folder was last synced.
    names: BTreeMap<PathBuf, BTreeSet<PathBuf>>,
    /// What became visible, in order, and what is wrong.
    seen: Vec<PathBuf>,
    wrong: Vec<String>,
}

#[test]
fn nothing_is_visible_or_relied_upon_before_it_is_on_the_disk() {
    let folder = workplace();
    let run = folder.path().join("deep/er/run");
    let log = folder.path().join("calls");
    let calls = "trace=openat,write,writev,pwrite64,ftruncate,fsync,fdatasync,rename,renameat,renameat2,mkdir,mkdirat,\
                 unlink,unlinkat,rmdir";
    let flags = "--config tiny.toml --steps 8 --threads 1 --quiet --set train.checkpoint_every=2 --set train.keep_last=2";
    let traced = Command::new("strace")
        .current_dir(folder.path())
        .args(["-f", "-y", "-s", "0", "-e", calls, "-o"])
        .arg(&log)
        .arg(env!("CARGO_BIN_EXE_ddpm-train"))
        .args(words(flags))
        .arg("--out")
        .arg(&run)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .output();
    match traced {
        Ok(output) if output.status.success() => {}
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(text.contains("ptrace"), "{text}");
            println!("skipped: strace may not trace here");
            return;
        }
        Err(_) => {
            println!("skipped: there is no strace");
            return;
        }
    }
    let calls = whole_calls(&std::fs::read_to_string(&log).unwrap());
    let state = Unsynced::after(calls.iter(), &run);
    assert!(state.wrong.is_empty(), "{}", state.wrong.join("\n"));
    // The same run without its syncs would be found out.
    let careless = |call: &&String| !call.starts_with("fsync") && !call.starts_with("fdatasync");
    let careless = Unsynced::after(calls.iter().filter(careless), &run);
    for part in [
        "is visible before",
        "is removed while",
        "before the metrics",
    ] {
        assert!(
            careless.wrong.iter().any(|wrong| wrong.contains(part)),
            "{part}"
        );
    }
    let names = state
        .seen
        .iter()
        .filter_map(|path| path.file_name()?.to_str());
    let checkpoints: Vec<_> = names
        .filter(|name| name.starts_with("step-") && !name.contains('.'))
        .collect();
    assert_eq!(
        checkpoints,
        [
            "step-00000002",
            "step-00000004",
            "step-00000006",
            "step-00000008"
        ]
    );
    // In the end everything is on the disk, up to the folder that was there before.
    let mut above = Some(run.join("checkpoints"));
    while let Some(place) = above.filter(|place| place.starts_with(folder.path())) {
        let left = state.names.get(&place).cloned().unwrap_or_default();
        let left: Vec<_> = left.iter().filter(|name| !is_hidden(name)).collect();
        assert!(left.is_empty(), "{} has unsynced {left:?}", place.display());
        above = place.parent().map(Path::to_owned);
    }
    assert!(
        state
            .files
            .iter()
            .all(|file| !file.starts_with(run.join("checkpoints")))
    );
}

impl Unsynced {
    fn after<'a>(calls: impl Iterator<Item = &'a String>, run: &Path) -> Self {
        let mut state = Self::default();
        for call in calls {
            state.replay(call, run);
        }
        state
    }

    fn replay(&mut self, call: &str, run: &Path) {
        let Some((name, rest)) = call.split_once('(') else {
            return;
        };
        let failed = rest.contains(") = -1 ");
        let in_place = |path: &Path| path.starts_with(run) || run.starts_with(path);
        match name {
            _ if failed => {}
            "openat" if rest.contains("O_CREAT") => {
                if let Some(path) = opened(rest).filter(|path| in_place(path)) {
                    self.files.insert(path.clone());
                    self.made(&path);
                }
            }
            "write" | "writev" | "pwrite64" | "ftruncate" => {
                if let Some(path) = handle(rest).filter(|path| in_place(path)) {
                    self.files.insert(path);
                }
            }
            "fsync" | "fdatasync" => {
                if let Some(path) = handle(rest) {
                    self.files.remove(&path);
                    self.names.remove(&path);
                }
            }
            "mkdir" | "mkdirat" => {
                if let Some(path) = quoted(rest).first().filter(|path| in_place(path)) {
                    self.made(path);
                }
            }
            "rename" | "renameat" | "renameat2" => {
                if let [from, to] = &quoted(rest)[..]
                    && in_place(to)
                {
                    self.renamed(from, to, run);
                }
            }
            "unlink" | "unlinkat" | "rmdir" => {
                if let Some(path) = quoted(rest).first() {
                    self.files.remove(path);
                    self.names.remove(path);
                }
            }
            _ => {}
        }
    }

    fn made(&mut self, path: &Path) {
        if let Some(folder) = path.parent() {
            self.names
                .entry(folder.into())
                .or_default()
                .insert(path.into());
        }
    }

    fn renamed(&mut self, from: &Path, to: &Path, run: &Path) {
        if is_hidden(to) {
            // An old checkpoint goes: those that stay must be on the disk, and every folder on the way to them.
            let ways = to
                .ancestors()
                .skip(1)
                .take_while(|place| run.parent().is_some_and(|up| place.starts_with(up)));
            for place in ways.map(Path::to_owned).collect::<Vec<_>>() {
                let unsynced = self.names.get(&place).into_iter().flatten();
                for name in unsynced.filter(|name| {
                    !is_hidden(name) && (name.is_dir() || name.starts_with(run.join("checkpoints")))
                }) {
                    self.wrong.push(format!(
                        "{} is removed while {} is not on the disk",
                        from.display(),
                        name.display()
                    ));
                }
            }
        } else {
            let under = |path: &&PathBuf| path.starts_with(from);
            for file in self.files.iter().filter(under) {
                self.wrong.push(format!(
                    "{} is visible before {} is synced",
                    to.display(),
                    file.display()
                ));
            }
            for place in self.names.keys().filter(under) {
                self.wrong.push(format!(
                    "{} is visible before the folder {} is synced",
                    to.display(),
                    place.display()
                ));
            }
            let metrics = run.join("metrics.jsonl");
            if to.starts_with(run.join("checkpoints")) && self.files.contains(&metrics) {
                self.wrong.push(format!(
                    "{} is visible before the metrics up to it are synced",
                    to.display()
                ));
            }
            self.seen.push(to.into());
        }
        let moved = |path: PathBuf| match path.strip_prefix(from) {
            Ok(rest) if rest.as_os_str().is_empty() => to.to_owned(),
            Ok(rest) => to.join(rest),
            Err(_) => path,
        };
        self.files = std::mem::take(&mut self.files)
            .into_iter()
            .map(moved)
            .collect();
        self.made(to);
    }
}

/// Hidden siblings and drafts are nobody's business until they have their name.
fn is_hidden(path: &Path) -> bool {
    let name = path
        .file_name()
        .map(|name| name.to_string_lossy().into_owned());
    name.is_some_and(|name| name.starts_with('.') || name.ends_with(".tmp"))
}

/// The calls in the order in which they ended, without the process; those that another thread interrupted put together.
fn whole_calls(log: &str) -> Vec<String> {
    let mut begun: BTreeMap<&str, &str> = BTreeMap::new();
    let mut calls = Vec::new();
    for line in log.lines() {
        let Some((process, call)) = line.split_once(' ') else {
            continue;
        };
        let call = call.trim_start();
        if let Some(start) = call.strip_suffix(" <unfinished ...>") {
            begun.insert(process, start);
        } else if let Some((_, end)) = call
            .strip_prefix("<... ")
            .and_then(|rest| rest.split_once(" resumed>"))
        {
            calls.push(format!(
                "{}{end}",
                begun.remove(process).unwrap_or_default()
            ));
        } else {
            calls.push(call.to_owned());
        }
    }
    calls
}

/// `5</a/b>, ...` is /a/b.
fn handle(rest: &str) -> Option<PathBuf> {
    let (_, path) = rest.split_once('<')?;
    Some(path.split_once('>')?.0.into())
}

/// `..., 0666) = 5</a/b>` is /a/b.
fn opened(rest: &str) -> Option<PathBuf> {
    let (_, result) = rest.rsplit_once(") = ")?;
    handle(result)
}

/// The paths between quotation marks.
fn quoted(rest: &str) -> Vec<PathBuf> {
    rest.split('"')
        .skip(1)
        .step_by(2)
        .map(PathBuf::from)
        .collect()
}
