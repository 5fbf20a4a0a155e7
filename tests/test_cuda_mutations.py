"""Every barrier of csrc/cuda is needed: with any one of them removed, its stage is seen to go wrong."""

from __future__ import annotations

import functools
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from spectral_fast.cuda import sources
from spectral_fast.cuda.sources import Types, folder, source
from tests.cuda_emulator import ORDERS, Emulator
from tests.test_cuda_stages import STAGES

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

_BARRIER = re.compile(r"__sync(?:threads|warp)\s*\((?:[^()]|\([^()]*\))*\)")
_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)


class Barrier(NamedTuple):
    file: str
    number: int  # in the file


class Place(NamedTuple):
    """A barrier in a stage's source, headers in place."""

    stage: str
    begin: int
    end: int


def places() -> dict[Barrier, list[Place]]:
    """Every barrier, and where it is: a header's in several stages."""
    found: dict[Barrier, list[Place]] = {}
    for stage in STAGES:
        text = source(stage)
        code = _COMMENT.sub(lambda match: " " * len(match[0]), text)
        headers = {}
        for path in folder().glob("*.h"):
            header = path.read_text().replace("#pragma once\n", "")
            begin = text.find(header)
            if begin >= 0:
                headers[path.name] = range(begin, begin + len(header))
        count: dict[str, int] = {}
        for match in _BARRIER.finditer(code):
            file = next((name for name, span in headers.items() if match.start() in span), f"{stage}.cu")
            count[file] = count.get(file, 0) + 1
            found.setdefault(Barrier(file, count[file]), []).append(Place(stage, *match.span()))
    return found


PLACES = places()


@functools.cache
def expected(stage: str, types: Types) -> dict[str, Tensor]:
    """What the stage gives as it is, and without a race."""
    return STAGES[stage].run(Emulator(races=True), types)


def is_noticed(place: Place, types: Types) -> bool:
    """Whether a run of the stage without the barrier races, misbehaves, or gives other bits in some order."""

    def without(text: str) -> str:
        return text[: place.begin] + "static_cast<void>(0)" + text[place.end :]

    run = STAGES[place.stage].run
    as_is = expected(place.stage, types)
    try:
        run(Emulator(races=True, edit=without), types)
        results = [run(Emulator(order, edit=without), types) for order in ORDERS]
    except RuntimeError:
        return True
    return any(
        not torch.equal(result[name].view(torch.uint8), values.view(torch.uint8))
        for result in results
        for name, values in as_is.items()
    )


@pytest.mark.parametrize("barrier", PLACES, ids=lambda barrier: f"{barrier.file}-{barrier.number}")
def test_a_removed_barrier_is_noticed(barrier: Barrier) -> None:
    for place in PLACES[barrier]:
        for types in STAGES[place.stage].TYPES:
            if is_noticed(place, types):
                return
    line = source(place.stage).count("\n", 0, place.begin) + 1
    pytest.fail(
        f"nothing changes without barrier {barrier.number} of {barrier.file} ({place.stage}, line {line})"
    )


def test_an_unneeded_barrier_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check itself: a source and its header, with barriers that are needed and one that is not."""
    (tmp_path / "shift.h").write_text(
        "#pragma once\n"
        "// not this one: __syncwarp()\n"
        "__device__ inline int next(int* s) { __syncwarp(); return s[(threadIdx.x + 1) % 32]; }\n"
    )
    (tmp_path / "kernels.h").write_text("")
    (tmp_path / "unneeded.cu").write_text(
        '#include "shift.h"\n'
        'extern "C" __global__ void test(int* out) {\n'
        "  int* s = static_cast<int*>(shared_memory());\n"
        "  s[threadIdx.x] = threadIdx.x;\n"
        "  out[threadIdx.x] = next(s);\n"
        "  __syncwarp(0xffffffffu);  // a reader of s may be late\n"
        "  s[threadIdx.x] = 0;\n"
        "  __syncthreads();\n"
        "}\n"
    )

    def run(emulate: Emulator, types: Types) -> dict[str, Tensor]:
        out = torch.full((32,), -1, dtype=torch.int32)
        emulate("unneeded", "test", types, (1, 1), 32, [out], 128)
        return {"out": out}

    types = Types(torch.float32, torch.float32)
    monkeypatch.setattr(sources, "_FOLDERS", (tmp_path,))
    monkeypatch.setattr(
        sys.modules[__name__], "STAGES", {"unneeded": SimpleNamespace(TYPES=(types,), run=run)}
    )
    found = {barrier: is_noticed(place, types) for barrier, (place,) in places().items()}
    assert found == {
        Barrier("shift.h", 1): True,
        Barrier("unneeded.cu", 1): True,
        Barrier("unneeded.cu", 2): False,
    }
