//! Softmax attention between the pixels of images, and its gradients.
