"""The CUDA kernels of csrc/cuda: their sources, how they are compiled and launched, and the pipeline made of them."""
