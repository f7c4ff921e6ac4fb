//! Where a report was made: program, data, processor, day.

use std::time::{SystemTime, UNIX_EPOCH};

use ddpm_kernels::processor::Level;
use toml::Table;

use crate::report::PROGRAM;

/// Names and texts; `run` is the section of that name in `run.toml`.
pub(super) fn rows(run: &Table) -> Vec<(String, String)> {
    let recorded = |key: &str| run.get(key).and_then(toml::Value::as_str);
    let mut rows = vec![("made by", PROGRAM.to_owned())];
    rows.extend(recorded("program").map(|program| ("trained by", program.to_owned())));
    rows.extend(recorded("preset").map(|preset| ("preset", preset.to_owned())));
    rows.extend(recorded("data_sha256").map(|sha| ("SHA-256 of the data", sha.to_owned())));
    let (system, kind) = (std::env::consts::OS, std::env::consts::ARCH);
    rows.push(("system", format!("{system}, {kind}")));
    rows.extend(processor().map(|name| ("processor", name)));
    rows.push(("kernels", format!("{:?}", Level::current())));
    rows.push(("threads", rayon::current_num_threads().to_string()));
    rows.push(("day", today()));
    let own = |(name, text): (&str, String)| (name.to_owned(), text);
    rows.into_iter().map(own).collect()
}

/// As Linux names it; elsewhere nothing does without a library.
fn processor() -> Option<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// Year, month and day in Greenwich.
fn today() -> String {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    date(since.as_secs() / 86_400)
}

/// The date so many days after the first of January 1970. Years begin in March, so that the odd day is a year's last.
fn date(days: u64) -> String {
    let days = days + 719_468; // since the first of March of the year 0
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (year, month) = (400 * era + year, (month + 2) % 12 + 1);
    let year = year + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_have_dates() {
        let cases = [
            (0, "1970-01-01"),
            (59, "1970-03-01"),
            (789, "1972-02-29"),
            (11_016, "2000-02-29"),
            (20_782, "2026-11-25"),
            (47_540, "2100-02-28"),
            (47_541, "2100-03-01"),
        ];
        for (days, expected) in cases {
            assert_eq!(date(days), expected);
        }
    }
}
