//! One binary for the tests of the whole house.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot go on fails"
)]

mod conformance;
mod house;
mod tidy;
