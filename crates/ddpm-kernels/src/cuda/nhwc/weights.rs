//! Weights as convolutions of images pixel after pixel read them, and their gradients back.
