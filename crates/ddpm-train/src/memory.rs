//! Whether a training fits into memory: what it will need, what the system and its limits leave, said before it starts.

use std::path::Path;

use ddpm_unet::{MemoryEstimate, Place, UNetConfig, Use, is_a_card};

use crate::{Error, Result, Settings};

/// What a training needs at its most, in bytes, beside the images of its data: of the card's memory where `train.device` comes
/// to a card.
///
/// The network in training, and on top of it what its pictures and the held-out loss need while they are made.
///
/// # Errors
/// The images do not suit the network's depth.
pub fn memory_needed(
    settings: &Settings,
    config: &UNetConfig,
    (height, width): (usize, usize),
) -> Result<u64> {
    let train = &settings.train;
    let at_once = train.micro_batch.unwrap_or(train.batch_size);
    let used = Use::Training {
        averages: settings.ema.rates.len(),
        recompute: train.gradient_checkpointing,
        in_one_pass: settings.one_pass_a_step(),
    };
    let precision = settings.train.precision.on_this_processor();
    let (by_graph, on_card) = (settings.goes_by_graph(), is_a_card(settings.train.device));
    let estimate = |images, used| -> Result<MemoryEstimate> {
        Ok(match (by_graph, on_card) {
            (true, _) => config.memory_estimate_by_graph(precision, images, height, width, used)?,
            (_, true) => config.memory_estimate_on_card(precision, images, height, width, used)?,
            _ => config.memory_estimate_in(precision, images, height, width, used)?,
        })
    };
    let training = estimate(at_once, used)?;
    let in_a_picture = settings.samples.count.min(crate::samples::AT_ONCE);
    let held_out = train.held_out_images.min(at_once);
    let looked_at = in_a_picture.max(held_out);
    let looking = match looked_at {
        0 => 0,
        n => estimate(n, Use::Sampling)?.total(),
    };
    let beside = match is_a_card(settings.train.device) {
        true => WORKSPACE,
        false => PROGRAM,
    };
    Ok(training
        .total()
        .saturating_add(looking)
        .saturating_add(beside))
}

/// Bytes that this process may still take, as far as the system tells: what the machine has left, or less where a limit
/// is set on the group of processes (cgroup, as containers have) or on this one (`ulimit -v`).
pub fn memory_available() -> Option<u64> {
    let read = |path: &Path| std::fs::read_to_string(path).ok();
    let machine = read(Path::new("/proc/meminfo")).and_then(|text| left_of_the_machine(&text));
    let groups = read(Path::new("/proc/self/cgroup")).unwrap_or_default();
    let group = groups.lines().filter_map(left_of_the_group).min();
    let limits = read(Path::new("/proc/self/limits")).unwrap_or_default();
    let sizes = read(Path::new("/proc/self/statm")).unwrap_or_default();
    let process = left_of_the_process(&limits, &sizes);
    [machine, group, process].into_iter().flatten().min()
}

/// Refuses what cannot fit into the memory of the place, unless `train.check_memory` is false.
pub(crate) fn check(
    place: &Place,
    settings: &Settings,
    config: &UNetConfig,
    size: (usize, usize),
) -> Result<()> {
    if !settings.train.check_memory {
        return Ok(());
    }
    let needed = memory_needed(settings, config, size)?;
    let card = place.card_memory();
    let (available, whose) = match card {
        Some((free, _)) => (Some(free), "memory of the card"),
        None => (memory_available(), "memory"),
    };
    match available {
        Some(available) if needed > available => Err(Error::Memory {
            whose,
            needed: needed >> 20,
            available: available >> 20,
            at_once: settings
                .train
                .micro_batch
                .unwrap_or(settings.train.batch_size),
            checkpointing: checkpointing(settings, config),
        }),
        _ => Ok(()),
    }
}

/// What gradient checkpointing would do, where it is still to be had.
fn checkpointing(settings: &Settings, config: &UNetConfig) -> &'static str {
    let by_plan = !settings.goes_by_graph() && config.learns_by_plan().unwrap_or(false);
    if !settings.train.gradient_checkpointing && by_plan {
        "So does --set train.gradient_checkpointing=true, which takes more time instead. "
    } else {
        ""
    }
}

/// The program, its threads and what they gather pixels and weights in.
const PROGRAM: u64 = 48 << 20;

/// What CUDA's libraries set aside to work in, on a card: a guess, not measured.
const WORKSPACE: u64 = 512 << 20;

/// `MemAvailable` of `/proc/meminfo`.
fn left_of_the_machine(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|l| l.strip_prefix("MemAvailable:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

/// A line of `/proc/self/cgroup`: the limits of that group and of those above it, less what they use. Version 2 has one
/// hierarchy (`0::/a/b`), version 1 one of its own for memory (`5:memory:/a/b`).
fn left_of_the_group(line: &str) -> Option<u64> {
    let mut parts = line.splitn(3, ':');
    let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
    let (root, limit, used) = match controllers {
        "" => ("/sys/fs/cgroup", "memory.max", "memory.current"),
        c if c.split(',').any(|c| c == "memory") => (
            "/sys/fs/cgroup/memory",
            "memory.limit_in_bytes",
            "memory.usage_in_bytes",
        ),
        _ => return None,
    };
    let folder = Path::new(root).join(path.trim_start_matches('/'));
    let within = folder.ancestors().take_while(|f| f.starts_with(root));
    within.filter_map(|f| left_in(f, limit, used)).min()
}

/// A limit less what is used; none where it says `max`, or is not there. What the group only caches would be given back.
fn left_in(folder: &Path, limit: &str, used: &str) -> Option<u64> {
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).ok();
    let number = |name: &str| read(name)?.trim().parse::<u64>().ok();
    let stat = read("memory.stat").unwrap_or_default();
    let cached = stat.lines().find_map(|line| {
        line.strip_prefix("inactive_file ")?
            .trim()
            .parse::<u64>()
            .ok()
    });
    let used = number(used)?.saturating_sub(cached.unwrap_or(0));
    Some(number(limit)?.saturating_sub(used))
}

/// The soft limit on the address space in `/proc/self/limits`, less the pages that `/proc/self/statm` counts.
fn left_of_the_process(limits: &str, statm: &str) -> Option<u64> {
    let line = limits
        .lines()
        .find_map(|l| l.strip_prefix("Max address space"))?;
    let limit: u64 = line.split_whitespace().next()?.parse().ok()?;
    let pages: u64 = statm.split_whitespace().next()?.parse().ok()?;
    Some(limit.saturating_sub(pages.saturating_mul(4096)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_read_from_what_the_system_says() {
        let meminfo = "MemTotal:  100 kB\nMemFree: 3 kB\nMemAvailable:   2048 kB\n";
        assert_eq!(left_of_the_machine(meminfo), Some(2 << 20));
        assert_eq!(left_of_the_machine("MemTotal: 100 kB\n"), None);
        let limits = "Limit   Soft Limit  Hard Limit  Units\nMax address space         8192000     unlimited     bytes\n";
        assert_eq!(
            left_of_the_process(limits, "1000 20 3"),
            Some(8_192_000 - 4_096_000)
        );
        let unlimited = limits.replace("8192000", "unlimited");
        assert_eq!(left_of_the_process(&unlimited, "1000 20 3"), None);
    }

    #[test]
    fn a_groups_limit_is_less_what_it_uses_and_cannot_give_back() {
        let folder = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        let left = || left_in(folder.path(), "memory.max", "memory.current");
        assert_eq!(left(), None);
        put("memory.max", "1000000\n");
        put("memory.current", "900000\n");
        assert_eq!(left(), Some(100_000));
        put("memory.stat", "anon 1\ninactive_file 300000\nslab 5\n");
        assert_eq!(left(), Some(400_000));
        put("memory.max", "max\n");
        assert_eq!(left(), None);
    }
}
