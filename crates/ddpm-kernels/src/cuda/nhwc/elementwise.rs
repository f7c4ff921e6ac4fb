//! Sums, factors, and some channels of images.
