//! What a convolution reads: parts side by side, normalised, activated, dropped, up-sampled, with zeros around.
