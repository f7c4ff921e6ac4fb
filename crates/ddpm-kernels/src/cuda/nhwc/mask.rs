//! Dropout: masks drawn on the card, and gradients through them.
