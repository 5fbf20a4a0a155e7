"""Builds spectral_fast._cpu: one translation unit for each instruction set, chosen among at run time.

The CUDA sources are copied into the package: spectral_fast/cuda compiles them where they run.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path

from pybind11.setup_helpers import Pybind11Extension
from pybind11.setup_helpers import build_ext as pybind11_build_ext
from setuptools import setup
from setuptools.command.build_py import build_py as setuptools_build_py

# No -march=native, and nothing that lets the compiler reorder floating-point arithmetic.
COMMON_FLAGS = ["-O3", "-fno-math-errno", "-fno-trapping-math", "-Wall", "-Wextra", "-Wno-psabi"]
# The kernels neither throw nor let anything through; with exceptions a unit would share a symbol with others.
KERNEL_FLAGS = [*COMMON_FLAGS, "-std=c++17", "-fno-exceptions", "-fvisibility=hidden"]
X86_ISA_FLAGS = {
    "baseline": [],
    "avx2": ["-mavx2", "-mfma"],
    "avx512": [
        *["-mavx2", "-mfma", "-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl"],
        "-mprefer-vector-width=512",
    ],
}


def isa_flags() -> dict[str, list[str]]:
    """Instruction sets to compile and their flags. SPECTRAL_FAST_PORTABLE=1 leaves only the portable one."""
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    if x86 and os.environ.get("SPECTRAL_FAST_PORTABLE", "0") != "1":
        return X86_ISA_FLAGS
    return {"baseline": []}


class build_ext(pybind11_build_ext):
    """Compiles csrc/cpu/isa_<name>.cpp with the flags of <name> and links the objects into the extension."""

    def build_extension(self, ext: Pybind11Extension) -> None:
        for isa, flags in isa_flags().items():
            ext.extra_objects += self.compiler.compile(
                [f"csrc/cpu/isa_{isa}.cpp"],
                output_dir=self.build_temp,
                extra_postargs=[*KERNEL_FLAGS, *flags],
                depends=ext.depends,
            )
        super().build_extension(ext)


class build_py(setuptools_build_py):
    """Adds csrc/cuda to the package. An editable installation reads it where it is."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            folder = Path(self.build_lib, "spectral_fast/cuda/csrc")
            self.mkpath(str(folder))
            for source in sorted(Path("csrc/cuda").iterdir()):
                self.copy_file(source, folder / source.name)


def main() -> None:
    several = len(isa_flags()) > 1
    kernels = ["simd", "arena", "team", "heuristics", "blocks", "load", "order"]
    kernels += ["pair", "householder", "norm"]
    kernels += ["direct_update", "direct_reduce", "direct"]
    kernels += ["update", "panel", "reduce", "gram", "kept", "band", "bidiagonal", "values", "workspace"]
    kernels += ["svdvals", "vectors"]
    kernels += ["lanes", "dqds_lanes", "refine_lanes", "group"]
    kernels += ["products_tiles", "products", "panels", "symmetric", "look", "lanczos"]
    kernels += ["elementary", "powerlaw", "stats", "peak", "isa"]
    hosts = ["dispatch", "lanczos", "look", "openmp", "products", "spectra", "threads", "vectors"]
    extension = Pybind11Extension(
        "spectral_fast._cpu",
        [f"csrc/cpu/{name}.cpp" for name in ("bindings", *hosts)],
        cxx_std=17,
        extra_compile_args=COMMON_FLAGS,
        extra_link_args=["-pthread"],
        define_macros=[("SF_X86_ISAS", "1")] if several else [],
        depends=[
            "csrc/kernels.h",
            *[f"csrc/cpu/{name}.h" for name in (*hosts, "rounds")],
            *[f"csrc/cpu/{name}.inl" for name in kernels],
        ],
    )
    setup(ext_modules=[extension], cmdclass={"build_ext": build_ext, "build_py": build_py})


main()
