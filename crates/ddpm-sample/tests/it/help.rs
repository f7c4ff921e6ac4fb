//! The help text is kept beside the tests, so that a change to it is seen.

use crate::{House, check_done};

#[test]
fn the_help_text_is_the_stored_one() {
    let house = House::new();
    let output = house.run("--help");
    check_done(&output);
    let text = String::from_utf8(output.stdout).unwrap();
    let place = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/help.txt");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(place, &text).unwrap();
    }
    let stored = std::fs::read_to_string(place).unwrap_or_default();
    assert_eq!(
        text, stored,
        "if the change is meant, run UPDATE_GOLDEN=1 cargo test -p ddpm-sample"
    );
}
