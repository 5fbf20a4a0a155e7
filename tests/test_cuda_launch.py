"""What spectral_fast/cuda/launch.py asks of CuPy, recorded by a stand-in; how a source is put together."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import GetSetDescriptorType, ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from spectral_fast.cuda import launch as launching
from spectral_fast.cuda import sources
from spectral_fast.cuda.launch import launch
from spectral_fast.cuda.sources import Types
from tests import gates

SINGLE = Types(torch.float32, torch.float64)
DOUBLE = Types(torch.float64, torch.float64)

SOURCE = """// A stage.
#include "kernels.h"
extern "C" __global__ void __launch_bounds__(32) add() {}
"""
HEADER = """// Shared.
#pragma once
typedef SF_SCALAR Scalar;
"""

COMPILED = """#line 1 "sum.cu"
// A stage.
#line 1 "kernels.h"
// Shared.

typedef SF_SCALAR Scalar;
#line 3 "sum.cu"
extern "C" __global__ void __launch_bounds__(32) add() {}
"""


class Kernel:
    """RawKernel: what it is called with, and the limit on its shared memory at that time."""

    max_dynamic_shared_size_bytes: int | None = None

    def __init__(self, cupy: CuPy, name: str) -> None:
        self.cupy, self.name = cupy, name

    def __call__(self, grid: Any, block: Any, args: Any, *, shared_mem: int) -> None:
        limit = self.max_dynamic_shared_size_bytes
        self.cupy.launches.append(
            SimpleNamespace(
                name=self.name,
                grid=grid,
                block=block,
                args=args,
                shared=shared_mem,
                limit=limit,
                context=tuple(self.cupy.context),
            )
        )


class Context:
    """A device or a stream: current inside `with`."""

    def __init__(self, cupy: CuPy, what: tuple[str, int]) -> None:
        self.cupy, self.what = cupy, what

    def __enter__(self) -> None:
        self.cupy.context.append(self.what)

    def __exit__(self, *_: object) -> None:
        assert self.cupy.context.pop() == self.what


class CuPy(ModuleType):
    """The part of CuPy 14 that is used."""

    def __init__(self) -> None:
        super().__init__("cupy")
        self.modules: list[dict[str, Any]] = []
        self.functions: list[str] = []
        self.launches: list[SimpleNamespace] = []
        self.context: list[tuple[str, int]] = []
        self.cuda = SimpleNamespace(
            Device=lambda number: Context(self, ("device", number)),
            Stream=SimpleNamespace(from_external=self.stream),
        )

    def stream(self, external: Any) -> Context:
        version, pointer = external.__cuda_stream__()
        assert version == 0
        return Context(self, ("stream", pointer))

    def RawModule(self, **kwargs: Any) -> SimpleNamespace:
        self.modules.append(kwargs)

        def get_function(name: str) -> Kernel:
            # CuPy compiles here, for the current device.
            assert self.context
            self.functions.append(name)
            return Kernel(self, name)

        return SimpleNamespace(get_function=get_function)


@pytest.fixture(autouse=True)
def empty_caches() -> Iterator[None]:
    """No module of another test, and none left for one."""
    caches = (sources.source, launching._module, launching._function)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


@pytest.fixture
def stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of sources with a stage `sum` in it."""
    (tmp_path / "kernels.h").write_text(HEADER)
    (tmp_path / "sum.cu").write_text(SOURCE)
    monkeypatch.setattr(sources, "_FOLDERS", (tmp_path / "none", tmp_path))
    return tmp_path


@pytest.fixture
def cupy(stages: Path, monkeypatch: pytest.MonkeyPatch) -> CuPy:
    """CuPy on device 3, torch's stream there at address 77."""
    fake = CuPy()
    monkeypatch.setitem(sys.modules, "cupy", fake)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(cuda_stream=77))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    return fake


def properties(device: int) -> SimpleNamespace:
    """Of device k: 50,000 k bytes of shared memory for a block that asks."""
    return SimpleNamespace(shared_memory_per_block_optin=50_000 * device)


def test_a_launch(cupy: CuPy) -> None:
    a = torch.arange(6.0)
    launch("sum", "add", SINGLE, (5, 2), 128, [a, None, 2**40, a[2:], -1], shared=1000)
    (done,) = cupy.launches
    assert (done.name, done.grid, done.block, done.shared) == ("add", (5, 2), (128,), 1000)
    assert done.context == (("device", 3), ("stream", 77))
    assert done.args == (a.data_ptr(), 0, 2**40, a.data_ptr() + 8, -1)
    # CuPy passes the bytes of a NumPy scalar: eight each, as a pointer or a long long has.
    assert [type(arg) for arg in done.args] == [np.uint64, np.uint64, np.int64, np.uint64, np.int64]
    assert cupy.context == []


def test_what_is_compiled(cupy: CuPy) -> None:
    launch("sum", "add", SINGLE, (1, 1), 32, [])
    (module,) = cupy.modules
    assert module == {
        "code": COMPILED,
        "options": ("-std=c++17", "-DSF_SCALAR=float", "-DSF_WIDE=double"),
        "backend": "nvrtc",
    }


def test_a_file_is_compiled_once_for_its_types(cupy: CuPy) -> None:
    for types in (SINGLE, DOUBLE, SINGLE):
        for name in ("add", "subtract", "add"):
            launch("sum", name, types, (1, 1), 32, [])
    assert [module["options"][1] for module in cupy.modules] == ["-DSF_SCALAR=float", "-DSF_SCALAR=double"]
    assert cupy.functions == ["add", "subtract"] * 2
    assert [done.name for done in cupy.launches] == ["add", "subtract", "add"] * 3


def test_a_device_has_its_own_function(cupy: CuPy, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit on shared memory is the function's, and a function is one device's."""
    for device in (3, 4, 3):
        monkeypatch.setattr(torch.cuda, "current_device", lambda device=device: device)
        launch("sum", "add", SINGLE, (1, 1), 32, [], shared=device * 40_000)
    assert [done.context[0] for done in cupy.launches] == [("device", 3), ("device", 4), ("device", 3)]
    assert [done.limit for done in cupy.launches] == [150_000, 200_000, 150_000]
    assert cupy.functions == ["add", "add"]


@pytest.mark.parametrize("shared", [0, 48 * 1024 + 1, 150_000])
def test_a_launch_leaves_the_limit_on_shared_memory_alone(cupy: CuPy, shared: int) -> None:
    """Between a thread's setting a limit and its launch another thread may launch with less."""

    def launch_of_another_thread(self: Kernel, grid: Any, block: Any, args: Any, *, shared_mem: int) -> None:
        if shared_mem != 50_000:
            launch("sum", "add", SINGLE, (1, 1), 32, [], shared=50_000)
        run(self, grid, block, args, shared_mem=shared_mem)

    run = Kernel.__call__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Kernel, "__call__", launch_of_another_thread)
        launch("sum", "add", SINGLE, (1, 1), 32, [], shared=shared)
    assert [done.shared for done in cupy.launches] == [50_000, shared]
    assert all(done.limit >= done.shared for done in cupy.launches)


def test_a_kernel_is_not_loaded_in_a_capture(cupy: CuPy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading a module breaks it; what has been launched before does not load."""
    launch("sum", "add", SINGLE, (1, 1), 32, [])
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    launch("sum", "add", SINGLE, (1, 1), 32, [])
    with pytest.raises(RuntimeError, match=r"same shape, dtype and strides once before the capture"):
        launch("sum", "subtract", SINGLE, (1, 1), 32, [])
    assert cupy.functions == ["add"]
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    launch("sum", "subtract", SINGLE, (1, 1), 32, [])
    assert [done.name for done in cupy.launches] == ["add", "add", "subtract"]


def test_without_cupy(stages: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(
        RuntimeError, match=r"need CuPy: pip install 'spectral_fast\[cuda\]' \(.*cupy.*\)"
    ) as error:
        launch("sum", "add", SINGLE, (1, 1), 32, [])
    assert isinstance(error.value.__cause__, ImportError)


def test_without_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_FOLDERS", (tmp_path / "csrc",))
    with pytest.raises(RuntimeError, match=r"csrc lacks the CUDA sources: .* install again"):
        sources.source("sum")


@pytest.mark.filterwarnings("error")
def test_cupy_has_what_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """The names above, and none of them deprecated. More needs a GPU."""
    cupy = gates.module("cupy")
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(cuda_stream=77))
    assert cupy.cuda.Stream.from_external(launching._CurrentStream()).ptr == 77
    assert cupy.cuda.Device(0).id == 0
    module = cupy.RawModule(code=SOURCE, options=sources.options(SINGLE), backend="nvrtc")
    assert callable(module.get_function)
    assert callable(cupy.RawKernel)
    assert isinstance(cupy.RawKernel.max_dynamic_shared_size_bytes, property | GetSetDescriptorType)
