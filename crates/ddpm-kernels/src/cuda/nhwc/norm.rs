//! Group normalisation from the moments of channels, and its gradient.
