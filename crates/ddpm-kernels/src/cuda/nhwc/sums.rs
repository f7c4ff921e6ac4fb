//! Sums of gradients over pixels: those of biases and of vectors.
