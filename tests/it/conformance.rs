//! The conformance suite: what others published about these schedulers and networks, computed again.
//!
//! Each expectation is a row; the page `docs/conformance.md` is made of all rows by `cargo xtask conformance --page`.

mod formulas;
mod networks;
mod page;
mod properties;
mod row;
mod schedulers;
