"""Blocks taken out: against transformers' own model without them, and the importance that follows."""

from __future__ import annotations

import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

from spectral_fast.lifecycle import correlation
from spectral_fast.lifecycle.adapters import Decoder, load_decoder
from spectral_fast.lifecycle.config import ModelConfig
from spectral_fast.lifecycle.correlation import RankCorrelation, rank_correlation
from spectral_fast.lifecycle.evaluations import Evaluations, Removed
from spectral_fast.lifecycle.gpt import GPT
from spectral_fast.lifecycle.importance import HEAVIER_TAIL, WHOLE, layer_alphas, measure_importance
from spectral_fast.lifecycle.perplexity import EvaluationText, evaluate, nats_without
from spectral_fast.models import CheckpointError
from tests.small_decoders import CONTEXT, LAYERS, VOCABULARY, WIDTH, every_set, ours, text, transformers_model


@pytest.fixture(scope="module", params=["gpt2", "gpt_neox"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder of a small model with random weights."""
    path = tmp_path_factory.mktemp(request.param)
    transformers_model(request.param).save_pretrained(path)
    return path


def without_blocks(folder: Path, removed: Removed, smaller: Path) -> nn.Module:
    """What transformers loads from a folder of a model that never had these blocks: the others renumbered."""
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM

    config = json.loads((folder / "config.json").read_text())
    depth, blocks = {
        "gpt2": ("n_layer", "transformer.h."),
        "gpt_neox": ("num_hidden_layers", "gpt_neox.layers."),
    }[config["model_type"]]
    kept = [block for block in range(LAYERS) if block not in removed]
    state = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        block, _, rest = name.removeprefix(blocks).partition(".")
        if not name.startswith(blocks):
            state[name] = tensor
        elif int(block) in kept:
            state[f"{blocks}{kept.index(int(block))}.{rest}"] = tensor
    smaller.mkdir()
    (smaller / "config.json").write_text(json.dumps({**config, depth: len(kept)}))
    save_file(state, smaller / "model.safetensors", {"format": "pt"})
    model, report = AutoModelForCausalLM.from_pretrained(smaller, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    return model.eval()


def test_transformers_own_model_without_the_blocks_has_the_same_logits(folder: Path, tmp_path: Path) -> None:
    decoder = load_decoder(folder)
    tokens = text().windows[:, :-1]
    for number, removed in enumerate(every_set(LAYERS)):
        kept = [block for place, block in enumerate(decoder.blocks) if place not in removed]
        with decoder.running(kept), torch.no_grad():
            logits = decoder.logits(tokens)
        with torch.no_grad():
            expected = without_blocks(folder, removed, tmp_path / str(number))(tokens).logits
        # The same operations on the same numbers; 32 terms of logits of size 10 round by no more than this.
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)
        if removed:
            assert (logits - decoder_logits(decoder, tokens)).abs().max() > 0.1  # the blocks matter


def decoder_logits(decoder: Decoder, tokens: torch.Tensor) -> torch.Tensor:
    with decoder.running(decoder.blocks), torch.no_grad():
        return decoder.logits(tokens)


@pytest.mark.parametrize("use_cache", [True, False])
def test_no_cache_is_used_whatever_the_config_says(folder: Path, use_cache: bool) -> None:
    decoder = load_decoder(folder)
    seen = []
    decoder.model.config.use_cache = use_cache
    decoder.model.register_forward_hook(lambda *args: seen.append(args[-1].past_key_values))
    list(nats_without(decoder, text(), [frozenset({0})]))
    assert seen
    assert all(cache is None for cache in seen)


def test_gpt2_that_scales_attention_by_layer_keeps_each_blocks_own_scale() -> None:
    """Renumbering the blocks, as a smaller config would, makes another model of those that are left."""
    scaled = transformers_model("gpt2", scale_attn_by_inverse_layer_idx=True)
    decoder = Decoder.of(scaled)
    scales = [block.attn.scaling for block in decoder.blocks]
    assert len(set(scales)) == LAYERS
    with decoder.running(decoder.blocks[1:]):
        assert [block.attn.scaling for block in decoder.blocks] == scales[1:]


@pytest.mark.parametrize("kind", ["ours", "gpt2", "gpt_neox"])
def test_shared_states_change_no_bit(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All 16 sets together, going on from each other's states, against each by itself; in several batches."""
    monkeypatch.setattr("spectral_fast.lifecycle.perplexity.BATCH_TOKENS", 2 * CONTEXT)
    decoder = Decoder.of(ours() if kind == "ours" else transformers_model(kind))
    read = text(windows=5)
    together = dict(nats_without(decoder, read, every_set(LAYERS)))
    assert set(together) == set(every_set(LAYERS))
    for removed, nats in together.items():
        ((_, alone),) = nats_without(decoder, read, [removed])
        assert np.array_equal(nats, alone)
    assert len({nats.tobytes() for nats in together.values()}) == 16


def test_states_are_not_computed_twice() -> None:
    """Each block runs once for each distinct row of blocks before it: the nodes of the tree of decisions."""
    decoder = Decoder.of(ours())
    runs = []
    for place, block in enumerate(decoder.blocks):
        block.register_forward_hook(lambda *args, place=place: runs.append(place))
    sets = every_set(LAYERS)
    list(nats_without(decoder, text(), sets))
    kept = [tuple(b for b in range(LAYERS) if b not in removed) for removed in sets]
    distinct = {row[: end + 1] for row in kept for end in range(len(row))}
    assert len(runs) == len(distinct) == 15
    assert sum(map(len, kept)) == 32  # what a walk through every set by itself would take


def test_nats_are_the_cross_entropy_of_the_whole_model() -> None:
    decoder, read = Decoder.of(ours()), text()
    ((_, nats),) = nats_without(decoder, read, [WHOLE])
    with torch.no_grad():
        logits = decoder.model(read.windows[:, :-1]).double()
    picked = logits.log_softmax(-1).gather(-1, read.windows[:, 1:, None]).squeeze(-1)
    # float32 logits of size 10 into float64 here, float32 there: eps 10 = 1e-6 each.
    np.testing.assert_allclose(nats, -picked.mean(1).numpy(), rtol=0, atol=1e-5)


class Stop(Exception):
    pass


@pytest.mark.parametrize("kind", ["ours", "gpt2", "gpt_neox"])
def test_the_model_is_itself_again_also_after_an_exception(kind: str) -> None:
    model = ours() if kind == "ours" else transformers_model(kind)
    decoder = Decoder.of(model)
    model.train()
    decoder.blocks[2].eval()  # as somebody may have frozen it
    blocks = getattr(decoder.holder, decoder.attribute)
    before = dict(model.named_modules())
    modes = {name: module.training for name, module in model.named_modules()}
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def fail(*args: object) -> None:
        raise Stop

    handle = decoder.blocks[3].register_forward_hook(fail)
    with pytest.raises(Stop):
        list(nats_without(decoder, text(), [frozenset({0}), WHOLE]))
    handle.remove()
    assert getattr(decoder.holder, decoder.attribute) is blocks
    assert dict(model.named_modules()) == before
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    evaluations = nats_without(decoder, text(), [frozenset({0}), WHOLE])
    next(evaluations)
    assert getattr(decoder.holder, decoder.attribute) is blocks  # between two sets, too
    assert {name: module.training for name, module in model.named_modules()} == modes


def test_a_model_of_another_kind_is_refused(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    llama = LlamaForCausalLM(LlamaConfig(vocab_size=8, **sizes))
    with pytest.raises(ValueError, match=r"gpt2, gpt_neox, not of a LlamaForCausalLM of type llama"):
        Decoder.of(llama)
    llama.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"a model of type 'llama'"):
        load_decoder(tmp_path)
    with pytest.raises(ValueError, match=r"Linear lacks an nn.ModuleList 'layers'"):
        Decoder.of(nn.Linear(2, 2))
    with pytest.raises(CheckpointError, match=r"no folder with a run.json or a config.json"):
        load_decoder(tmp_path / "missing")


def test_weights_that_are_missing_are_not_made_up(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    state = load_file(folder / "model.safetensors")
    gone = next(name for name in state if "mlp" in name)
    save_file({k: v for k, v in state.items() if k != gone}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=f"lacks weights, such as {gone}"):
        load_decoder(tmp_path)


def test_half_precision_weights_are_evaluated_in_float32(folder: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(folder).to(torch.bfloat16).save_pretrained(tmp_path)
    assert {p.dtype for p in load_decoder(tmp_path).model.parameters()} == {torch.float32}


# Text


def test_windows_are_spread_over_the_text_and_do_not_overlap() -> None:
    read = EvaluationText.of(torch.arange(1003), context=9, count=4)
    assert read.windows.shape == (4, 10)
    assert read.windows[:, 0].tolist() == [0, 330, 660, 990]
    assert torch.equal(read.windows - read.windows[:, :1], torch.arange(10).expand(4, 10))
    everything = EvaluationText.of(torch.arange(1003), context=9, count=1000)
    assert everything.tokens == 100 * 9
    assert (everything.windows[1:, 0] - everything.windows[:-1, -1]).min() >= 1
    with pytest.raises(ValueError, match="the text has 19 tokens; two windows of a context of 9 take 20"):
        EvaluationText.of(torch.arange(19), context=9, count=4)


def test_a_text_that_does_not_fit_the_model_is_refused(tmp_path: Path) -> None:
    decoder = Decoder.of(ours())
    with Evaluations(tmp_path / "e") as evaluations:
        with pytest.raises(ValueError, match=f"windows of 30 tokens: the model's context is {CONTEXT}"):
            evaluate(decoder, text(context=30), [WHOLE], evaluations)
        foreign = EvaluationText(text().windows + 1000)
        with pytest.raises(ValueError, match="the tokenizer is another model's"):
            evaluate(decoder, foreign, [WHOLE], evaluations)
        with pytest.raises(ValueError, match=r"blocks \[9\]: the model has blocks 0 to 3"):
            evaluate(decoder, text(), [frozenset({9})], evaluations)


def test_a_loss_that_is_not_finite_is_refused_and_not_kept(tmp_path: Path) -> None:
    model = ours()
    with torch.no_grad():
        model.layers[1].up_proj.weight[0, 0] = math.nan
    with Evaluations(tmp_path / "e") as evaluations:
        with pytest.raises(ValueError, match=r"without blocks \[0\] the model's loss is not finite"):
            evaluate(Decoder.of(model), text(), [frozenset({0})], evaluations)
        assert np.isfinite(
            evaluate(Decoder.of(model), text(), [frozenset({1})], evaluations)[frozenset({1})]
        ).all()
    assert len((tmp_path / "e").read_text().splitlines()) == 1


# The file of evaluations


def test_every_set_is_evaluated_once(tmp_path: Path) -> None:
    decoder, read, sets = Decoder.of(ours()), text(), every_set(LAYERS)
    runs = []
    decoder.model.register_forward_hook(lambda *args: runs.append(1))
    reports: list[tuple[int, int]] = []
    with Evaluations(tmp_path / "e") as evaluations:
        first = evaluate(decoder, read, sets[:7] * 2, evaluations)
        assert len(runs) == 7
        both = evaluate(decoder, read, sets, evaluations, lambda *at: reports.append(at))
        assert len(runs) == 16
    assert reports == [(done, 16) for done in range(8, 17)]
    with Evaluations(tmp_path / "e") as evaluations:
        again = evaluate(decoder, read, sets, evaluations)
    assert len(runs) == 16
    for removed in sets:
        assert np.array_equal(again[removed], both[removed])  # JSON gives every bit back
    assert all(np.array_equal(first[removed], both[removed]) for removed in first)


def test_another_model_or_text_is_evaluated_anew(tmp_path: Path) -> None:
    model = ours()
    decoder, read = Decoder.of(model), text()
    with Evaluations(tmp_path / "e") as evaluations:
        before = evaluate(decoder, read, [WHOLE], evaluations)[WHOLE]
        other = evaluate(decoder, text(seed=4), [WHOLE], evaluations)[WHOLE]
        assert not np.array_equal(before, other)
        with torch.no_grad():
            model.layers[3].down_proj.weight[0, 0] += 1
        assert not np.array_equal(evaluate(decoder, read, [WHOLE], evaluations)[WHOLE], before)
    heads = Decoder.of(GPT(ModelConfig(LAYERS, WIDTH, 4, CONTEXT, VOCABULARY)))
    heads.model.load_state_dict(model.state_dict())  # equal weights: the heads are not among them
    assert heads.fingerprint() != decoder.fingerprint()


@pytest.mark.parametrize("cut", [1, 20, 0.5])
def test_a_torn_last_line_is_taken_away(tmp_path: Path, cut: float) -> None:
    path = tmp_path / "e"
    nats = np.array([0.1, 1 / 3])
    with Evaluations(path) as evaluations:
        for block in range(3):
            evaluations.add("m", "t", frozenset({block}), nats + block)
    content = path.read_bytes()
    last = len(content.splitlines()[-1])
    path.write_bytes(content[: -int(cut * last if cut < 1 else cut)])
    with Evaluations(path) as evaluations:
        assert [evaluations.get("m", "t", frozenset({b})) is not None for b in range(3)] == [
            True,
            True,
            False,
        ]
        evaluations.add("m", "t", frozenset({2}), nats + 2)
    assert path.read_bytes() == content


def test_a_file_that_is_in_use_or_damaged_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "e"
    with Evaluations(path) as evaluations:
        evaluations.add("m", "t", WHOLE, np.array([1.0]))
        with pytest.raises(ValueError, match="another process is evaluating"):
            Evaluations(path)
    line = path.read_text()
    path.write_text(line + "garbage\n" + line)
    with pytest.raises(ValueError, match=r"line 2 is no evaluation .* delete the file"):
        Evaluations(path)
    path.write_text(line.replace('"format": 1', '"format": 2'))
    with pytest.raises(ValueError, match=r"line 1 is no evaluation .format 2 is another version's."):
        Evaluations(path)


_KILLED = """
import sys, time
from spectral_fast.lifecycle import correlation
from spectral_fast.lifecycle.adapters import Decoder
from spectral_fast.lifecycle.evaluations import Evaluations
from spectral_fast.lifecycle.perplexity import evaluate
from tests.small_decoders import LAYERS, every_set, ours, text
decoder = Decoder.of(ours())
decoder.model.register_forward_hook(lambda *args: time.sleep(0.02))
with Evaluations(sys.argv[1]) as evaluations:
    evaluate(decoder, text(), every_set(LAYERS), evaluations)
"""


def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "e"
    root = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", _KILLED, str(path)], env=environment, cwd=root)
    deadline = time.monotonic() + 120
    while not path.exists() or path.read_bytes().count(b"\n") < 4:
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = path.read_bytes().count(b"\n")
    assert 4 <= kept < 16
    decoder, runs = Decoder.of(ours()), []
    decoder.model.register_forward_hook(lambda *args: runs.append(1))
    with Evaluations(path) as evaluations:
        evaluate(decoder, text(), every_set(LAYERS), evaluations)
    assert len(runs) == 16 - kept
    removed = [tuple(json.loads(line)["removed"]) for line in path.read_text().splitlines()]
    assert sorted(removed) == sorted(tuple(sorted(one)) for one in every_set(LAYERS))


# Correlation


def test_rho_is_scipys_also_with_ties() -> None:
    generator = np.random.default_rng(0)
    for layers in (4, 7, 12):
        x, y = generator.standard_normal((2, layers))
        tied = np.round(y)
        for other in (y, tied):
            assert rank_correlation(x, other).rho == pytest.approx(spearmanr(x, other).statistic, abs=1e-12)


@pytest.mark.parametrize(
    ("layers", "p"),
    # All orders are equally likely, and two of them are as far from 0 as a perfect one.
    [(2, 1.0), (3, 2 / 6), (4, 2 / 24), (8, 2 / math.factorial(8)), (9, 2 / math.factorial(9))],
)
def test_a_perfect_correlation_has_the_smallest_p_there_is(layers: int, p: float) -> None:
    x = np.arange(layers, dtype=float)
    for sign in (1, -1):
        found = rank_correlation(x, sign * np.exp(x))
        assert (found.rho, found.p_value) == (pytest.approx(sign), pytest.approx(p, rel=1e-12))
        assert math.isnan(found.low) == (layers < 6)


def test_exact_p_is_the_count_over_all_orders() -> None:
    x, y = np.array([1.0, 2, 3, 4, 5]), np.array([2.0, 1, 4, 5, 3])
    rho = spearmanr(x, y).statistic
    others = [spearmanr(x, y[list(order)]).statistic for order in itertools.permutations(range(5))]
    expected = np.mean(np.abs(others) >= abs(rho) - 1e-12)
    assert rank_correlation(x, y).p_value == pytest.approx(expected)


def test_random_permutations_come_near_the_t_distribution() -> None:
    x, y = np.random.default_rng(1).standard_normal((2, 30))
    y += 0.4 * x
    found = rank_correlation(x, y)
    # scipy's t approximation is good at 30; 100,000 permutations have a standard error of 0.0007 at p = 0.05.
    assert found.p_value == pytest.approx(spearmanr(x, y).pvalue, rel=0.2)
    assert found.low < found.rho < found.high
    assert rank_correlation(x, y) == found  # no random state


def test_p_values_of_independent_layers_are_uniform() -> None:
    generator = np.random.default_rng(2)
    p = np.array([rank_correlation(*generator.standard_normal((2, 5))).p_value for _ in range(400)])
    for level in (0.05, 0.2, 0.5):
        # Discrete, so at most the level; four standard deviations of a count of 400.
        assert np.mean(p <= level) <= level + 4 * math.sqrt(level * (1 - level) / 400)
    assert np.mean(p <= 0.5) > 0.3


def test_a_correlation_that_does_not_exist_is_nan() -> None:
    constant = rank_correlation(np.ones(7), np.arange(7.0))
    assert all(math.isnan(v) for v in (constant.rho, constant.p_value, constant.low, constant.high))
    with pytest.raises(ValueError, match="finite"):
        rank_correlation(np.array([1, math.nan]), np.ones(2))
    with pytest.raises(ValueError, match="two equally long vectors"):
        rank_correlation(np.ones(3), np.ones(2))


@pytest.mark.slow
def test_intervals_cover(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of normal pairs with rho 0.5, by Pearson's 6/pi asin(r/2); 300 of each depth."""
    monkeypatch.setattr(correlation, "PERMUTATIONS", 10)  # p is not asked for
    monkeypatch.setattr(correlation, "EXACT_LAYERS", 1)
    monkeypatch.setattr(correlation, "RESAMPLES", 2000)
    r = 2 * math.sin(math.pi * 0.5 / 6)
    generator = np.random.default_rng(5)
    for layers in (8, 16, 24):
        inside = 0
        for _ in range(300):
            x, noise = generator.standard_normal((2, layers))
            found: RankCorrelation = rank_correlation(x, r * x + math.sqrt(1 - r * r) * noise)
            inside += found.low <= 0.5 <= found.high
        # 93 % is what is stated; three standard deviations of a count of 300 below it.
        assert inside / 300 >= 0.93 - 3 * math.sqrt(0.93 * 0.07 / 300)


# Importance


def test_importance_is_the_gain_in_loss_and_its_error_that_of_paired_windows(tmp_path: Path) -> None:
    decoder, read = Decoder.of(ours()), text(windows=12)
    alphas = {name: np.arange(LAYERS, dtype=float) for name in HEAVIER_TAIL}
    with Evaluations(tmp_path / "e") as evaluations:
        found = measure_importance(decoder, read, alphas, evaluations)
    whole = decoder_losses(decoder, read, decoder.blocks)
    for block in range(LAYERS):
        kept = [b for place, b in enumerate(decoder.blocks) if place != block]
        gain = decoder_losses(decoder, read, kept) - whole
        assert found.importance[block] == pytest.approx(gain.mean(), abs=1e-6)
        assert found.error[block] == pytest.approx(gain.std(ddof=1) / math.sqrt(12), rel=1e-4)
    assert found.loss == pytest.approx(whole.mean(), abs=1e-6)
    assert found.correlations["depth"] == found.correlations["alpha"]
    data = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert data["importance"] == found.importance.tolist()
    assert data["correlations"]["depth"]["low"] is None  # four layers are too few


def decoder_losses(decoder: Decoder, read: EvaluationText, blocks: object) -> np.ndarray:
    with decoder.running(list(blocks)), torch.no_grad():
        logits = decoder.logits(read.windows[:, :-1])
    losses = nn.functional.cross_entropy(
        logits.flatten(0, 1), read.windows[:, 1:].flatten(), reduction="none"
    )
    return losses.view(len(read.windows), -1).double().mean(1).numpy()


def test_a_block_that_does_nothing_has_no_importance(tmp_path: Path) -> None:
    model = ours()
    with torch.no_grad():
        for weight in (model.layers[2].o_proj.weight, model.layers[2].down_proj.weight):
            weight.zero_()
    alphas = {name: np.arange(LAYERS, dtype=float) for name in HEAVIER_TAIL}
    with Evaluations(tmp_path / "e") as evaluations:
        found = measure_importance(Decoder.of(model), text(), alphas, evaluations)
    assert found.importance[2] == 0
    assert (np.abs(found.importance[[0, 1, 3]]) > 1e-3).all()


def test_alphas_of_a_layer_are_means_over_its_matrices(folder: Path) -> None:
    from spectral_fast import spectral_stats, weight_matrices

    found = layer_alphas(folder)
    matrices = [m for m in weight_matrices(load_decoder(folder).model) if m.layer == 1]
    assert sorted(m.role for m in matrices) == sorted(["q", "k", "v", "o", "mlp_in", "mlp_out"])
    for name, values in found.items():
        assert values.shape == (LAYERS,)
        expected = np.mean([float(getattr(spectral_stats(m.tensor), name)) for m in matrices])
        assert values[1] == pytest.approx(expected, rel=1e-12)


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    with Evaluations(tmp_path / "e") as evaluations:
        with pytest.raises(ValueError, match=r"alpha has shape \(3,\), the model 4 blocks"):
            measure_importance(Decoder.of(ours()), text(), {"alpha": np.ones(3)}, evaluations)
        single = Decoder.of(GPT(ModelConfig(1, WIDTH, 2, CONTEXT, VOCABULARY)))
        with pytest.raises(ValueError, match="importance compares at least two"):
            measure_importance(single, text(), {"alpha": np.ones(1)}, evaluations)
