//! Ctrl-C: exit status 130, and nothing is left behind.
#![cfg(unix)]

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::House;

#[test]
fn ctrl_c_exits_with_130_and_leaves_nothing() {
    for place in ["x.png", "x/"] {
        let house = House::new();
        let before = house.names();
        let flags = [
            "--model", "run", "--num", "100000", "--quiet", "--out", place,
        ];
        let child = house
            .command(&flags)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let started = Instant::now();
        while house.names() == before && started.elapsed() < Duration::from_secs(20) {
            std::thread::sleep(Duration::from_millis(5));
        }
        let sent = Command::new("kill")
            .args(["-INT", &child.id().to_string()])
            .status()
            .unwrap();
        assert!(sent.success());
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(130));
        assert_eq!(
            String::from_utf8(output.stderr).unwrap(),
            "error: interrupted, nothing was written\n"
        );
        assert_eq!(house.names(), before);
    }
}
