//! All kernels, one module: nvcc compiles this file for the card, a C++ compiler with `host/host.h` for the tests.

#include "block.cuh"
#include "tensor.cuh"

#include "attention.cu"
#include "attention_tiles.cu"
#include "dropout.cu"
#include "elementwise.cu"
#include "nhwc_elementwise.cu"
#include "nhwc_finish.cu"
#include "nhwc_norm.cu"
#include "nhwc_order.cu"
#include "nhwc_prepare.cu"
#include "nhwc_sums.cu"
#include "norm.cu"
#include "optimise.cu"
#include "planes.cu"
#include "sums.cu"
