"""Runs the CUDA kernels of csrc/cuda on the CPU: g++ over emulator.h, a fiber for each thread.

`Emulator` is called as `spectral_fast.cuda.launch.launch` is, with tensors of the CPU. Kernels are checked
as they run: threads that wait for ones that never come, shuffles outside their mask and writes outside the
shared memory are RuntimeErrors. A missing barrier shows as other bits in another order of threads, or, with
`races`, whatever the order.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from torch import Tensor

from spectral_fast.cuda.launch import Argument
from spectral_fast.cuda.sources import Types, source
from tests.cuda_emulator.build import Checks, load, with_source_lines
from tests.cuda_emulator.kernels import check

__all__ = ["ORDERS", "Emulator"]

ORDERS = ("forward", "reverse", "random")
MAX_THREADS = 1024
MAX_SHARED = 227 * 1024

_STACK_BYTES = 64 * 1024
_CPU_SECONDS = (
    200  # for a launch, less than a test has: a kernel that never ends cannot be interrupted otherwise
)


class _Launch(ctypes.Structure):
    """scheduler.h's Launch."""

    _fields_ = (
        ("grid_x", ctypes.c_longlong),
        ("grid_y", ctypes.c_longlong),
        ("threads", ctypes.c_longlong),
        ("shared", ctypes.c_longlong),
        ("order", ctypes.c_longlong),
        ("seed", ctypes.c_longlong),
        ("stacks", ctypes.c_void_p),
        ("stack_bytes", ctypes.c_longlong),
        ("message", ctypes.c_void_p),
        ("message_bytes", ctypes.c_longlong),
        ("storage", ctypes.c_void_p),
        ("storages", ctypes.c_longlong),
        ("seconds", ctypes.c_longlong),
    )


@functools.cache
def _stacks() -> np.ndarray:
    # From the system, and touched only where used. One more than threads: the first may overflow.
    return np.empty((1 + MAX_THREADS) * _STACK_BYTES, np.uint8)


class Emulator:
    """spectral_fast.cuda.launch.launch on the CPU: kernels run as fibers, threads in the given order."""

    def __init__(
        self,
        order: str = "forward",
        *,
        seed: int = 0,
        sanitize: bool = False,
        races: bool = False,
        edit: Callable[[str], str] | None = None,
        sources: Mapping[str, str] | None = None,
    ) -> None:
        """`edit` changes a source before it is compiled; `sources` are used in place of csrc/cuda's.

        sanitize: built with AddressSanitizer and UndefinedBehaviorSanitizer, whose runtime has to be in the
        process: tests/test_cuda_sanitize.py starts one. races: every access to memory is checked, some ten
        times slower: RuntimeError for two that no barrier orders, and for one outside the arguments' storage.
        """
        if sanitize and races:
            raise ValueError("sanitize and races are different builds")
        self._order = ORDERS.index(order)
        self._seed = seed
        self._checks = Checks.SANITIZE if sanitize else Checks.RACES if races else Checks.NONE
        self._edit = edit
        self._sources = sources

    def __call__(
        self,
        stage: str,
        kernel: str,
        types: Types,
        grid: tuple[int, int],
        threads: int,
        args: Sequence[Argument],
        shared: int = 0,
    ) -> None:
        text = source(stage) if self._sources is None else self._sources[stage]
        if self._edit is not None:
            text = self._edit(text)
        library = load(text, types, self._checks)
        if kernel not in library.kernels:
            raise ValueError(f"{stage}.cu has no kernel {kernel}; it has {', '.join(library.kernels)}")
        check(library.kernels[kernel], types, args)
        most_threads = min(MAX_THREADS, getattr(library.functions, f"sf_bound_{kernel}")())
        if min(grid) < 1 or grid[0] >= 2**31 or grid[1] >= 2**16:
            raise ValueError(f"{kernel}: a grid of {grid}; 1 to 2**31 - 1 blocks in x, 1 to 2**16 - 1 in y")
        if not 1 <= threads <= most_threads:
            raise ValueError(f"{kernel}: {threads} threads; it is made for 1 to {most_threads}")
        if not 0 <= shared <= MAX_SHARED:
            raise ValueError(f"{kernel}: {shared} bytes of shared memory; a block has at most {MAX_SHARED}")

        tensors = [arg for arg in args if isinstance(arg, Tensor)]
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
        storage = np.array(list(storages.items()), np.uint64)
        values = np.array(
            [arg.data_ptr() if isinstance(arg, Tensor) else (arg or 0) for arg in args], np.int64
        )
        addresses = values.ctypes.data + 8 * np.arange(len(args), dtype=np.int64)
        message = ctypes.create_string_buffer(4096)
        launch = _Launch(
            *grid,
            threads,
            shared,
            self._order,
            self._seed,
            _stacks().ctypes.data + _STACK_BYTES,
            _STACK_BYTES,
            ctypes.addressof(message),
            len(message),
            storage.ctypes.data,
            len(storages),
            _CPU_SECONDS,
        )
        run = getattr(library.functions, f"sf_launch_{kernel}")
        if run(ctypes.c_void_p(addresses.ctypes.data), ctypes.byref(launch)):
            report = with_source_lines(message.value.decode(), text, library.path)
            raise RuntimeError(f"{stage}.cu: {report}")
