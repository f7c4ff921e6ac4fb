//! Sums, factors and parts of images whose channels lie side by side.
