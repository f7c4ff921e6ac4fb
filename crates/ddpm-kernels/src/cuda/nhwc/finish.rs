//! What is added to the result of a convolution, and the moments of its channels.
