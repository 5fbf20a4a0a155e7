"""The CUDA emulator computes what CUDA does, and reports what CUDA leaves undefined."""

from __future__ import annotations

import platform

import pytest
import torch
from torch import Tensor

from spectral_fast.cuda.launch import Argument
from spectral_fast.cuda.sources import Types
from tests import cuda_emulator
from tests.cuda_emulator import ORDERS, Emulator

TYPES = Types(torch.float32, torch.float64)
ALL = "0xffffffffu"


def kernel(body: str, parameters: str = "int* out, long long n", bounds: str = "") -> dict[str, str]:
    """A source of one kernel."""
    return {
        "test": f'extern "C" __global__ {bounds} void test({parameters}) {{\nint t = threadIdx.x;\n{body}\n}}'
    }


def ints(count: int) -> Tensor:
    return torch.full((count,), -1, dtype=torch.int32)


def run(
    sources: dict[str, str],
    threads: int,
    args: list[Argument],
    blocks: int = 1,
    shared: int = 0,
    types: Types = TYPES,
    order: str = "forward",
    races: bool = False,
) -> None:
    emulate = Emulator(order, sources=sources, races=races)
    emulate("test", "test", types, (blocks, 1), threads, args, shared)


SUMS = kernel(
    """SF_WIDE* partial = static_cast<SF_WIDE*>(shared_memory());
  SF_WIDE sum = 0;
  for (long long i = t; i < n; i += blockDim.x) sum += a[blockIdx.x * n + i];
  for (int bit = 16; bit; bit >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, bit);
  if (t % 32 == 0) partial[t / 32] = sum;
  __syncthreads();
  if (t) return;
  SF_WIDE total = 0;
  for (int warp = 0; warp < blockDim.x / 32; ++warp) total += partial[warp];
  out[blockIdx.x] = total;""",
    "const SF_SCALAR* __restrict__ a, long long n, SF_WIDE* out",
)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("races", [False, True])
def test_sums_of_a_block(order: str, races: bool) -> None:
    a = torch.arange(5 * 1000, dtype=torch.float32).reshape(5, 1000)
    out = torch.empty(5, dtype=torch.float64)
    run(SUMS, 128, [a, 1000, out], blocks=5, shared=32, order=order, races=races)
    assert torch.equal(out, a.double().sum(1))


TRANSPOSE = kernel(
    """SF_SCALAR* tile = static_cast<SF_SCALAR*>(shared_memory());
  const long long row = blockIdx.y * 32LL, column = blockIdx.x * 32LL;
  const int i = t / 32, j = t % 32;
  if (row + i < m && column + j < n) tile[i * 33 + j] = a[(row + i) * n + column + j];
  __syncthreads();
  if (row + j < m && column + i < n) out[(column + i) * m + row + j] = tile[j * 33 + i];""",
    "const SF_SCALAR* a, long long m, long long n, SF_SCALAR* out",
    "__launch_bounds__(1024)",
)


@pytest.mark.parametrize("order", ORDERS)
def test_transposition_through_shared_memory(order: str) -> None:
    a = torch.arange(70 * 101, dtype=torch.float32).reshape(70, 101)
    out = torch.empty(101, 70)
    emulate = Emulator(order, sources=TRANSPOSE)
    emulate("test", "test", TYPES, (4, 3), 1024, [a, 70, 101, out], shared=32 * 33 * 4)
    assert torch.equal(out, a.T)


def exchanged(expression: str, type_name: str = "int") -> Tensor:
    """What lanes 0 to 63, which give 100 + their number, get."""
    dtype = torch.float64 if type_name == "double" else torch.int32
    out = torch.empty(64, dtype=dtype) if type_name == "double" else ints(64)
    sources = kernel(f"{type_name} x = 100 + t; out[t] = {expression};", f"{type_name}* out")
    results = []
    for order in ORDERS:
        run(sources, 64, [out], order=order)
        results.append(out.clone())
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
    return results[0]


def test_shuffles() -> None:
    lanes = torch.arange(64, dtype=torch.int32)
    warp, lane = lanes // 32 * 32, lanes % 32
    given = 100 + warp
    assert torch.equal(exchanged(f"__shfl_sync({ALL}, x, (t + 5) % 32)"), given + (lane + 5) % 32)
    assert torch.equal(exchanged(f"__shfl_sync({ALL}, x, 3, 8)"), given + lane // 8 * 8 + 3)
    assert torch.equal(exchanged(f"__shfl_xor_sync({ALL}, x, 9)"), given + (lane ^ 9))
    assert torch.equal(
        exchanged(f"__shfl_up_sync({ALL}, x, 3)"), given + torch.where(lane < 3, lane, lane - 3)
    )
    down = torch.where(lane % 16 > 11, lane, lane + 4)  # within 16 lanes; else one's own
    assert torch.equal(exchanged(f"__shfl_down_sync({ALL}, x, 4, 16)"), given + down)
    doubles = exchanged(f"__shfl_xor_sync({ALL}, x + 1 / 3.0, 1)", "double")
    assert torch.equal(doubles, (given + (lane ^ 1)) + torch.tensor(1 / 3.0, dtype=torch.float64))


def test_votes() -> None:
    even = torch.full((64,), 0x55555555, dtype=torch.int32)
    assert torch.equal(exchanged(f"__ballot_sync({ALL}, t % 2 == 0)"), even)
    assert torch.equal(exchanged(f"__any_sync({ALL}, t == 40)"), (torch.arange(64) >= 32).int())
    assert torch.equal(exchanged(f"__all_sync({ALL}, t < 40)"), (torch.arange(64) < 32).int())
    low, high = "__ballot_sync(0x0000ffffu, t % 3 == 0)", "__ballot_sync(0xffff0000u, t % 3 == 0)"
    halves = exchanged(f"t % 32 < 16 ? {low} : {high}")
    for start in range(0, 64, 16):
        votes = sum((i % 3 == 0) << i % 32 for i in range(start, start + 16))
        expected = votes - (1 << 32) if votes >= 1 << 31 else votes
        assert halves[start : start + 16].tolist() == [expected] * 16


def test_vectors_and_bits() -> None:
    out = ints(8)
    body = """float4 v = reinterpret_cast<const float4*>(a)[0];
  out[0] = v.w; out[1] = max(3, min(5, 4)); out[2] = __double_as_longlong(1.0) >> 52; out[3] = __popc(255u);
  out[4] = __float_as_int(1.0f) >> 23; out[5] = __int_as_float(0x40000000);
  out[6] = ilogb(9.0); out[7] = fmax(1, 2.5);"""
    run(kernel(body, "const float* a, int* out"), 1, [torch.tensor([1.0, 2, 3, 4]), out])
    assert out.tolist() == [4, 4, 1023, 8, 127, 2, 3, 2]


MISUSE = {
    "some threads exit before the barrier": (
        "if (t < 40) __syncthreads();",
        "deadlock; threads 0 to 39 wait at __syncthreads, line 3; threads 40 to 63 exited",
    ),
    "threads wait at two barriers": (
        "if (t < 32)\n__syncthreads();\nelse\n__syncthreads();",
        "different barriers; threads 0 to 31 wait at __syncthreads, line 4; threads 32 to 63 wait .* line 6",
    ),
    "a block and a warp wait for each other": (
        "if (t % 2) __syncthreads(); else __syncwarp();",
        "thread 0 waits at __syncwarp, line 3, mask 0xffffffff, for lane 1; thread 1 waits at __syncthreads",
    ),
    "a mask with an exited lane": (
        f"if (t == 5) return;\nout[t] = __shfl_sync({ALL}, t, 0);",
        "threads 0 to 4 wait at __shfl_sync, line 4, mask 0xffffffff, for lane 5; thread 5 exited",
    ),
    "a lane outside its own mask": (
        "out[t] = __shfl_sync(0x7fffffffu, t, 0);",
        "thread 31 is not in the mask 0x7fffffff it gives __shfl_sync, line 3",
    ),
    "a lane reads one outside the mask": (
        "if (t < 16) out[t] = __shfl_sync(0xffffu, t, 20);",
        "thread 0 reads lane 20, which is not in the mask 0xffff of __shfl_sync, line 3",
    ),
    "lanes in two exchanges": (
        f"if (t < 7)\nout[t] = __shfl_sync({ALL}, t, 0);\nelse\nout[t] = __shfl_xor_sync({ALL}, t, 1);",
        "threads 0 to 6 wait at __shfl_sync, line 4.*; threads 7 to 31 wait at __shfl_xor_sync, line 6",
    ),
    "the same exchange in two places": (
        f"if (t < 7)\nout[t] = __shfl_sync({ALL}, t, 0);\nelse\nout[t] = __shfl_sync({ALL}, t, 1);",
        "threads 0 to 6 wait at __shfl_sync, line 4.*; threads 7 to 31 wait at __shfl_sync, line 6",
    ),
    "one exchange, two masks": (
        f"out[t] = __shfl_sync(t % 32 < 16 ? 0xffffu : {ALL}, t, 0);",
        "threads 0 to 15 exited; threads 16 to 31 wait at __shfl_sync, line 3, mask 0xffffffff, for lane 0",
    ),
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("what", MISUSE)
def test_misuse_is_reported(what: str, order: str) -> None:
    body, message = MISUSE[what]
    if order != "forward":
        message = ""  # another thread is found first
    with pytest.raises(RuntimeError, match=rf"test\.cu: test, block \(0, 0\): .*{message}"):
        run(kernel(body), 64, [ints(64), 0], order=order)


def test_a_partial_warp_has_no_other_lanes() -> None:
    with pytest.raises(RuntimeError, match="wait at __syncwarp, line 3, mask 0xffffffff, for lane 20"):
        run(kernel("__syncwarp();"), 20, [ints(1), 0])
    run(kernel("__syncwarp(0xfffff);"), 20, [ints(1), 0])


SHIFT = """int* s = static_cast<int*>(shared_memory());
  s[t] = t;
  BETWEEN
  out[t] = s[(t + 1) % THREADS];"""


def shift(between: str, threads: int) -> dict[str, str]:
    return kernel(SHIFT.replace("BETWEEN", between).replace("THREADS", str(threads)))


@pytest.mark.parametrize(
    ("between", "threads", "enough"),
    [
        ("__syncthreads();", 96, True),
        ("__syncwarp();", 96, False),
        ("", 96, False),
        ("__syncwarp();", 32, True),
        ("__syncwarp(t < 16 ? 0xffffu : 0xffff0000u);", 32, False),
        ("", 32, False),
    ],
)
def test_a_missing_barrier_is_seen(between: str, threads: int, enough: bool) -> None:
    results = []
    for order in ORDERS:
        out = ints(threads)
        run(shift(between, threads), threads, [out, 0], shared=4 * threads, order=order)
        results.append(out)
    assert all(torch.equal(result, results[0]) for result in results) == enough
    for order in ORDERS:
        if enough:
            run(shift(between, threads), threads, [out, 0], shared=4 * threads, order=order, races=True)
        else:
            with pytest.raises(
                RuntimeError, match=r"race: thread \d+ (reads|writes) at line \d+ what thread \d+ "
            ):
                run(shift(between, threads), threads, [out, 0], shared=4 * threads, order=order, races=True)


def test_a_shuffle_orders_no_memory() -> None:
    """All lanes meet there, so in any order all have written before one reads: only a race shows it."""
    sources = shift(f"int x = __shfl_sync({ALL}, t, 0);", 32)
    for order in ORDERS:
        out = ints(32)
        run(sources, 32, [out, 0], shared=128, order=order)
        assert out.tolist() == [(t + 1) % 32 for t in range(32)]
    with pytest.raises(RuntimeError, match="race: thread 0 reads at line 6 what thread 1 wrote at line 4"):
        run(sources, 32, [out, 0], shared=128, races=True)


RACES = {
    "a write after another lane's read": (
        """int* s = static_cast<int*>(shared_memory()); s[t] = 0; __syncthreads();
  int x = s[(t + 1) % 32];
  s[t] = x;""",
        "thread 1 writes at line 5 what thread 0 read at line 4",
    ),
    "a write after several lanes' reads, one of them before __syncwarp": (
        """int* s = static_cast<int*>(shared_memory()); if (t == 0) s[0] = 0; __syncthreads();
  if (t == 9 || t == 30 || t == 31) out[t] = s[0];
  if (t == 30 || t == 31) __syncwarp(0xc0000000u);
  if (t == 31) s[0] = 1;""",
        "thread 31 writes at line 6 what thread 9 read at line 4",
    ),
    "a write after another warp's read": (
        """int* s = static_cast<int*>(shared_memory()); if (t == 0) s[0] = 0; __syncthreads();
  out[t] = s[0];
  __syncwarp(); if (t >= 32) __syncwarp();
  if (t == 40) s[0] = 1;""",
        "thread 40 writes at line 6 what thread 63 and another warp read at line 4",
    ),
    "two writes": (
        "if (t == 3 || t == 8) out[0] = 1;",
        "thread 8 writes at line 3 what thread 3 wrote at line 3",
    ),
    "two blocks": (
        "if (t == 0) out[blockIdx.x / 2] = 1;",
        "thread 0 writes at line 3 what thread 0 of another block wrote at line 3",
    ),
    "a block reads what another wrote": (
        "if (t) return;\nif (blockIdx.x == 0) out[0] = 1;\nif (blockIdx.x == 1) out[1] = out[0];",
        "thread 0 reads at line 5 what thread 0 of another block wrote at line 4",
    ),
    "a block writes what others read": (
        "if (t) return;\nout[1 + blockIdx.x] = out[0];\nif (blockIdx.x == 1) out[0] = 0;",
        "thread 0 writes at line 5 what thread 0 of another block read at line 4",
    ),
    "half of a double": (
        "if (t == 0) reinterpret_cast<double*>(out)[0] = 0;\nif (t == 1) out[1] = 0;",
        "thread 1 writes at line 4 what thread 0 wrote at line 3",
    ),
    "a structure": (
        """struct S { int v[16]; }; S* s = static_cast<S*>(shared_memory());
  if (t == 1) s[1].v[7] = 1;
  if (t == 2) s[0] = s[1];""",
        "thread 2 reads at line 5 what thread 1 wrote at line 4",
    ),
    "past the end": ("out[t + 1] = 1;", "thread 63 writes 4 bytes at line 3 outside its arguments"),
    "before the beginning": ("if (t == 0) out[t] = out[t - 1];", "thread 0 reads 4 bytes at line 3 outside"),
    "past shared memory": (
        "static_cast<int*>(shared_memory())[t + 1] = 1;",
        "thread 63 writes 4 bytes at line 3 outside its arguments and its shared memory",
    ),
    "not aligned": (
        "if (t == 0) *reinterpret_cast<double*>(out + 1) = 0;",
        "thread 0 writes 8 bytes at line 3 that are not aligned",
    ),
}


@pytest.mark.parametrize("what", RACES)
def test_races_are_reported(what: str) -> None:
    body, message = RACES[what]
    with pytest.raises(RuntimeError, match=message):
        run(kernel(body), 64, [ints(64), 0], blocks=2, shared=256, races=True)


NO_RACES = {
    "all read, then after a barrier one writes": """int* s = static_cast<int*>(shared_memory());
  out[t] = s[0]; __syncthreads(); if (t == 0) s[0] = 1;""",
    "a lane writes what its warp has read": """int* s = static_cast<int*>(shared_memory()) + t / 32;
  if (t % 32 == 0) *s = 0; __syncwarp(); out[t] = *s;
  __syncwarp(); if (t % 32 == 7) *s = 1; __syncwarp(); out[t] = *s;""",
    "through a third lane": """int* s = static_cast<int*>(shared_memory()); if (t == 0) s[0] = 1;
  if (t < 2) __syncwarp(3); if (t == 1 || t == 2) __syncwarp(6); if (t == 2) s[0] = 2;""",
    "every block has shared memory of its own": "static_cast<int*>(shared_memory())[t] = t;",
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("what", NO_RACES)
def test_no_races_are_invented(what: str, order: str) -> None:
    blocks = 3 if what.startswith("every") else 1
    run(kernel(NO_RACES[what]), 64, [ints(64), 0], blocks=blocks, shared=256, order=order, races=True)


def test_writes_outside_shared_memory_are_reported() -> None:
    for index in (64, -1):
        with pytest.raises(RuntimeError, match="wrote outside its 256 bytes of shared memory"):
            run(
                kernel(f"if (!t) static_cast<int*>(shared_memory())[{index}] = 1;"),
                64,
                [ints(1), 0],
                shared=256,
            )


def test_an_overflowing_stack_is_reported() -> None:
    body = "volatile int big[20000];\nfor (int i = 20000; i--;) big[i] = t;\nout[0] = big[7];"
    with pytest.raises(RuntimeError, match="thread 0 overflowed its stack"):
        run(kernel(body), 1, [ints(1), 0])


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            "if (t == 9)\nreinterpret_cast<int*>(n)[t] = 1;",
            "thread 9 reads or writes a bad address at line 4",
        ),
        ("out[0] = 7 / (t -\n20);", "thread 20 divides an integer by zero at line 3"),
        (
            "while (!out[1])\nout[0] = 1;",
            "thread 0 is not done after all the time it was given, at line [34]",
        ),
    ],
)
def test_what_would_end_the_process_is_reported(
    body: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_emulator, "_CPU_SECONDS", 1)
    out = torch.zeros(2, dtype=torch.int32)
    for _ in range(2):  # no signal is left blocked
        with pytest.raises(RuntimeError, match=message):
            run(kernel(body, "volatile int* out, long long n"), 32, [out, 8])


def test_shared_memory_is_nan_in_every_block() -> None:
    body = """double* s = static_cast<double*>(shared_memory()) + t;
  out[blockIdx.x * blockDim.x + t] = *s != *s; *s = 1;"""
    out = ints(3 * 32)
    run(kernel(body), 32, [out, 0], blocks=3, shared=256)
    assert (out == 1).all()


def test_the_orders() -> None:
    """Who comes first takes the first number. Nothing a kernel of the package may do."""
    body = "int i = *next; *next = i + 1; taken[blockIdx.x * blockDim.x + t] = i;"
    sources = kernel(body, "int* next, int* taken")

    def taken(order: str, seed: int = 0) -> list[int]:
        out = ints(2 * 96)
        emulate = Emulator(order, seed=seed, sources=sources)
        emulate("test", "test", TYPES, (2, 1), 96, [torch.zeros(1, dtype=torch.int32), out])
        return out.tolist()

    assert taken("forward") == list(range(192))
    assert taken("reverse") == list(range(191, -1, -1))
    drawn = taken("random")
    assert sorted(drawn) == list(range(192))
    assert drawn == taken("random")
    assert drawn not in (taken("forward"), taken("reverse"), taken("random", seed=1))


def test_a_warp_runs_ahead_of_the_others() -> None:
    """Up to the block's barrier, through any number of the warp's."""
    body = "for (int i = 0; i < 5; ++i) __syncwarp();\nif (t % 32 == 0) { out[t / 32] = *next; *next += 1; }"
    out = ints(2)
    sources = kernel("if (t < 32) *next = 9;\n" + body, "int* next, int* out")
    run(sources, 64, [torch.zeros(1, dtype=torch.int32), out], order="forward")
    assert out.tolist() == [9, 10]
    run(sources, 64, [torch.zeros(1, dtype=torch.int32), out], order="reverse")
    assert out.tolist() == [9, 0]


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the mode is set on x86-64 alone")
@pytest.mark.parametrize(("wide", "kept"), [(torch.float32, False), (torch.float64, True)])
def test_subnormals_are_flushed_where_all_is_float32(wide: torch.dtype, kept: bool) -> None:
    out = torch.empty(2)
    sources = kernel("out[0] = a[0] * 0.5f; out[1] = a[1] * 4;", "const float* a, float* out")
    run(sources, 1, [torch.tensor([1.2e-38, 1e-39]), out], types=Types(torch.float32, wide))
    assert (out != 0).tolist() == [kept, kept]
    assert torch.tensor(1e-39) * 4 != 0  # the mode is the kernel's alone


def test_arguments_are_checked() -> None:
    sources = kernel("", "const SF_SCALAR* a, long long n, Wide* out", "__launch_bounds__(2 * 32, 1)")
    sources["test"] = "typedef SF_WIDE Wide;" + sources["test"]
    emulate = Emulator(sources=sources)
    a, out = torch.ones(4), torch.ones(4, dtype=torch.float64)

    def launch(*args: Argument, threads: int = 32, shared: int = 0, grid: tuple[int, int] = (1, 1)) -> None:
        emulate("test", "test", TYPES, grid, threads, args, shared)

    launch(a, 1, None, threads=64, shared=227 * 1024)
    with pytest.raises(TypeError, match=r"test takes 3 arguments \(a, n, out\), 2 given"):
        launch(a, 1)
    with pytest.raises(TypeError, match="n is a long long, not Tensor"):
        launch(a, a, out)
    with pytest.raises(TypeError, match=r"out is Wide \*: a tensor or None, not int"):
        launch(a, 1, 1)
    with pytest.raises(TypeError, match=r"out is Wide \*, not torch.float32"):
        launch(a, 1, a)
    with pytest.raises(TypeError, match="a is not a strided tensor of the CPU"):
        launch(a.to("meta"), 1, out)
    with pytest.raises(ValueError, match="96 threads; it is made for 1 to 64"):
        launch(a, 1, out, threads=96)
    with pytest.raises(ValueError, match="232449 bytes of shared memory; a block has at most 232448"):
        launch(a, 1, out, shared=227 * 1024 + 1)
    with pytest.raises(ValueError, match=r"a grid of \(1, 0\)"):
        launch(a, 1, out, grid=(1, 0))
    with pytest.raises(ValueError, match=r"test\.cu has no kernel other; it has test"):
        emulate("test", "other", TYPES, (1, 1), 32, [])
    with pytest.raises(ValueError, match="parameter n is int; kernels take pointers and long long"):
        run(kernel("", "int n"), 1, [1])
    with pytest.raises(ValueError, match=r"undeclared.? was not declared"):
        run(kernel("undeclared = 1;", ""), 1, [])


def test_an_edit_changes_the_source() -> None:
    out = ints(1)
    Emulator(sources=kernel("out[0] = 1;"), edit=lambda text: text.replace("= 1", "= 2"))(
        "test", "test", TYPES, (1, 1), 1, [out, 0]
    )
    assert out.item() == 2
