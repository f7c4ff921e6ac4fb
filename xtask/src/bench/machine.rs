//! The machine: its processor, and whether anybody else is using it.

use std::thread::sleep;
use std::time::Duration;

/// Shares of all cores' time above which a measurement is not to be trusted.
const TOO_BUSY: f64 = 0.05;
const TOO_MUCH_STOLEN: f64 = 0.01;

/// What is known of the machine, and what was seen of others on it.
pub(crate) struct Machine {
    /// Processor, instructions that matter, cores.
    pub(crate) processor: String,
    load: Option<f64>,
    cores: usize,
    begun: Option<Clock>,
    /// Seen while all contenders lay idle.
    idle: Clock,
}

/// The time that all cores have spent, in the system's ticks.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Clock {
    all: u64,
    idle: u64,
    stolen: u64,
}

impl Machine {
    /// Looks before anything is started.
    pub(crate) fn look() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let read = |path| std::fs::read_to_string(path).unwrap_or_default();
        let load = read("/proc/loadavg");
        Self {
            processor: format!("{}, {cores} cores", processor(&read("/proc/cpuinfo"))),
            load: load.split(' ').next().and_then(|load| load.parse().ok()),
            cores,
            begun: None,
            idle: Clock::default(),
        }
    }

    /// Looks at an idle machine for two seconds; from here on stolen time counts.
    pub(crate) fn watch_while_idle(&mut self) {
        self.begun = Clock::now();
        self.rest(Duration::from_secs(2));
    }

    /// Waits while no contender works; whatever works meanwhile is somebody else.
    pub(crate) fn rest(&mut self, duration: Duration) {
        let before = Clock::now();
        sleep(duration);
        if let (Some(before), Some(after)) = (before, Clock::now()) {
            let seen = after.since(before);
            self.idle.all += seen.all;
            self.idle.idle += seen.idle;
        }
    }

    /// What there is to be said against measuring now, or against what was measured until now.
    pub(crate) fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if let Some(load) = self.load.filter(|&load| load > self.cores as f64 / 2.0) {
            warnings.push(format!("the load was {load} before anything was started"));
        }
        let busy = self.idle.share(self.idle.all - self.idle.idle);
        if busy > TOO_BUSY {
            let busy = 100.0 * busy;
            warnings.push(format!(
                "something else used {busy:.0} % of the machine while the contenders lay idle: not a quiet machine"
            ));
        }
        if let (Some(begun), Some(now)) = (self.begun, Clock::now()) {
            let since = now.since(begun);
            let stolen = since.share(since.stolen);
            if stolen > TOO_MUCH_STOLEN {
                let stolen = 100.0 * stolen;
                warnings.push(format!(
                    "other machines on the same host took {stolen:.1} % of the time (steal)"
                ));
            }
        }
        warnings
    }
}

impl Clock {
    /// `None` on systems that do not say.
    fn now() -> Option<Self> {
        Self::read(&std::fs::read_to_string("/proc/stat").ok()?)
    }

    /// The first line of `/proc/stat`: user, nice, system, idle, waiting for disks, two kinds of interrupts, stolen.
    fn read(text: &str) -> Option<Self> {
        let numbers = text.lines().next()?.strip_prefix("cpu ")?;
        let numbers = numbers.split_whitespace().take(8).map(str::parse);
        let ticks: Vec<u64> = numbers.collect::<Result<_, _>>().ok()?;
        let &[_, _, _, idle, waiting, _, _, stolen] = ticks.as_slice() else {
            return None;
        };
        Some(Self {
            all: ticks.iter().sum(),
            idle: idle + waiting,
            stolen,
        })
    }

    fn since(self, earlier: Self) -> Self {
        Self {
            all: self.all.saturating_sub(earlier.all),
            idle: self.idle.saturating_sub(earlier.idle),
            stolen: self.stolen.saturating_sub(earlier.stolen),
        }
    }

    fn share(self, part: u64) -> f64 {
        part as f64 / self.all.max(1) as f64
    }
}

/// The processor's name and which of the instructions that matter here it has.
fn processor(text: &str) -> String {
    let value = |key: &str| {
        let mut lines = text.lines().filter_map(|line| line.split_once(':'));
        let line = lines.find(|(name, _)| name.trim() == key);
        line.map_or("", |(_, value)| value.trim())
    };
    let name = match value("model name") {
        "" => std::env::consts::ARCH,
        name => name,
    };
    let flags: Vec<&str> = value("flags").split(' ').collect();
    let known = ["avx2", "avx512f", "avx512_bf16", "amx_bf16"];
    let has = known.into_iter().filter(|flag| flags.contains(flag));
    let has: Vec<&str> = has.collect();
    if has.is_empty() {
        name.to_owned()
    } else {
        format!("{name} ({})", has.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_is_read_from_the_first_line() {
        let text = "cpu  10 1 5 80 4 0 0 3 2 0\ncpu0 1 2 3 4 5 6 7 8 9 10\n";
        let clock = Clock::read(text).unwrap();
        assert_eq!((clock.all, clock.idle, clock.stolen), (103, 84, 3));
        assert_eq!(Clock::read("intr 5"), None);
        assert_eq!(Clock::read("cpu  1 2 3"), None);
        let later = Clock::read("cpu  20 1 5 170 4 0 0 3").unwrap();
        let seen = later.since(clock);
        assert_eq!((seen.all, seen.idle, seen.stolen), (100, 90, 0));
        assert_eq!(seen.share(seen.all - seen.idle), 0.1);
    }

    #[test]
    fn the_processor_is_named_with_its_instructions() {
        let text = "processor : 0\nmodel name\t: Fast 3000\nflags\t\t: fpu avx2 avx512f sse\n";
        assert_eq!(processor(text), "Fast 3000 (avx2, avx512f)");
        assert_eq!(processor(""), std::env::consts::ARCH);
    }
}
