//! From channel after channel to pixel after pixel and back: images, weights, masks of dropout.
