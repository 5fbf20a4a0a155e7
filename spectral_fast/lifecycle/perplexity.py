"""Perplexity of a model without some of its blocks, over many sets of them.

Sets that agree on the first blocks agree on the hidden states behind those. In the order of
:func:`_in_order`, that of a walk through the tree of decisions "out" or "in" block by block, out before in,
each set goes on from states that an earlier one has left behind, and at no time are more of them needed than
blocks are taken out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spectral_fast.lifecycle.adapters import Decoder
from spectral_fast.lifecycle.evaluations import Evaluations, Floats, Removed

# Of a batch: logits take most of the memory, and beyond so many tokens a batch makes nothing faster.
LOGIT_BYTES = 128 * 2**20
BATCH_TOKENS = 4096

Progress = Callable[[int, int], None]
"""called with the number of sets that are done and of all"""


@dataclass(frozen=True, eq=False)
class EvaluationText:
    """Windows of held-out text: (W, T + 1) int64, T tokens to read and behind each the one to predict."""

    windows: Tensor

    @classmethod
    def of(cls, tokens: Tensor, *, context: int, count: int) -> EvaluationText:
        """At most ``count`` windows, evenly spread over the tokens (N,) and apart from each other.

        Raises:
            ValueError: the text is too short for two windows (from one no error can be told).
        """
        fits = len(tokens) // (context + 1)
        if fits < 2:
            raise ValueError(
                f"the text has {len(tokens)} tokens; two windows of a context of {context} take "
                f"{2 * (context + 1)}: give a longer text or a shorter context"
            )
        chosen = np.linspace(0, fits - 1, min(count, fits)).round().astype(np.int64)
        starts = torch.from_numpy(chosen * (len(tokens) // fits))
        return cls(tokens.to(torch.int64)[starts[:, None] + torch.arange(context + 1)])

    @property
    def tokens(self) -> int:
        """How many are predicted."""
        return len(self.windows) * (self.windows.shape[1] - 1)

    def fingerprint(self) -> str:
        """A hash of the tokens and how they are cut."""
        found = hashlib.sha256(str(tuple(self.windows.shape)).encode())
        found.update(self.windows.contiguous().numpy().tobytes())
        return found.hexdigest()[:32]


def evaluate(
    decoder: Decoder,
    text: EvaluationText,
    removed_sets: Iterable[Removed],
    evaluations: Evaluations,
    progress: Progress | None = None,
) -> dict[Removed, Floats]:
    """Nats a token in each window, (W,) float64, of the model without each of these sets of blocks.

    What is in ``evaluations`` is taken from there; the rest is evaluated and added, set by set, so that an
    interrupted call can be repeated. exp of the mean over the windows is the perplexity.

    Raises:
        ValueError: a block that the model does not have; tokens beyond the model's context or vocabulary; a
            perplexity that is not finite.
    """
    wanted = list(dict.fromkeys(removed_sets))
    for removed in wanted:
        if any(not 0 <= block < decoder.depth for block in removed):
            raise ValueError(f"blocks {sorted(removed)}: the model has blocks 0 to {decoder.depth - 1}")
    if text.windows.shape[1] - 1 > decoder.context:
        raise ValueError(
            f"windows of {text.windows.shape[1] - 1} tokens: the model's context is {decoder.context}"
        )
    if int(text.windows.max()) >= decoder.vocabulary:
        raise ValueError(
            f"the text has a token {int(text.windows.max())}, the model a vocabulary of "
            f"{decoder.vocabulary}: the tokenizer is another model's"
        )
    key = decoder.fingerprint(), text.fingerprint()
    found = {removed: evaluations.get(*key, removed) for removed in wanted}
    pending = [removed for removed, nats in found.items() if nats is None]
    done = len(wanted) - len(pending)
    for removed, nats in nats_without(decoder, text, pending):
        evaluations.add(*key, removed, nats)
        found[removed] = nats
        done += 1
        if progress is not None:
            progress(done, len(wanted))
    return {removed: nats for removed, nats in found.items() if nats is not None}


def nats_without(
    decoder: Decoder, text: EvaluationText, removed_sets: Iterable[Removed]
) -> Iterator[tuple[Removed, Floats]]:
    """Evaluate distinct sets of removed blocks one after the other, in an order of its own.

    Between two of them the model is whole. The hidden states of all tokens are held for as many sets of
    decisions as blocks are taken out: (W T width) floats each.
    """
    paths = _in_order(removed_sets, decoder.depth)
    common = [_common(a, b) for a, b in pairwise(paths)]
    held: dict[int, list[Any]] = {}
    start = 0
    for place, path in enumerate(paths):
        later = _running_minima(common[place:])
        nats, states = _evaluated(decoder, text, path, start, held.get(start), later)
        held = {level: states.get(level) or held[level] for level in later if level}
        removed = frozenset(block for block, kept in enumerate(path) if not kept)
        if not np.isfinite(nats).all():
            raise ValueError(f"without blocks {sorted(removed)} the model's loss is not finite")
        yield removed, nats
        start = common[place] if place < len(common) else 0


class _Start(nn.Module):
    """In place of the first blocks: what they have put out before, whatever comes in."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output

    def forward(self, *arguments: Any, **options: Any) -> Any:
        return self.output


class _Recorded(nn.Module):
    """A block, and what it put out: a tensor, or what older versions of transformers have."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block
        self.output: Any = None

    def forward(self, *arguments: Any, **options: Any) -> Any:
        self.output = self.block(*arguments, **options)
        return self.output


def _in_order(removed_sets: Iterable[Removed], depth: int) -> list[tuple[bool, ...]]:
    """Each set as decisions by block, True where it stays; a block is out before it is in."""
    return sorted({tuple(block not in removed for block in range(depth)) for removed in removed_sets})


def _common(a: Sequence[bool], b: Sequence[bool]) -> int:
    """How many decisions two paths have in common before they part."""
    return next((level for level, (x, y) in enumerate(zip(a, b, strict=True)) if x != y), len(a))


def _running_minima(common: Sequence[int]) -> set[int]:
    """The levels at which later paths leave the present one."""
    least, levels = None, set()
    for level in common:
        if least is None or level < least:
            least = level
            levels.add(level)
        if least == 0:
            break
    return levels


def _evaluated(
    decoder: Decoder,
    text: EvaluationText,
    path: Sequence[bool],
    start: int,
    states: list[Any] | None,
    wanted: set[int],
) -> tuple[Floats, dict[int, list[Any]]]:
    """Nats of each window, and for wanted levels after the start the states of each batch.

    states: of each batch at the start; a state is None where no block is before it, and the model embeds.
    """
    left: dict[int, list[Any]] = {level: [] for level in wanted if level > start}
    kept = [block for block in range(start, len(path)) if path[block]]
    # The block whose output is the state at a level; the others' outputs are freed as the model goes on.
    behind = {level: max((block for block in kept if block < level), default=None) for level in left}
    nats = []
    for number, windows in enumerate(_batches(decoder, text)):
        state = None if states is None else states[number]
        recorded = {block: _Recorded(decoder.blocks[block]) for block in behind.values() if block is not None}
        modules: list[nn.Module] = [recorded.get(block, decoder.blocks[block]) for block in kept]
        if state is not None:
            modules.insert(0, _Start(state))
        with decoder.running(modules), torch.no_grad():
            nats.append(_window_nats(decoder, windows))
        for level, block in behind.items():
            left[level].append(state if block is None else recorded[block].output)
    return np.concatenate(nats), left


def _batches(decoder: Decoder, text: EvaluationText) -> tuple[Tensor, ...]:
    tokens = min(BATCH_TOKENS, LOGIT_BYTES // (4 * decoder.vocabulary))
    return text.windows.split(max(1, tokens // (text.windows.shape[1] - 1)))


def _window_nats(decoder: Decoder, windows: Tensor) -> Floats:
    windows = windows.to(decoder.device)
    logits = decoder.logits(windows[:, :-1])
    losses = F.cross_entropy(logits.float().flatten(0, 1), windows[:, 1:].flatten(), reduction="none")
    found: Floats = losses.view(len(windows), -1).double().mean(1).cpu().numpy()
    return found
