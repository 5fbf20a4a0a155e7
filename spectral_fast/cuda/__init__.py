"""The CUDA kernels of csrc/cuda: their sources, how they are compiled and launched, the pipeline of them."""
