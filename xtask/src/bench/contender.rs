//! One process that works when it is told to and lies idle while the others do.
//!
//! It says `ready` once its first pass is made and written. To `go N` it answers with the seconds that N passes took, to
//! `quit` with the most memory it ever held, in bytes. On a card it holds nothing after `rest`, and can go again after `wake`.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};

/// A process in conversation; it ends with this value.
pub(crate) struct Contender {
    name: String,
    process: Child,
    to: ChildStdin,
    /// Its lines, which a thread reads: so that waiting for one can end.
    from: Receiver<std::io::Result<String>>,
    complaints: PathBuf,
}

impl Contender {
    /// Starts it and waits until it is ready, at most so long. What it complains of is kept in a file.
    pub(crate) fn start(
        name: &str,
        mut command: Command,
        complaints: &Path,
        limit: Duration,
    ) -> Result<Self> {
        let file = File::create(complaints)
            .with_context(|| format!("cannot write {}", complaints.display()))?;
        let mut process = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(file)
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        let (Some(to), Some(said)) = (process.stdin.take(), process.stdout.take()) else {
            bail!("{name} has no pipes");
        };
        let (lines, from) = channel();
        std::thread::spawn(move || {
            // Where nobody listens any more, nothing is lost.
            let mut lines_of = BufReader::new(said).lines();
            while lines_of.next().is_some_and(|line| lines.send(line).is_ok()) {}
        });
        let mut contender = Self {
            name: name.to_owned(),
            process,
            to,
            from,
            complaints: complaints.to_owned(),
        };
        contender.expect("ready", Some(limit))?;
        Ok(contender)
    }

    /// Has it give up what it holds of a card.
    pub(crate) fn rest(&mut self) -> Result<()> {
        self.tell("rest");
        self.expect("resting", None)
    }

    /// Has it set up its work again, at most for so long.
    pub(crate) fn wake(&mut self, limit: Duration) -> Result<()> {
        self.tell("wake");
        self.expect("ready", Some(limit))
    }

    /// The number that it answers to this.
    pub(crate) fn number(&mut self, line: &str) -> Result<u64> {
        let said = self.ask(line)?;
        let number = said.parse();
        number.map_err(|_| anyhow!("{} said `{said}`, expected a number", self.name))
    }

    /// Ends it; the numbers that it leaves.
    pub(crate) fn quit_with_numbers(mut self) -> Result<Vec<u64>> {
        let line = self.ask("quit")?;
        let numbers: Result<Vec<u64>, _> = line.split_whitespace().map(str::parse).collect();
        let numbers = numbers.map_err(|_| anyhow!("{} said `{line}`, expected numbers", self.name));
        self.process.wait().context("it does not end")?;
        numbers
    }

    /// The seconds that so many passes take.
    pub(crate) fn go(&mut self, passes: usize) -> Result<f64> {
        let line = self.ask(&format!("go {passes}"))?;
        seconds(&line).ok_or_else(|| anyhow!("{} said `{line}`, expected seconds", self.name))
    }

    /// Ends it; the most memory it ever held, in bytes, where it knows.
    pub(crate) fn quit(mut self) -> Result<Option<u64>> {
        let line = self.ask("quit")?;
        let bytes = line.parse::<u64>();
        let bytes = bytes.map_err(|_| anyhow!("{} said `{line}`, expected bytes", self.name))?;
        self.process.wait().context("it does not end")?;
        Ok(Some(bytes).filter(|&bytes| bytes > 0))
    }

    fn ask(&mut self, line: &str) -> Result<String> {
        self.tell(line);
        self.line(None)
    }

    fn tell(&mut self, line: &str) {
        // Where it has died, its silence says so, and its complaints say why.
        drop(writeln!(self.to, "{line}").and_then(|()| self.to.flush()));
    }

    fn expect(&mut self, word: &str, limit: Option<Duration>) -> Result<()> {
        let line = self.line(limit)?;
        if line != word {
            bail!("{} said `{line}`, expected `{word}`", self.name);
        }
        Ok(())
    }

    fn line(&mut self, limit: Option<Duration>) -> Result<String> {
        let heard = match limit {
            Some(limit) => self.from.recv_timeout(limit),
            None => self.from.recv().map_err(RecvTimeoutError::from),
        };
        match heard {
            Ok(line) => {
                let line = line.with_context(|| format!("cannot hear {}", self.name))?;
                return Ok(line.trim().to_owned());
            }
            Err(RecvTimeoutError::Timeout) => {
                let seconds = limit.unwrap_or_default().as_secs_f64();
                bail!("{} was not ready after {seconds:.0} s", self.name);
            }
            Err(RecvTimeoutError::Disconnected) => {}
        }
        let status = self.process.wait().context("it does not end")?;
        let text = std::fs::read_to_string(&self.complaints).unwrap_or_default();
        let last = last_lines(&text, 12);
        Err(anyhow!("{} ended ({status}):\n{last}", self.name))
    }
}

impl Drop for Contender {
    fn drop(&mut self) {
        // One that has quit is past killing.
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

fn seconds(line: &str) -> Option<f64> {
    let seconds = line.parse::<f64>().ok();
    seconds.filter(|seconds| seconds.is_finite() && *seconds > 0.0)
}

/// The last lines that say anything.
pub(crate) fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text
        .lines()
        .filter(|line| !line.trim().is_empty())
        .collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

/// The line that most likely says why: the last that names an error, else the last, and not too much of it.
pub(crate) fn reason(text: &str) -> String {
    let names_error = |line: &&str| line.contains("Error: ") || line.starts_with("error: ");
    let last = last_lines(text, 1);
    let line = text.lines().rev().find(names_error).unwrap_or(&last);
    let short: String = line.trim().chars().take(160).collect();
    if short.len() < line.trim().len() {
        short + " ..."
    } else {
        short
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_is_the_line_that_names_an_error() {
        let text = "Traceback\n  File x\nInductorError: no compiler\nSet TORCH_LOGS for more\n";
        assert_eq!(reason(text), "InductorError: no compiler");
        assert_eq!(reason("it ended\nKilled\n"), "Killed");
        assert_eq!(reason(&"x".repeat(200)), "x".repeat(160) + " ...");
    }

    #[test]
    fn seconds_are_above_zero() {
        assert_eq!(seconds("0.25"), Some(0.25));
        for line in ["", "0", "-1", "NaN", "inf", "ready"] {
            assert_eq!(seconds(line), None, "{line}");
        }
    }

    #[test]
    fn complaints_are_their_end() {
        assert_eq!(last_lines("a\n\nb\n  \nc\n", 2), "b\nc");
        assert_eq!(last_lines("a", 2), "a");
        assert_eq!(last_lines("", 2), "");
    }

    #[cfg(unix)]
    mod with_a_shell {
        use super::*;

        fn start(name: &str, script: &str) -> Result<Contender> {
            let mut shell = Command::new("sh");
            shell.args(["-c", script]);
            let file = format!("ddpm-contender-{name}-{}", std::process::id());
            let complaints = std::env::temp_dir().join(file);
            let contender = Contender::start(name, shell, &complaints, Duration::from_secs(1));
            drop(std::fs::remove_file(complaints));
            contender
        }

        #[test]
        fn it_works_when_told_to_and_says_what_it_took() {
            let script = "echo ready; while read word n; do [ $word = quit ] && echo 4096 && exit; echo $n.5; done";
            let mut contender = start("obedient", script).unwrap();
            assert_eq!(contender.go(3).unwrap(), 3.5);
            assert_eq!(contender.go(1).unwrap(), 1.5);
            assert_eq!(contender.quit().unwrap(), Some(4096));
        }

        #[test]
        fn it_rests_wakes_and_leaves_numbers() {
            let script = "echo ready; while read word n; do case $word in rest) echo resting;; wake) echo ready;; \
                          used) echo 12;; quit) echo 1 2 3; exit;; *) echo eh;; esac; done";
            let mut contender = start("restful", script).unwrap();
            contender.rest().unwrap();
            contender.wake(Duration::from_secs(1)).unwrap();
            assert_eq!(contender.number("used").unwrap(), 12);
            let error = contender.number("begin").unwrap_err().to_string();
            assert_eq!(error, "restful said `eh`, expected a number");
            assert_eq!(contender.quit_with_numbers().unwrap(), [1, 2, 3]);
            let mut restless = start("restless", "echo ready; while read line; do echo no; done");
            let error = restless.as_mut().unwrap().rest().unwrap_err().to_string();
            assert_eq!(error, "restless said `no`, expected `resting`");
        }

        #[test]
        fn one_that_is_not_ready_in_time_is_out() {
            let error = start("slow", "read line; echo ready").err().unwrap();
            assert_eq!(error.to_string(), "slow was not ready after 1 s");
        }

        #[test]
        fn one_that_dies_is_quoted() {
            let error = start("mortal", "echo why >&2; exit 3").err().unwrap();
            let text = error.to_string();
            assert!(
                text.starts_with("mortal ended") && text.ends_with("why"),
                "{text}"
            );
            let mut contender = start("later", "echo ready; read line; exit 1").unwrap();
            assert!(contender.go(1).is_err());
            let error = start("talkative", "echo hello").err().unwrap();
            assert_eq!(
                error.to_string(),
                "talkative said `hello`, expected `ready`"
            );
        }
    }
}
