"""Small runs of every stage of csrc/cuda, for the checks that all kernels have in common.

A stage csrc/cuda/<stage>.cu has a module here of the same name, with

    TYPES: tuple[Types, ...]
        what the stage is compiled for.

    run(emulate: Emulator, types: Types) -> dict[str, Tensor]
        launches every kernel of the stage, through `emulate` alone, on small matrices of its own (a seeded
        generator; no global state) and returns every tensor that a kernel wrote, by name.

Sizes: at least three tiles and a remainder in every dimension that has tiles, at least two matrices, every
branch that holds a barrier. One run takes a second or two: tests/test_cuda_mutations.py does several for each
barrier of the source. Outputs are made by torch.empty, which the tests fill with NaN: what a kernel must not
read before writing is not made by torch.zeros. Inputs that a kernel changes are made anew in every run.

tests/test_cuda_stages.py     the same bits in every order of threads and blocks; no races: of two accesses to
                              the same place, one of them a write, a barrier orders one before the other
                              (__syncthreads in the block, __syncwarp in a warp; a shuffle orders nothing,
                              and two lanes that write the same value race too)
tests/test_cuda_mutations.py  any one barrier removed is noticed
tests/test_cuda_sanitize.py   nothing undefined, nothing read or written out of bounds
"""
