//! Softmax attention over pixels whose channels lie side by side.
