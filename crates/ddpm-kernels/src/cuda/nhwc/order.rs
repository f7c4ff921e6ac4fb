//! Images from channel after channel to pixel after pixel, and back.
