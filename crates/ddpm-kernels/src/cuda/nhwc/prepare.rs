//! What a convolution reads, made from what is kept.
