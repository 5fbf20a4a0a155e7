"""What the GPU pipeline should cost: flops, bytes, launches and seconds of every kernel.

The form was written before any kernel had run; where an H100 did otherwise, the constants are what it showed
(docs/gpu.md has the first guesses). For other chips all of it is a prediction.

A batch of B matrices m x n (m >= n, b = 32) goes through the stages of csrc/cuda/kernels.h, in chunks that
fit a workspace:

    load        two reads, one write                             streams
    reduce      m > 5/3 n: blocked QR, a panel and two products each b columns
    band        each b columns: panel, W, panel, Y, rank 2b update of what is left
    bidiagonal  the band into its own storage, then the chase: a block a matrix, a warp a sweep
    values      Sturm counts, a lane a value
    stats       the power-law scan is n^2

A launch takes the longest of what its pipes need (arithmetic, memory or L2, shared memory), where steps
depend on each other their latencies besides, and never less than a floor. Kernels with one block a matrix
run in waves of as many blocks as there are SMs. The device and the host that queues the launches work at
the same time: a call takes the longer.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch

from benchmarks.gpu.chips import Chip
from spectral_fast.cuda import workspace
from spectral_fast.cuda.sources import Types
from spectral_fast.heuristics import CUDA_BLOCK as BLOCK
from spectral_fast.heuristics import cuda_direct, cuda_reduce

# Of spectral_fast/triton/band.py: columns of W, rows of Y and the update's square that a program computes.
LEFT_TILE, RIGHT_TILE, UPDATE_TILE = 32, 64, 64


@dataclass(frozen=True)
class Assumptions:
    """What the prediction rests on besides the chip; "measured": profiled on an H100."""

    clock_share: float = 0.9  # of the boost clock, under load
    memory_share: float = 0.85  # of a data sheet's bandwidth: what copies reach
    gemm_share: float = 0.5  # of the peak, by Triton's products without tensor cores for float32: measured
    right_share: float = 0.24  # by the right product, which shared memory binds: measured
    launch_seconds: float = 3e-6  # shortest kernel, start to start, in a stream
    host_seconds: float = 10e-6  # Triton and CuPy queue a launch from Python in that time
    workspace: float = 4 * 2**30  # bytes: WORKSPACE_SHARE of 80 GB
    issue: float = 4  # instructions of a warp that an SM starts in a clock
    shared_rate: float = 128  # bytes a clock an SM (CUDA C++ Best Practices: 32 banks of 4)
    l2_port: float = 64  # bytes a clock an SM each way, between L1 and L2

    # panel.cu: a column is one pass and one barrier. The first rows are in registers, the others in shared
    # memory or, where that is too small, in global memory. Each group of warps makes the pivot for itself.
    panel_resident: int = 4096  # bytes of a column in registers; half of them where scratch is used
    panel_groups: int = 8
    panel_instructions: float = 74  # issue slots of a warp, for 32 rows of a group's four columns: measured
    panel_latency: float = 1860  # clocks of reduction, barrier and square root: measured
    panel_scratch_rate: float = 22  # bytes a clock through L2, where the rows are in scratch: measured

    # bidiagonal.cu: of a warp in a step (two windows of b x b); instructions counted in its sm_90 code.
    # Global loads and stores take two clocks for each line of 128 bytes that half a warp touches: measured.
    chase_instructions: float = 1060
    chase_fma: float = 370
    chase_shuffles: float = 96
    chase_accesses: float = 132
    line_clocks: float = 2
    chase_latency: float = 500  # clocks a tick: measured
    chase_warps_double: int = 12  # registers: 168 a thread
    chase_warps_float: int = 16

    # values.cu: a step of the recurrence is a division and a handful of products.
    evaluations: float = 12.5  # rounds of a warp, each n steps; the grid is one more: measured
    step_instructions: float = 20
    step_latency_double: float = 130  # clocks: measured
    step_latency_float: float = 60

    # direct.cu: a thread a column or a row, two passes of dependent multiply-adds over it.
    direct_latency: float = 400  # clocks a reflector
    direct_chain: float = 16  # clocks an entry of the pivot
    direct_accesses: float = 3  # an entry's, of shared memory; two more read one address in all lanes


@dataclass(frozen=True)
class Work:
    """All launches of one kernel in one stage. bound: what the most of its seconds are spent waiting for."""

    stage: str
    kernel: str
    launches: int
    flops: float
    bytes: float
    seconds: float
    bound: str


@dataclass(frozen=True)
class Prediction:
    """One call on a stack of ``count`` matrices m x n, ``chunk`` of them at a time."""

    count: int
    m: int
    n: int
    dtype: torch.dtype
    chip: Chip
    chunk: int
    host_seconds: float
    works: tuple[Work, ...]

    @property
    def device_seconds(self) -> float:
        return sum(work.seconds for work in self.works)

    @property
    def seconds(self) -> float:
        return max(self.device_seconds, self.host_seconds)

    @property
    def launches(self) -> int:
        return sum(work.launches for work in self.works)

    @property
    def flops(self) -> float:
        return sum(work.flops for work in self.works)

    @property
    def bytes(self) -> float:
        return sum(work.bytes for work in self.works)

    def stage_seconds(self) -> dict[str, float]:
        found: dict[str, float] = defaultdict(float)
        for work in self.works:
            found[work.stage] += work.seconds
        return dict(found)


@dataclass
class _Tally:
    """Work of one kernel while it is added up: seconds by what bounds them."""

    launches: int = 0
    flops: float = 0.0
    bytes: float = 0.0
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))


def predict(
    count: int,
    m: int,
    n: int,
    dtype: torch.dtype,
    chip: Chip,
    assume: Assumptions = Assumptions(),
    *,
    stats: bool = True,
) -> Prediction:
    """The cost of svdvals of a stack of matrices, and of their statistics."""
    m, n = max(m, n), min(m, n)
    types = Types(dtype if dtype == torch.float64 else torch.float32, chip.wide(dtype))
    chunk = workspace.chunk(count, m, n, types, limits(chip, assume))
    whole, rest = divmod(count, chunk)
    tallies: dict[tuple[str, str], _Tally] = {}
    for size, times in ((chunk, whole), (rest, 1)):
        if size:
            model = _Model(size, m, n, dtype, chip, assume)
            model.svdvals()
            _add(tallies, model.tallies, times)
    if stats:
        model = _Model(count, m, n, dtype, chip, assume)
        model.stats()
        _add(tallies, model.tallies, 1)
    works = tuple(
        Work(
            *(stage, kernel, tally.launches, tally.flops, tally.bytes),
            sum(tally.seconds.values()),
            max(tally.seconds, key=lambda bound: tally.seconds[bound]),
        )
        for (stage, kernel), tally in tallies.items()
    )
    host = assume.host_seconds * sum(work.launches for work in works)
    return Prediction(count, m, n, dtype, chip, chunk, host, works)


def limits(chip: Chip, assume: Assumptions) -> workspace.Chip:
    """What the pipeline knows of a chip."""
    return workspace.Chip(chip.shared_bytes, not chip.slow_double, int(assume.workspace), chip.sms)


def dtype_bytes(dtype: torch.dtype) -> int:
    """Of an entry once it is loaded: half precisions are computed in float32."""
    return max(4, dtype.itemsize)


def chase_steps(n: int) -> list[int]:
    """Windows that each sweep of the chase goes through: one row of the band, then every b columns."""
    return [-(-(n - 1 - i) // BLOCK) for i in range(n - 1)]


def chase_ticks(n: int, warps: int) -> int:
    """Barriers of the chase. Sweeps lag two ticks; a warp takes its next sweep when it is done with one."""
    longest = chase_steps(n)[::warps]
    return sum(max(2 * warps, steps) for steps in longest) + 2 * (warps - 1)


def _add(total: dict[tuple[str, str], _Tally], part: dict[tuple[str, str], _Tally], times: int) -> None:
    for key, tally in part.items():
        into = total.setdefault(key, _Tally())
        into.launches += times * tally.launches
        into.flops += times * tally.flops
        into.bytes += times * tally.bytes
        for bound, seconds in tally.seconds.items():
            into.seconds[bound] += times * seconds


class _Model:
    """The launches of one chunk."""

    def __init__(
        self, count: int, m: int, n: int, dtype: torch.dtype, chip: Chip, assume: Assumptions
    ) -> None:
        self.count, self.m, self.n, self.chip, self.assume = count, m, n, chip, assume
        self.input_bytes = dtype.itemsize
        self.scalar = dtype_bytes(dtype)
        self.wide = chip.wide(dtype).itemsize
        self.clock = assume.clock_share * chip.boost_hz
        self.rows, self.cols = workspace.padded(m), workspace.padded(n)
        self.tallies: dict[tuple[str, str], _Tally] = {}

    def launch(self, stage: str, kernel: str, flops: float, bytes_: float, seconds: dict[str, float]) -> None:
        tally = self.tallies.setdefault((stage, kernel), _Tally())
        tally.launches += 1
        tally.flops += flops
        tally.bytes += bytes_
        seconds = {**seconds, "launch": self.assume.launch_seconds}
        bound = max(seconds, key=lambda name: seconds[name])
        tally.seconds[bound] += seconds[bound]

    # What the hardware does

    def memory_rate(self) -> float:
        return self.assume.memory_share * self.chip.memory_rate

    def traffic(self, bytes_: float, working_set: float) -> dict[str, float]:
        """Seconds of moving bytes of which the part of the working set that fits comes from L2."""
        fits = min(1.0, self.chip.l2_bytes / working_set)
        seconds = bytes_ * (fits / self.chip.l2_rate + (1 - fits) / self.memory_rate())
        return {"L2" if fits > 0.5 else "memory": seconds}

    def waves(self, blocks_per_sm: int = 1) -> int:
        return math.ceil(self.count / (self.chip.sms * blocks_per_sm))

    def lanes(self, bytes_: int) -> int:
        return self.chip.fp64_lanes if bytes_ == 8 else self.chip.fp32_lanes

    # Stages

    def svdvals(self) -> None:
        self.load()
        m, rows = self.m, self.rows
        if cuda_reduce(m, self.n):
            self.reduce()
            m, rows = self.n, self.cols
        if cuda_direct(m, self.n):
            self.direct(m)
        else:
            self.band(rows)
            self.bidiagonal()
        self.values()

    def load(self) -> None:
        entries = self.count * self.m * self.n
        padded = self.count * self.rows * self.cols
        read, written = entries * self.input_bytes, padded * self.scalar
        memory = self.memory_rate()
        self.launch("load", "peak_kernel", 0, read, {"memory": read / memory})
        # The second read is the first's, from L2 where it fits.
        again = sum(self.traffic(read, read + written).values())
        self.launch("load", "load_kernel", entries, read + written, {"memory": again + written / memory})

    def reduce(self) -> None:
        for top in range(0, self.cols, BLOCK):
            rows, cols = self.rows - top, self.cols - top - BLOCK
            self.panel("reduce", rows)
            if cols:
                self.left_product("reduce", rows, cols)
                self.update("reduce", rows - BLOCK, cols, BLOCK)
        triangle = 2 * self.count * self.cols**2 * self.scalar
        self.launch("reduce", "triu", 0, triangle, {"memory": triangle / self.memory_rate()})

    def band(self, rows: int) -> None:
        for top in range(0, self.cols, BLOCK):
            r, c = rows - top, self.cols - top - BLOCK
            self.panel("band", r)
            if c == 0:
                break
            self.left_product("band", r, c)
            self.panel("band", c)
            self.right_product("band", r - BLOCK, c)
            self.update("band", r - BLOCK, c, 2 * BLOCK)

    def panel(self, stage: str, rows: int) -> None:
        """b columns. A pass updates the pivot and the columns, and forms their products with it."""
        a, s, clock = self.assume, self.scalar, self.clock
        scalar = torch.float64 if s == 8 else torch.float32
        in_shared = workspace.panel_shared_bytes(rows, scalar) <= self.chip.shared_bytes
        tail = max(0, rows - a.panel_resident // s // (1 if in_shared else 2))
        multiply_adds = rows * (2 * BLOCK + 2 * a.panel_groups)
        pivot = (
            rows * s * (2 * a.panel_groups + 2)
        )  # read by each group, before and after its update; written
        own = tail * s * 2 * BLOCK
        pipes = {
            "arithmetic": multiply_adds / self.lanes(s),
            "issue": a.panel_instructions * a.panel_groups * rows / 32 / a.issue,
            "shared memory": (pivot + (own if in_shared else 0)) / a.shared_rate,
        }
        moved = 3 * rows * BLOCK * s  # in, and R and V out
        if not in_shared:
            running = min(self.count, self.chip.sms)
            together = sum(self.traffic(running * own, running * tail * BLOCK * s).values())
            pipes["L2"] = max(own / a.panel_scratch_rate, together * clock)
            moved += BLOCK * own
        bound = max(pipes, key=lambda name: pipes[name])
        column = pipes[bound] + a.panel_latency
        if a.panel_latency > pipes[bound]:
            bound = "latency"
        once = 3 * rows * BLOCK * s / a.l2_port
        together = sum(self.traffic(self.count * moved, self.count * rows * BLOCK * s).values())
        seconds = max(self.waves() * (BLOCK * column + once) / clock, together)
        kernel = "panel" if in_shared else "panel_scratch"
        self.launch(stage, kernel, self.count * 4 * rows * BLOCK**2, self.count * moved, {bound: seconds})

    def left_product(self, stage: str, rows: int, cols: int) -> None:
        flops = 2 * BLOCK * rows * cols + 4 * BLOCK**2 * cols
        bytes_ = (rows * cols + 2 * BLOCK * cols) * self.scalar
        share = self.assume.gemm_share
        self.product(stage, "left_product_kernel", share, flops, bytes_, rows, cols, cols / LEFT_TILE)

    def right_product(self, stage: str, rows: int, cols: int) -> None:
        flops = 2 * BLOCK * rows * cols * (1 + BLOCK / RIGHT_TILE)
        share, bytes_ = self.assume.right_share, rows * cols * self.scalar
        self.product(stage, "right_product_kernel", share, flops, bytes_, rows, cols, rows / RIGHT_TILE)

    def update(self, stage: str, rows: int, cols: int, rank: int) -> None:
        if rows == 0:
            return
        programs = math.ceil(rows / UPDATE_TILE) * math.ceil(cols / UPDATE_TILE)
        flops, bytes_ = 2 * rank * rows * cols, 2 * rows * cols * self.scalar
        self.product(stage, "update_kernel", self.assume.gemm_share, flops, bytes_, rows, cols, programs)

    def product(
        self,
        stage: str,
        kernel: str,
        share: float,
        flops: float,
        bytes_: float,
        rows: int,
        cols: int,
        programs: float,
    ) -> None:
        """A product in Triton at a share of the peak: costs are of one matrix; an SM has whole programs."""
        lanes = self.chip.fp64_dot_lanes if self.scalar == 8 else self.chip.fp32_lanes
        per_sm = 2 * lanes * self.clock * share
        all_programs = self.count * math.ceil(programs)
        on_one_sm = math.ceil(all_programs / self.chip.sms) / all_programs
        arithmetic = self.count * flops * on_one_sm / per_sm
        moving = self.traffic(self.count * bytes_, self.count * rows * cols * self.scalar)
        self.launch(
            stage, kernel, self.count * flops, self.count * bytes_, {"arithmetic": arithmetic, **moving}
        )

    def bidiagonal(self) -> None:
        a, w, n = self.assume, self.wide, self.n
        band = 3 * BLOCK * (n + BLOCK) * w
        moved = self.count * (n * (BLOCK + 1) * self.scalar + band)
        self.launch("bidiagonal", "pack_band", 0, moved, {"memory": moved / self.memory_rate()})

        steps = sum(chase_steps(n))
        most = a.chase_warps_double if w == 8 else a.chase_warps_float
        ticks = chase_ticks(n, min(most, max(1, math.ceil(n / (2 * BLOCK)))))
        windows = 4 * BLOCK**2 * w  # D and E, in and out
        pipes = {
            "issue": a.chase_instructions / a.issue,
            "arithmetic": a.chase_fma * 32 / self.lanes(w),
            "shuffles": a.chase_shuffles * w / 8,
            "L1": a.chase_accesses * 2 * (1 + 15 * w / 128) * a.line_clocks,
        }
        bound = max(pipes, key=lambda name: pipes[name])
        pipe, latency = steps * pipes[bound], ticks * a.chase_latency
        running = min(self.count, self.chip.sms)
        shared_l2 = sum(self.traffic(running * steps * windows, running * band).values())
        if shared_l2 * self.clock > pipe:
            pipe, bound = shared_l2 * self.clock, "L2"
        seconds = self.waves() * (pipe + latency) / self.clock
        flops = self.count * steps * 8 * BLOCK**2 * 2
        self.launch(
            *("bidiagonal", "chase", flops, self.count * steps * windows),
            {"latency" if latency > pipe else bound: seconds},
        )

    def values(self) -> None:
        a, n, w = self.assume, self.n, self.wide
        self.launch("values", "squares", 3 * self.count * n, self.count * 5 * n * w, {})
        warps = math.ceil(self.count * math.ceil(n / 32) / self.chip.sms)  # of the fullest SM
        latency = a.step_latency_double if w == 8 else a.step_latency_float
        arithmetic = a.step_instructions * warps * 32 / self.lanes(w)
        bound = "arithmetic" if arithmetic > latency else "latency"
        for kernel, evaluations in (("count_grid", 1.0), ("bisect", a.evaluations)):
            steps = evaluations * n
            flops = self.count * n * steps * a.step_instructions
            seconds = steps * max(arithmetic, latency) / self.clock
            self.launch("values", kernel, flops, self.count * 3 * n * w, {bound: seconds})
        self.launch("values", "finish", self.count * n, self.count * n * (w + self.scalar), {})

    def direct(self, m: int) -> None:
        """2 n reflectors of a block; thread t owns column t (left), then row t (right)."""
        a, n, w = self.assume, self.n, self.wide
        m = workspace.padded(m)
        blocks_per_sm = max(1, min(2048 // m, self.chip.shared_bytes // (m * (n + 1) * w)))
        chain = a.direct_latency * 2 * n + a.direct_chain * sum((m - k) + (n - k) for k in range(n))
        entries = sum(2 * (m - k) * (n - k) for k in range(n))  # of all reflectors
        each = {
            "arithmetic": 2 * entries / self.lanes(w),
            "shared memory": entries * (a.direct_accesses * w / 4 + 2) / 32,  # wavefronts
        }
        bound = max(each, key=lambda name: each[name])
        pipes = math.ceil(self.count / self.chip.sms) * each[bound]
        waiting = self.waves(blocks_per_sm) * chain
        seconds = max(waiting, pipes) / self.clock
        moved = self.count * m * n * self.scalar
        self.launch(
            *("bidiagonal", "direct", 4 * self.count * entries, moved),
            {"latency" if waiting > pipes else bound: seconds},
        )

    def stats(self) -> None:
        """docs/gpu.md: float64 operations, a multiply-add as two; passes after the first are from a cache."""
        n, s = self.n, self.scalar
        on_one_sm = 2 * self.chip.fp64_lanes * self.clock * self.assume.gemm_share
        for kernel, each in (("spectrum_kernel", 600 * n), ("fitted_kernel", 100 * n)):
            seconds = self.waves() * each / on_one_sm  # a program a matrix
            self.launch(
                "stats", kernel, self.count * each, self.count * n * (s + 16), {"arithmetic": seconds}
            )
        flops = 18 * self.count * n**2
        programs = self.count * math.ceil(n / 32)
        share = math.ceil(programs / self.chip.sms) / programs
        arithmetic = flops * share / on_one_sm
        moved = self.count * n**2 / 8
        times = {"arithmetic": arithmetic, **self.traffic(moved, self.count * 24 * n)}
        self.launch("stats", "distance_kernel", flops, 24 * self.count * n + moved, times)


def total_seconds(predictions: Iterable[Prediction]) -> float:
    """Calls one after another, nothing waiting for the device in between: the host runs ahead."""
    calls = list(predictions)
    return max(sum(call.device_seconds for call in calls), sum(call.host_seconds for call in calls))
