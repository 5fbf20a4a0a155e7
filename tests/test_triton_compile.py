"""The Triton kernels compiled as a launch would compile them, for chips that are not here.

The host code of backends/triton.py runs on CPU tensors with its launches recorded; triton's own binder turns
each into signature, constants and attributes. So what is compiled is what a GPU would get, block sizes and
alignment included. Registers, spills and instructions are read from the binaries.

The kernels of `load`, `band` and `products` are launched by their own modules, recorded likewise.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

triton = pytest.importorskip("triton", reason="triton is not installed: the test extra has it on Linux")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource, make_backend  # noqa: E402
from triton.runtime import jit  # noqa: E402

from spectral_fast.backends import triton as backend  # noqa: E402
from spectral_fast.triton import band, products  # noqa: E402
from spectral_fast.triton import load as loading  # noqa: E402
from spectral_fast.triton import stats as kernels  # noqa: E402

# Chip: its target, and the shared memory a block may have (CUDA C++ Programming Guide; CDNA 3 ISA).
CHIPS = {
    "sm_80": (GPUTarget("cuda", 80, 32), 163 * 1024),
    "sm_90": (GPUTarget("cuda", 90, 32), 227 * 1024),
    "sm_100": (GPUTarget("cuda", 100, 32), 227 * 1024),
    "gfx942": (GPUTarget("hip", "gfx942", 64), 64 * 1024),
}
CONSUMER = {f"sm_{number}": (GPUTarget("cuda", number, 32), 99 * 1024) for number in (86, 89, 120)}
# What the block sizes were chosen for: see the constants beside the kernels.
REGISTERS = dict.fromkeys(("spectrum_kernel", "tail_kernel", "threshold_kernel"), 128)
REGISTERS |= dict.fromkeys(("distance_kernel", "fitted_kernel", "fit_kernel"), 64)
DTYPES = (torch.float32, torch.float64)
HALF = (torch.float16, torch.bfloat16)
# Products: two programs of twice the warps in float64, or four and more in float32, share 65536 registers.
PIPELINE_REGISTERS = {torch.float32: 128, torch.float64: 192} | dict.fromkeys(HALF, 128)


class Launch(NamedTuple):
    kernel: Any
    grid: tuple[int, ...]
    args: tuple[Any, ...]
    options: dict[str, Any]


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[Launch]:
    """What the host code would launch, in order."""
    recorded: list[Launch] = []

    def record(kernel: Any, *args: Any, grid: tuple[int, ...], warmup: bool, **options: Any) -> None:
        assert not warmup
        recorded.append(Launch(kernel, grid, args, options))

    monkeypatch.setattr(jit.JITFunction, "run", record)
    return recorded


def launch_all(dtype: torch.dtype, batch: int = 3, n: int = 100) -> None:
    S = torch.ones(batch, n, dtype=dtype)
    backend.stats_from_svdvals(S, n, 2 * n)
    backend.fit_powerlaw(S, None)
    backend.fit_powerlaw(S, torch.tensor(0.5))


def compiled(launch: Launch, target: GPUTarget) -> Any:
    kernel = launch.kernel
    compiler = make_backend(target)
    bind = jit.create_function_from_signature(kernel.signature, kernel.params, compiler)
    bound, specialization, options = bind(*launch.args, **launch.options)
    parsed, signature, constants, attributes = kernel._pack_args(
        compiler, options, bound, specialization, options
    )
    for i, (param, kind) in enumerate(zip(kernel.params, signature.values(), strict=True)):
        # Pointers are aligned, but for a matrix that may begin anywhere.
        if kind.startswith("*"):
            aligned = ["tt.divisibility", 16] in attributes.get((i,), [])
            assert aligned != param.do_not_specialize_on_alignment, param.name
    source = ASTSource(kernel, signature, constants, attributes)
    binary = triton.compile(source, target=target, options=parsed.__dict__)
    # A launch refuses a global constant that differs from what it was, as a NaN does from itself.
    assert not any(value != value for value, _ in kernel.used_global_vals.values())
    return binary


def disassembly(binary: Any, target: GPUTarget, folder: Path, what: str = "-sass") -> str:
    """The machine code; what="--dump-resource-usage": what a cubin needs."""
    if target.backend == "hip":
        return binary.asm["amdgcn"]
    cubin = folder / "kernel.cubin"
    cubin.write_bytes(binary.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    return subprocess.run([tool, what, cubin], capture_output=True, text=True, check=True).stdout


def resources(binary: Any, target: GPUTarget, folder: Path) -> dict[str, int]:
    """Registers a thread, and bytes or registers of spills, from the binary."""
    text = disassembly(binary, target, folder, "--dump-resource-usage")
    if target.backend == "hip":
        names = ("vgpr_count", "vgpr_spill_count", "sgpr_spill_count", "private_segment_fixed_size")
        found = {name: re.findall(rf"^\s*\.{name}:\s*(\d+)", text, re.MULTILINE) for name in names}
    else:
        found = {name: re.findall(rf"\b{name}:(\d+)", text) for name in ("REG", "STACK", "LOCAL")}
    assert all(len(values) == 1 for values in found.values()), text
    return {name: int(values[0]) for name, values in found.items()}


def float32_operations(ttir: str) -> set[str]:
    """Operations with a float32 operand or result that is not a pointer's."""
    lines = (line for line in ttir.splitlines() if "f32" in line.replace("ptr<f32>", ""))
    return set(re.findall(r"= (\w+\.\w+)", "\n".join(lines)))


@pytest.mark.parametrize("chip", CHIPS)
def test_every_kernel_compiles_without_spills(
    chip: str,
    launches: list[Launch],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    target, shared_limit = CHIPS[chip]
    for dtype in DTYPES if chip == "sm_90" else DTYPES[:1]:
        launch_all(dtype)
    distinct = {(launch.kernel.__name__, launch.args[0].dtype): launch for launch in launches}
    assert len(distinct) == (11 if chip == "sm_90" else 6)
    for (name, dtype), launch in distinct.items():
        binary = compiled(launch, target)
        found = resources(binary, target, tmp_path)
        print(chip, name, dtype, binary.metadata.shared, found)  # pytest -rP shows them
        registers = found.pop("vgpr_count" if target.backend == "hip" else "REG")
        assert 0 < registers <= REGISTERS[name], name
        assert not any(found.values()), (name, found)
        assert binary.metadata.shared <= shared_limit
        assert binary.metadata.num_warps == launch.options["num_warps"]
        # All arithmetic is in float64: a float32 is loaded and extended.
        allowed = {"arith.constant", "arith.extf"} if dtype == torch.float32 else set()
        assert float32_operations(binary.asm["ttir"]) <= allowed, name
        # Rows are found with 64 bits: batch times n may pass 2^31.
        assert re.search(r"arith\.muli .*: i64", binary.asm["ttir"]), name
        if target.backend == "cuda":
            # .rn: ptxas must not contract it. See the kernels' first comment.
            assert not re.findall(r"\b(?:add|sub|mul)\.f64", binary.asm["ptx"]), name


def launch_load(dtype: torch.dtype, batch: int = 3, m: int = 100, n: int = 70) -> None:
    """By rows and by columns, from an address that is aligned to an entry and no more."""
    memory = torch.ones(batch * m * n + 1, dtype=dtype)[1:]
    rows, cols = (-(-size // band.BLOCK) * band.BLOCK for size in (m, n))
    loading.load(memory.view(batch, m, n), rows, cols)
    loading.load(memory.view(batch, n, m).transpose(1, 2), rows, cols)


def launch_band(dtype: torch.dtype, batch: int = 3, rows: int = 128, cols: int = 96, top: int = 32) -> None:
    b = band.BLOCK
    shapes = (batch, rows, cols), (batch, rows, 2 * b), (batch, 2 * b, cols), (batch, b, b)
    a, left, right, t = (torch.ones(shape, dtype=dtype) for shape in shapes)
    band.left_product(a, left, right, t, top)
    band.right_product(a, left, right, t, top)
    for rank in (b, 2 * b):
        band.update(a, left, right, top, rank)


def launch_products(dtype: torch.dtype, cols: int, batch: int = 3, m: int = 100, n: int = 70) -> None:
    """From an address that is aligned to an entry and no more."""
    memory = torch.ones(batch * m * n + 1, dtype=dtype)[1:]
    products.gram_product(memory.view(batch, m, n), torch.ones(batch, n, cols, dtype=dtype))


def check_pipeline(
    launch: Launch, target: GPUTarget, shared_limit: int, folder: Path, spilled: int = 0
) -> None:
    """spilled: bytes of the stack that a kernel may take."""
    name, dtype = launch.kernel.__name__, launch.args[0].dtype
    binary = compiled(launch, target)
    found, code = resources(binary, target, folder), disassembly(binary, target, folder)
    print(target.arch, name, dtype, launch.options, binary.metadata.shared, found)  # pytest -rP shows them
    registers = found.pop("vgpr_count" if target.backend == "hip" else "REG")
    most = PIPELINE_REGISTERS[dtype]
    if launch.kernel is products.product_kernel:
        most = products.REGISTERS
    elif launch.kernel is band.right_product_kernel and dtype == torch.float32:
        most = 255  # see RIGHT_WARPS
    assert 0 < registers <= most, name
    assert found.pop("STACK", 0) <= spilled, name
    assert not any(found.values()), (name, found)
    assert binary.metadata.shared <= shared_limit
    assert binary.metadata.num_warps == launch.options["num_warps"]
    assert re.search(r"arith\.muli .*: i64", binary.asm["ttir"]), name
    assert not re.search(r"\b(?:ATOM|ATOMG|ATOMS|RED|REDG)\b|_atomic_", code), name
    # A subnormal is scaled, not flushed.
    if target.backend == "cuda":
        assert "ftz" not in binary.asm["ptx"], name
    else:
        assert re.search(r"\.amdhsa_float_denorm_mode_32 3$", code, re.MULTILINE), name
    if launch.kernel in (loading.peak_kernel, loading.load_kernel, products.total_kernel):
        return

    # Products of float32 are products of float32; float64 is multiplied by tensor cores where they are fast.
    assert set(re.findall(r"inputPrecision = (\w+)", binary.asm["ttir"])) <= {"ieee"}, name
    if launch.kernel is not band.update_kernel:
        # Long sums step by step: no product goes on with the sum before it.
        begins = re.findall(
            r"\b(?:tt\.dot|ttng\.warp_group_dot) %[\w#]+, %[\w#]+, (%[\w#]+)", binary.asm["ttgir"]
        )
        zeros = re.findall(r"(%\w+) = arith\.constant dense<0\.0+e\+00>", binary.asm["ttgir"])
        assert len(begins) >= (1 if launch.kernel is products.product_kernel else 3), name
        assert set(begins) <= set(zeros), (name, begins)
    double = dtype == torch.float64
    if target.backend == "hip":
        assert set(re.findall(r"v_mfma_(\w+?)_\d+x\d+", code)) == {"f64" if double else "f32"}, name
        assert "xf32" not in code
        return
    opcodes = set(re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Z]\w*)", code))
    tensor_cores = {opcode for opcode in opcodes if "MMA" in opcode}
    assert tensor_cores == ({"DMMA"} if double and target.arch in (80, 90) else set()), (name, tensor_cores)
    scalar = opcodes & {"FFMA", "FFMA2", "DFMA"}  # HFMA2 moves constants
    assert scalar <= ({"DFMA"} if double else {"FFMA", "FFMA2"}), (name, scalar)
    assert scalar or tensor_cores
    assert "LDGSTS" in opcodes, f"{name}: loads are not under way while it multiplies"
    assert launch.options.get("enable_fp_fusion", True)


@pytest.mark.parametrize("chip", [*CHIPS, *(pytest.param(chip, marks=pytest.mark.slow) for chip in CONSUMER)])
def test_every_kernel_of_the_pipeline(
    chip: str, launches: list[Launch], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    target, shared_limit = (CHIPS | CONSUMER)[chip]
    if target.backend == "hip":
        monkeypatch.setattr(torch.version, "hip", "6.4")  # options of a launch are another's there
    # Of load, the shortest and the longest type: the others differ in the conversion of an entry.
    for dtype in (*HALF, *DTYPES) if chip == "sm_90" else (torch.bfloat16, torch.float64):
        launch_load(dtype)
        launches.pop(-2)  # peak_kernel again
    for dtype in DTYPES:
        launch_band(dtype)
    assert len(launches) == (20 if chip == "sm_90" else 14)
    for launch in launches:
        check_pipeline(launch, target, shared_limit, tmp_path)


@pytest.mark.parametrize("chip", [*CHIPS, *(pytest.param(chip, marks=pytest.mark.slow) for chip in CONSUMER)])
def test_gram_product(
    chip: str, launches: list[Launch], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 48 vectors, as a tracker has them."""
    check_products(chip, ((torch.float32, 48),), launches, tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("chip", [*CHIPS, *CONSUMER])
def test_gram_product_of_any_width(
    chip: str, launches: list[Launch], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = ((torch.float32, 16), (torch.float32, 32), *((torch.float64, cols) for cols in (16, 32, 48)))
    check_products(chip, cases, launches, tmp_path, monkeypatch)


def check_products(
    chip: str,
    cases: Iterable[tuple[torch.dtype, int]],
    launches: list[Launch],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(folder / "cache"))
    target, shared_limit = (CHIPS | CONSUMER)[chip]
    if target.backend == "hip":
        monkeypatch.setattr(torch.version, "hip", "6.4")
    for dtype, cols in cases:
        launches.clear()
        launch_products(dtype, cols)
        names = [launch.kernel.__name__ for launch in launches]
        assert names == ["product_kernel", "total_kernel"] * 2
        for launch in launches:
            # ptxas keeps two addresses from before the loop until after it, whatever registers it may take.
            kept = chip == "sm_100" and launch.options["SQUARES"] and cols == 32 and dtype == torch.float32
            check_pipeline(launch, target, shared_limit, folder, spilled=8 if kept else 0)


def test_launches_of_gram_product(launches: list[Launch]) -> None:
    """As many programs as parts of a matrix, whatever the batch; one matrix alone occupies half of a chip."""
    for batch in (1, 5):
        launches.clear()
        launch_products(torch.float32, 48, batch, 768, 768)
        grids = [launch.grid[0] for launch in launches]
        assert grids == [batch * 12 * 6, batch * 72, batch * 12 * 6, batch * 72]
    assert 12 * 6 >= 132 / 2  # multiprocessors of an H100
    launches.clear()
    launch_products(torch.float32, 100, 1, 130, 40)  # 3 tiles, 1 part, columns in three; then 1, 2, 3
    assert [launch.grid[0] for launch in launches] == [9, 26, 6, 8]


def test_binaries_of_gram_product(launches: list[Launch]) -> None:
    """Four for each of three widths: by the direction of reading, the first product and the second."""
    for m, n in ((1, 1), (100, 70), (4096, 16), (33, 768), (1536, 1536)):
        for cols in (1, 20, 48, 100):
            launch_products(torch.float32, cols, 2, m, n)
            products.gram_product(torch.ones(2, n, m).mT, torch.ones(2, n, cols))
    compiler = make_backend(CHIPS["sm_90"][0])
    found: dict[str, set[str]] = {}
    for kernel, _, args, options in launches:
        bind = jit.create_function_from_signature(kernel.signature, kernel.params, compiler)
        found.setdefault(kernel.__name__, set()).add(str(bind(*args, **options)[1:]))
    assert {name: len(classes) for name, classes in found.items()} == {
        "product_kernel": 12,
        "total_kernel": 2,
    }


def test_launches_of_the_pipeline(launches: list[Launch]) -> None:
    """A grid has one axis: the others end at 65535."""
    launch_load(torch.float32, batch=70000, m=2, n=1)
    launch_band(torch.float32, batch=5000, rows=160, cols=160, top=0)
    assert [(launch.kernel.__name__, launch.grid) for launch in launches] == [
        ("peak_kernel", (70000,)),
        ("load_kernel", (70000,)),
        ("peak_kernel", (70000,)),
        ("load_kernel", (70000,)),
        ("left_product_kernel", (5000 * 4,)),
        ("right_product_kernel", (5000 * 2,)),
        ("update_kernel", (5000 * 4,)),
        ("update_kernel", (5000 * 4,)),
    ]


def test_binaries_of_the_pipeline(launches: list[Launch]) -> None:
    """Two of load_kernel, by the direction of reading, and of update_kernel, by the rank; else one."""
    for batch, m, n in ((1, 1, 1), (3, 100, 70), (16, 64, 64), (1, 4096, 16), (2, 33, 1)):
        launch_load(torch.float32, batch, m, n)
    for batch, rows, cols, top in (
        (1, 64, 64, 0),
        (3, 128, 96, 32),
        (16, 1024, 1024, 512),
        (1, 4096, 128, 0),
    ):
        launch_band(torch.float32, batch, rows, cols, top)
    for kernel, grid, args, options in launches[:4]:  # the same, with strides beyond 32 bits
        names = [param.name for param in kernel.params[: len(args)]]
        far = (2**40 if "stride" in name else arg for name, arg in zip(names, args, strict=True))
        launches.append(Launch(kernel, grid, tuple(far), options))
    compiler = make_backend(CHIPS["sm_90"][0])
    found: dict[str, set[str]] = {}
    for kernel, _, args, options in launches:
        bind = jit.create_function_from_signature(kernel.signature, kernel.params, compiler)
        found.setdefault(kernel.__name__, set()).add(str(bind(*args, **options)[1:]))
    assert {name: len(classes) for name, classes in found.items()} == {
        "peak_kernel": 1,
        "load_kernel": 2,
        "left_product_kernel": 1,
        "right_product_kernel": 1,
        "update_kernel": 2,
    }


def test_launches_of_a_call(launches: list[Launch]) -> None:
    """Three, three and one, with a program a matrix or a block of candidates."""
    launch_all(torch.float32, batch=3, n=100)
    blocks = 3 * -(-100 // kernels.CANDIDATES)
    assert [(launch.kernel.__name__, launch.grid) for launch in launches] == [
        ("spectrum_kernel", (3,)),
        ("distance_kernel", (blocks,)),
        ("fitted_kernel", (3,)),
        ("tail_kernel", (3,)),
        ("distance_kernel", (blocks,)),
        ("fit_kernel", (3,)),
        ("threshold_kernel", (3,)),
    ]
    assert all(launch.options["enable_fp_fusion"] is False for launch in launches)


def test_one_binary_serves_every_size(launches: list[Launch]) -> None:
    """So a call with a new n compiles nothing, and a matrix has the same bits in any batch."""
    for batch, n in ((1, 1), (3, 100), (16, 64), (1, 4096)):
        launch_all(torch.float32, batch, n)
    compiler = make_backend(CHIPS["sm_90"][0])
    specializations: dict[str, set[str]] = {}
    for kernel, _, args, options in launches:
        bind = jit.create_function_from_signature(kernel.signature, kernel.params, compiler)
        specializations.setdefault(kernel.__name__, set()).add(str(bind(*args, **options)[1]))
    assert len(specializations) == 6
    assert all(len(found) == 1 for found in specializations.values()), specializations


def test_host_code_looks_at_no_value(launches: list[Launch]) -> None:
    """A fake tensor has none: asking one for a number, as a synchronization would, raises."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        launch_all(torch.float32)
        A = torch.ones(2, 30, 20)
        backend.spectral_stats(A, "torch")
        launch_load(torch.float32)
        launch_band(torch.float32)
        backend.gram_product(A.bfloat16(), torch.ones(2, 20, 3))
    assert len(launches) == 22


def test_launches_happen_on_the_device_of_the_tensor(
    launches: list[Launch], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Triton launches on torch's current device, whatever the tensors are on."""
    entered: list[int] = []

    class Guard:
        def __init__(self, tensor: torch.Tensor) -> None:
            self.tensor = tensor

        def __enter__(self) -> None:
            assert not launches[sum(entered) :]
            entered.append(0)

        def __exit__(self, *_: object) -> None:
            entered[-1] = len(launches) - sum(entered)

    monkeypatch.setattr(torch.cuda, "device_of", Guard)
    launch_all(torch.float32)
    backend.gram_product(torch.ones(4, 3), torch.ones(3, 1))
    assert entered == [3, 3, 1, 4]
