//! Moments of channels, group normalisation from them, and its gradient.
