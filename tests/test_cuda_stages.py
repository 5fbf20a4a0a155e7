"""Every CUDA stage gives the same bits in every order of threads and blocks, and has no races."""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

import pytest
import torch

import tests.cuda_stages
from spectral_fast.cuda.sources import Types, folder
from tests.cuda_emulator import Emulator

STAGES = {
    info.name: importlib.import_module(f"tests.cuda_stages.{info.name}")
    for info in pkgutil.iter_modules(tests.cuda_stages.__path__)
}
CASES = [
    pytest.param(module, types, id=f"{name}-{'-'.join(str(t).removeprefix('torch.') for t in types)}")
    for name, module in STAGES.items()
    for types in module.TYPES
]


def test_every_source_is_here() -> None:
    assert {path.stem for path in folder().glob("*.cu")} == set(STAGES)


@pytest.mark.parametrize(("stage", "types"), CASES)
def test_any_order_gives_the_same_bits(stage: ModuleType, types: Types) -> None:
    expected = stage.run(Emulator("forward"), types)
    assert expected
    for emulate in (Emulator("reverse"), Emulator("random", seed=1), Emulator("random", seed=2)):
        actual = stage.run(emulate, types)
        assert actual.keys() == expected.keys()
        for name, values in actual.items():
            assert torch.equal(values.view(torch.uint8), expected[name].view(torch.uint8)), name


@pytest.mark.parametrize(("stage", "types"), CASES)
def test_no_races(stage: ModuleType, types: Types) -> None:
    assert stage.run(Emulator(races=True), types)
