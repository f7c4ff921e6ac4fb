//! The house stays tidy: what the map and the conventions say is true of the sources; messages say what to do.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use cargo_metadata::{DependencyKind, MetadataCommand, Package};

/// The most that each crate may ever use of ours; `crates/README.md` says what it does use.
const MAY_USE: [(&str, &[&str]); 10] = [
    ("core", &[]),
    ("image", &[]),
    ("kernels", &[]),
    ("random", &["core"]),
    ("samplers", &["core"]),
    ("unet", &["core", "kernels", "random"]),
    ("data", &["image", "random"]),
    ("checkpoint", &["core", "samplers", "unet"]),
    (
        "train",
        &[
            "core",
            "samplers",
            "random",
            "image",
            "kernels",
            "unet",
            "data",
            "checkpoint",
        ],
    ),
    (
        "sample",
        &["core", "samplers", "random", "image", "unet", "checkpoint"],
    ),
];

// ---------------------------------------------------------------- names and first lines

#[test]
fn every_file_opens_with_a_sentence() {
    check_all(
        "open it with `//! ` and one sentence that says what is in it",
        |source| {
            let first: Vec<&str> = source
                .text
                .lines()
                .map_while(|line| line.strip_prefix("//! "))
                .take_while(|line| !line.is_empty())
                .collect();
            let sentence = first.join(" ");
            let whole =
                sentence.split(' ').count() >= 3 && sentence.ends_with(['.', ':', ';', '?', '!']);
            if whole {
                vec![]
            } else {
                vec![(1, format!("opens with `{sentence}`"))]
            }
        },
    );
}

#[test]
fn no_file_is_a_drawer_for_everything() {
    check_all("name it after what is in it", |source| {
        let drawers = ["utils", "util", "misc", "common", "helpers", "helper"];
        let drawer = source
            .path
            .split('/')
            .any(|part| drawers.contains(&part.trim_end_matches(".rs")));
        if drawer {
            vec![(1, "is named after nothing".to_owned())]
        } else {
            vec![]
        }
    });
}

// ---------------------------------------------------------------- the map

#[test]
fn arrows_are_those_of_the_map() {
    let drawn: BTreeMap<String, BTreeSet<String>> = table("## Arrows")
        .into_iter()
        .map(|(name, uses)| {
            (
                name,
                uses.split(", ")
                    .filter(|name| !name.is_empty())
                    .map(str::to_owned)
                    .collect(),
            )
        })
        .collect();
    let may: BTreeMap<&str, &[&str]> = MAY_USE.into();
    let mut wrong = Vec::new();
    for (name, uses, _) in crates() {
        let on_map = drawn
            .get(&format!("ddpm-{name}"))
            .cloned()
            .unwrap_or_default();
        if !drawn.contains_key(&format!("ddpm-{name}")) {
            wrong.push(format!(
                "ddpm-{name} is missing in the arrows of crates/README.md: add its row"
            ));
        } else if uses != on_map {
            wrong.push(format!(
                "ddpm-{name} uses {uses:?}, crates/README.md says {on_map:?}: correct one of them"
            ));
        }
        let beyond: Vec<&String> = uses
            .iter()
            .filter(|used| {
                !may.get(name.as_str())
                    .is_some_and(|may| may.contains(&used.as_str()))
            })
            .collect();
        if !beyond.is_empty() {
            wrong.push(format!(
                "ddpm-{name} may not use {beyond:?}: arrows point down only; move what it needs"
            ));
        }
    }
    let names: BTreeSet<String> = crates()
        .into_iter()
        .map(|(name, _, _)| format!("ddpm-{name}"))
        .collect();
    wrong.extend(
        drawn
            .keys()
            .filter(|name| !names.contains(*name))
            .map(|name| {
                format!(
                    "{name} is in the arrows of crates/README.md but is no crate: remove its row"
                )
            }),
    );
    report(&wrong);
}

#[test]
fn descriptions_are_those_of_the_map() {
    let lines: BTreeMap<String, String> = table("# The map").into_iter().collect();
    let wrong: Vec<String> = crates()
        .into_iter()
        .filter_map(|(name, _, description)| {
            let line = lines.get(&format!("ddpm-{name}")).cloned().unwrap_or_default();
            let differs = line != description;
            differs.then(|| {
                format!("ddpm-{name}: Cargo.toml says\n    {description}\n  crates/README.md says\n    {line}\n  make them equal")
            })
        })
        .collect();
    report(&wrong);
}

#[test]
fn every_crate_says_what_a_registry_asks() {
    let mut wrong = Vec::new();
    for package in packages() {
        let missing = [
            ("description", package.description.is_none()),
            ("license", package.license.is_none()),
            ("readme", package.readme().is_none_or(|page| !page.exists())),
            ("keywords", !(1..=5).contains(&package.keywords.len())),
            ("categories", !(1..=5).contains(&package.categories.len())),
        ];
        let keys = missing.iter().filter(|(_, missing)| *missing);
        wrong.extend(keys.map(|(key, _)| {
            let name = &package.name;
            format!(
                "{name}: `{key}` is missing, or not what crates.io takes: correct its Cargo.toml"
            )
        }));
    }
    report(&wrong);
}

#[test]
fn no_page_has_a_place_to_fill_in() {
    let mut wrong = Vec::new();
    for page in pages() {
        let text = std::fs::read_to_string(&page).unwrap();
        let lines = text.lines().zip(1..);
        let unfilled = lines.filter(|(line, _)| line.contains("@@"));
        wrong.extend(unfilled.map(|(line, number)| {
            let page = shown(&page);
            format!("{page}:{number}: {line}: measure it, or leave it out")
        }));
    }
    report(&wrong);
}

#[test]
fn links_in_the_pages_lead_somewhere() {
    let mut wrong = Vec::new();
    for page in pages() {
        let text = std::fs::read_to_string(&page).unwrap();
        for link in text
            .split("](")
            .skip(1)
            .filter_map(|rest| rest.split([')', '#', ' ']).next())
        {
            let here = link.is_empty() || link.contains("://");
            if !here && !page.parent().unwrap().join(link).exists() {
                wrong.push(format!(
                    "{}: `{link}` is not there: correct the link",
                    shown(&page)
                ));
            }
        }
    }
    report(&wrong);
}

#[test]
fn commands_in_the_pages_exist() {
    let source = |name: &str| {
        std::fs::read_to_string(root().join(format!("crates/ddpm-{name}/src/flags.rs"))).unwrap()
    };
    let (train, sample) = (source("train"), source("sample"));
    let mut wrong = Vec::new();
    for page in pages() {
        let text = std::fs::read_to_string(&page).unwrap();
        // Odd pieces between fences are code blocks.
        for line in text.split("```").skip(1).step_by(2).flat_map(str::lines) {
            let flags = match () {
                () if line.contains("cargo xtask train") || line.contains("ddpm-train") => &train,
                () if line.contains("ddpm-sample") => &sample,
                () => continue,
            };
            let typed = line.split_once(" -- ").map_or("", |(_, typed)| typed);
            let words = typed.split('#').next().unwrap_or_default().split(' ');
            for flag in words
                .filter_map(|word| word.strip_prefix("--"))
                .map(|word| word.split('=').next().unwrap_or(word))
            {
                let field = format!(" {}:", flag.replace('-', "_"));
                if !flags.contains(&field)
                    && !flags.contains(&format!("long = \"{flag}\""))
                    && flag != "help"
                {
                    wrong.push(format!(
                        "{}: `{line}`: there is no flag --{flag}: correct the page",
                        shown(&page)
                    ));
                }
            }
        }
    }
    report(&wrong);
}

// ---------------------------------------------------------------- absences

#[test]
fn only_random_makes_noise() {
    check_product("draw from ddpm-random, at an address", |path, line| {
        !path.starts_with("crates/ddpm-random/")
            && [
                "randn(",
                "rand(",
                "randn_like(",
                "rand_like(",
                "thread_rng",
                "rand::",
            ]
            .iter()
            .any(|word| has_word(line, word))
    });
}

#[test]
fn only_image_maps_bytes_to_numbers() {
    check_product("ask ddpm_image::PixelMap", |path, line| {
        // The decoder of eq. (13) has bins of 2/255: a statement about 8-bit data, not a mapping of them.
        let decoder = path == "crates/ddpm-core/src/likelihood.rs";
        !path.starts_with("crates/ddpm-image/")
            && !decoder
            && ["127.5", "255."].iter().any(|word| has_word(line, word))
    });
}

#[test]
fn crates_without_files_read_none() {
    check_product(
        "hand it bytes or text; files belong to data, checkpoint, image and the programs",
        |path, line| {
            ["core", "unet", "random", "samplers", "kernels"]
                .iter()
                .any(|name| path.starts_with(&format!("crates/ddpm-{name}/")))
                && !path.contains("/examples/")
                && (line.contains("std::fs")
                    || line.contains("File::open")
                    || line.contains("File::create"))
        },
    );
}

#[test]
fn only_programs_print() {
    check_product("return it; the program prints", |path, line| {
        let file = path.rsplit('/').next().unwrap_or_default();
        let program = path.starts_with("xtask/")
            || path.contains("/examples/")
            || ["main.rs", "progress.rs", "build.rs"].contains(&file); // a build script speaks to cargo so
        !program
            && ["println!", "eprintln!", "print!", "eprint!", "dbg!"]
                .iter()
                .any(|word| has_word(line, word))
    });
}

#[test]
fn core_knows_neither_clock_nor_serde() {
    check_product(
        "ddpm-core is mathematics; do it in the crate that needs it",
        |path, line| {
            path.starts_with("crates/ddpm-core/")
                && ["std::time", "serde", "std::env"]
                    .iter()
                    .any(|word| line.contains(word))
        },
    );
}

#[test]
fn nothing_is_left_undone() {
    let words = [
        concat!("todo", "!"),
        concat!("unimplemented", "!"),
        concat!("#[", "ignore"),
    ];
    check_all("finish it, or leave it out and say so", |source| {
        let lines = source.text.lines().enumerate();
        let found = lines.filter(|(_, line)| words.iter().any(|word| line.contains(word)));
        found
            .map(|(i, line)| (i + 1, line.trim().to_owned()))
            .collect()
    });
}

// ---------------------------------------------------------------- the tester, tested

#[test]
fn the_tester_sees_code_and_only_code() {
    let text = "//! Not here: randn(.\nlet a = randn(1); // nor rand(\nlet b = \"https://x\".grand(2);\n#[cfg(test)]\nmod tests {\n    rand(3)\n}\n";
    let code = product_lines(text);
    assert_eq!(code[1], (2, "let a = randn(1); "));
    assert_eq!(code.len(), 3, "lines of tests are no product: {code:?}");
    assert!(has_word(code[1].1, "randn(") && !has_word(code[2].1, "rand("));
    assert!(
        has_word("x / 127.5", "127.5") && has_word("* 255.0", "255.") && !has_word("1255.", "255.")
    );
    assert_eq!(
        table("## Arrows")
            .into_iter()
            .find(|(name, _)| name == "ddpm-data")
            .unwrap()
            .1,
        "image, random"
    );
    assert!(
        sources()
            .iter()
            .any(|source| source.path == "tests/it/tidy.rs")
    );
}

// ---------------------------------------------------------------- how

struct Source {
    /// From the root, with `/`.
    path: String,
    text: String,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .to_owned()
}

fn shown(path: &Path) -> String {
    path.strip_prefix(root())
        .unwrap_or(path)
        .display()
        .to_string()
        .replace('\\', "/")
}

/// Every file under a folder of the root, without build folders.
fn files_under(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.ends_with("target") {
            files_under(&path, found);
        } else if path.is_file() {
            found.push(path);
        }
    }
    found.sort();
}

/// Every Rust file of ours.
fn sources() -> Vec<Source> {
    let mut files = Vec::new();
    ["crates", "tests", "xtask"]
        .iter()
        .for_each(|folder| files_under(&root().join(folder), &mut files));
    let rust = files
        .into_iter()
        .filter(|file| file.extension().is_some_and(|extension| extension == "rs"));
    rust.map(|file| Source {
        path: shown(&file),
        text: std::fs::read_to_string(&file).unwrap(),
    })
    .collect()
}

/// Every page of ours.
fn pages() -> Vec<PathBuf> {
    let mut files = vec![root().join("README.md"), root().join("data/README.md")];
    ["crates", "docs", "checkpoints", "tests"]
        .iter()
        .for_each(|folder| files_under(&root().join(folder), &mut files));
    files.retain(|file| {
        file.exists() && file.extension().is_some_and(|extension| extension == "md")
    });
    files
}

/// The manifests in `crates/`.
fn packages() -> Vec<Package> {
    let mut command = MetadataCommand::new();
    command
        .manifest_path(root().join("Cargo.toml"))
        .no_deps()
        .other_options(["--offline".to_owned()]);
    let mut packages = command.exec().unwrap().packages;
    packages.retain(|package| shown(package.manifest_path.as_std_path()).starts_with("crates/"));
    packages
}

/// Each crate of ours: its name without `ddpm-`, what it uses of ours (not for tests), its description.
fn crates() -> Vec<(String, BTreeSet<String>, String)> {
    let of_ours = |name: &str| name.strip_prefix("ddpm-").map(str::to_owned);
    packages()
        .into_iter()
        .map(|package| {
            let used = package
                .dependencies
                .iter()
                .filter(|used| used.kind != DependencyKind::Development);
            let uses = used.filter_map(|used| of_ours(&used.name)).collect();
            let name = of_ours(&package.name)
                .unwrap_or_else(|| panic!("{} is no `ddpm-` crate: rename it", package.name));
            (name, uses, package.description.clone().unwrap_or_default())
        })
        .collect()
}

/// The two columns of the first table below a heading of `crates/README.md`.
fn table(heading: &str) -> Vec<(String, String)> {
    let map = std::fs::read_to_string(root().join("crates/README.md")).unwrap();
    let lines = map
        .lines()
        .skip_while(|line| *line != heading)
        .skip_while(|line| !line.starts_with('|'));
    let rows = lines
        .take_while(|line| line.starts_with('|'))
        .skip(2)
        .map(|line| line.replace("\\|", "\u{0}"));
    rows.map(|row| {
        let cell = |i: usize| {
            row.split('|')
                .nth(i)
                .unwrap_or_default()
                .trim()
                .replace('\u{0}', "|")
        };
        (cell(1), cell(2))
    })
    .collect()
}

/// The lines that are product code, numbered from 1, without comments: those before the first module of tests.
fn product_lines(text: &str) -> Vec<(usize, &str)> {
    let product = text
        .split_once("#[cfg(test)]\nmod tests {")
        .map_or(text, |(before, _)| before);
    product
        .lines()
        .map(|line| line.split("//").next().unwrap_or_default())
        .enumerate()
        .map(|(i, line)| (i + 1, line))
        .collect()
}

/// Whether `word` occurs with no letter, digit or underscore right before it.
fn has_word(line: &str, word: &str) -> bool {
    line.match_indices(word)
        .any(|(at, _)| !line[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_'))
}

/// Checks every file; `find` gives line numbers and what is wrong there.
#[track_caller]
fn check_all(advice: &str, find: impl Fn(&Source) -> Vec<(usize, String)>) {
    let sources = sources();
    let wrong = sources.iter().flat_map(|source| {
        find(source)
            .into_iter()
            .map(|(line, what)| format!("{}:{line}: {what}: {advice}", source.path))
    });
    report(&wrong.collect::<Vec<_>>());
}

/// Checks every line of product code: not tests, not their helpers, not comments.
#[track_caller]
fn check_product(advice: &str, wrong: impl Fn(&str, &str) -> bool) {
    check_all(advice, |source| {
        if source.path.starts_with("tests/")
            || source.path.contains("/tests/")
            || source.path.ends_with("/tests.rs")
        {
            return vec![];
        }
        let lines = product_lines(&source.text)
            .into_iter()
            .filter(|(_, line)| wrong(&source.path, line));
        lines
            .map(|(number, line)| (number, line.trim().to_owned()))
            .collect()
    });
}

#[track_caller]
fn report(wrong: &[String]) {
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}
