//! Tests of the whole house; everything is in `it/`.
