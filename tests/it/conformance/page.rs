//! The page of all rows, and the test that it is true.

use std::path::{Path, PathBuf};

use super::row::{Row, number};
use super::{formulas, networks, schedulers};

/// Set to write the page instead of comparing it, which `cargo xtask conformance --page` does.
const WRITE: &str = "DDPM_WRITE_PAGE";

const HEAD: &str = "\
# Conformance

Numbers that diffusers' own tests expect, then those of the papers' formulas, and what this project computes. Everything random comes from PyTorch's
generator, drawn in PyTorch's order, so that nothing was downloaded. `cargo test -p ddpm-tests conformance` computes all
rows again and fails where one is outside of the tolerance of its source, or where this page is not what it computes;
`cargo xtask conformance --page` writes the page.

How networks and samplers compare with a diffusers that runs beside them: `cargo xtask conformance` (see below).

";

const TAIL: &str = "
## Beside diffusers

`cargo xtask conformance [--python PYTHON]` makes a Python environment with the versions it names (or takes yours), lets
diffusers run on folders that this program wrote and this program on folders that diffusers wrote, from the same noise, and
prints the greatest difference of every pair. Status 1: one is above 1e-4. The Python half is `tests/golden/conformance.py`.

With diffusers 0.42.1 and torch 2.15.0, the shipped digits, four images: walks of 50 steps by all 22 settings of 15 scheduler
classes end at most 8e-6 apart, most of them 1e-6 to 3e-6; 180 random networks of all blocks differ by at most 2e-5 of their
greatest output, and 50 configurations beside them that diffusers cannot build are refused. From one seed of PyTorch's generator
the pixels of DDPMPipeline are 2e-7 apart, of DDIMPipeline 3e-6 (eta 0) and 6e-7 (eta 1), of RePaintPipeline 6e-6, of
ScoreSdeVePipeline (a random network) 2e-5; DDIMInverseScheduler's noise 6e-6; random networks that know classes 1e-6.
";

fn rows() -> Vec<Row> {
    let mut rows = schedulers::rows();
    rows.extend(networks::rows());
    rows.extend(formulas::rows());
    rows
}

#[test]
fn every_row_holds_and_the_page_is_what_is_computed() {
    let rows = rows();
    let wrong: Vec<&Row> = rows.iter().filter(|row| !row.holds()).collect();
    assert!(wrong.is_empty(), "outside of their tolerance: {wrong:#?}");
    if std::env::var_os(WRITE).is_some() {
        std::fs::write(page(), text(&rows)).unwrap();
        return;
    }
    let page = std::fs::read_to_string(page()).unwrap_or_default();
    if let Err(difference) = same(&page, &text(&rows), &rows) {
        panic!(
            "docs/conformance.md is stale ({difference}): cargo xtask conformance --page writes it anew"
        );
    }
}

fn page() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/conformance.md")
}

fn text(rows: &[Row]) -> String {
    let mut text = HEAD.to_owned();
    let mut source = "";
    for row in rows {
        if row.source != source {
            source = row.source;
            text += &format!(
                "\n## {source}\n\n| what | expected | ours | tolerance |\n|---|---:|---:|---:|\n"
            );
        }
        text += &line(row);
    }
    text + TAIL
}

fn line(row: &Row) -> String {
    format!(
        "| {} | {} | {} | {} |\n",
        row.what,
        number(row.expected),
        row.printed(),
        number(row.tolerance)
    )
}

/// The same lines, but for what rounding on another processor does to our numbers.
fn same(page: &str, text: &str, rows: &[Row]) -> Result<(), String> {
    let (page, text): (Vec<&str>, Vec<&str>) = (page.lines().collect(), text.lines().collect());
    if page.len() != text.len() {
        return Err(format!("it has {} lines, not {}", page.len(), text.len()));
    }
    let mut rows = rows.iter();
    let is_row = |line: &str| line.starts_with("| ") && !line.starts_with("| what");
    for (found, expected) in page.into_iter().zip(text) {
        let row = if is_row(expected) { rows.next() } else { None };
        let agrees = match row {
            None => found == expected,
            Some(row) => near(found, row),
        };
        if !agrees {
            return Err(format!("it says `{found}`, not `{expected}`"));
        }
    }
    Ok(())
}

/// Whether a line says this row, with a number of ours that is nearer than a tenth of the tolerance.
fn near(line: &str, row: &Row) -> bool {
    let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
    let [what, expected, ours, tolerance] = cells[..] else {
        return false;
    };
    let printed: Option<f64> = ours.parse().ok();
    // The last printed digit counts too.
    let slack = match row.tolerance > 0.0 && row.tolerance < 1e-6 {
        true => row.tolerance / 5.0,
        false => row.tolerance / 10.0 + 1e-6,
    };
    (what, expected, tolerance)
        == (
            row.what.as_str(),
            number(row.expected).as_str(),
            number(row.tolerance).as_str(),
        )
        && printed.is_some_and(|printed| (printed - row.ours).abs() <= slack)
}

#[test]
fn a_page_with_another_number_is_stale() {
    let row = |ours| Row {
        what: "a | b".replace(" | ", ", "),
        source: "a source",
        expected: 1.0,
        ours,
        tolerance: 1e-3,
    };
    let page = text(&[row(1.0)]);
    assert_eq!(same(&page, &text(&[row(1.00005)]), &[row(1.00005)]), Ok(()));
    assert!(same(&page, &text(&[row(1.0005)]), &[row(1.0005)]).is_err());
    let tight = |ours| Row::digits("a number".to_owned(), "a source", 2.5e-7, ours, 3);
    let page_of_tight = text(&[tight(2.5e-7)]);
    let [near, far] = [tight(2.501e-7), tight(2.508e-7)];
    assert!(near.holds() && far.holds() && !tight(2.52e-7).holds());
    let agrees = |row: Row| same(&page_of_tight, &text(std::slice::from_ref(&row)), &[row]).is_ok();
    assert!(agrees(near) && !agrees(far));
    let more = [row(1.0), row(1.0)];
    assert!(same(&page, &text(&more), &more).is_err());
    let other = Row {
        tolerance: 1e-2,
        ..row(1.0)
    };
    assert!(same(&page, &text(std::slice::from_ref(&other)), &[other]).is_err());
}
