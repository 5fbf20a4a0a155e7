"""Pruning orders, their curves, and the commands from a model on disk to files."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from spectral_fast.lifecycle.adapters import Decoder
from spectral_fast.lifecycle.commands import importance as importance_command
from spectral_fast.lifecycle.commands import prune as prune_command
from spectral_fast.lifecycle.config import ModelConfig
from spectral_fast.lifecycle.evaluations import Evaluations
from spectral_fast.lifecycle.gpt import GPT
from spectral_fast.lifecycle.importance import HEAVIER_TAIL, Importance, measure_importance
from spectral_fast.lifecycle.perplexity import EvaluationText, nats_without
from spectral_fast.lifecycle.pruning import Pruning, measure_pruning, removal_orders
from tests.small_decoders import CONTEXT, LAYERS, VOCABULARY, WIDTH, ours, text, transformers_model


def known(importance: list[float], **alphas: list[float]) -> Importance:
    depth = len(importance)
    flat = {name: np.zeros(depth) for name in HEAVIER_TAIL}
    given = {name: np.array(values, dtype=float) for name, values in alphas.items()}
    return Importance(1.0, np.array(importance, dtype=float), np.zeros(depth), flat | given, {})


def test_the_lightest_tail_goes_first_whatever_the_exponent_means() -> None:
    """Singular values k^-b: the steeper they fall, the heavier the tail, the later the block goes."""
    decay = np.array([0.4, 0.9, 0.2, 0.7, 0.5])
    density = (1 + 1 / (2 * decay)).tolist()
    found = removal_orders(
        known([0] * 5, alpha=density, alpha_hill=density, alpha_ranksize=decay.tolist()), most=5, seeds=1
    )
    lightest_first = tuple(np.argsort(decay).tolist())
    for name in HEAVIER_TAIL:
        assert found[name] == (lightest_first,) == ((2, 0, 4, 3, 1),)
        assert found[f"{name}-protected"] == ((2, 3, 1),)


def test_the_other_orders() -> None:
    found = removal_orders(known([3, 1, 4, 1.5, 5]), most=3, seeds=40)
    assert found["last-n"] == ((4, 3, 2),)
    assert found["first-n"] == ((0, 1, 2),)
    assert found["best"] == ((1, 3, 0),)
    assert found["worst"] == ((4, 2, 0),)
    assert found["alpha"] == ((4, 3, 2),)  # equal: from the end
    for name, blocks in (("random", range(5)), ("random-protected", range(1, 4))):
        assert len(found[name]) == 40
        assert {block for order in found[name] for block in order} == set(blocks)
        assert all(len(set(order)) == 3 for order in found[name])
        firsts = [order[0] for order in found[name]]
        assert len(set(firsts)) == len(blocks)
    assert removal_orders(known([1, 2]), most=1, seeds=3).keys() == {
        *HEAVIER_TAIL,
        *("last-n", "first-n", "best", "worst", "random"),  # two blocks: none is left to remove but the ends
    }


def planted(sizes: list[float]) -> GPT:
    """A model whose blocks write that much of what they did into the residual stream."""
    model = ours()
    with torch.no_grad():
        for layer, size in zip(model.layers, sizes, strict=True):
            layer.o_proj.weight.mul_(size)
            layer.down_proj.weight.mul_(size)
    return model


@pytest.fixture(scope="module")
def pruning(tmp_path_factory: pytest.TempPathFactory) -> tuple[Decoder, Importance, Pruning]:
    """Blocks that write more and more, of a model whose own predictions are the text."""
    decoder = Decoder.of(planted([1.0, 0.5, 0.2, 0.05]))
    # Exponents by decree: alpha finds what matters least (the last), alpha_hill what matters most.
    alphas = {"alpha": [1.0, 2, 3, 4], "alpha_hill": [4.0, 3, 2, 1], "alpha_ranksize": [4.0, 3, 2, 1]}
    read = its_own_text(decoder)
    with Evaluations(tmp_path_factory.mktemp("pruning") / "e") as evaluations:
        given = {name: np.array(values) for name, values in alphas.items()}
        importance = measure_importance(decoder, read, given, evaluations)
        return decoder, importance, measure_pruning(decoder, read, importance, evaluations, most=3, seeds=30)


def its_own_text(decoder: Decoder) -> EvaluationText:
    """Every token drawn from the model's prediction, so that to change the model is to lose."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(VOCABULARY, (64, 1), generator=generator)
    with torch.no_grad():
        while rows.shape[1] <= CONTEXT:
            odds = decoder.model(rows)[:, -1].softmax(-1)
            rows = torch.cat([rows, odds.multinomial(1, generator=generator)], 1)
    return EvaluationText(rows)


def test_curves_are_what_the_models_without_the_blocks_lose(
    pruning: tuple[Decoder, Importance, Pruning],
) -> None:
    decoder, importance, found = pruning
    assert importance.importance.argsort().tolist() == [3, 2, 1, 0]  # as planted
    read = its_own_text(decoder)
    whole = perplexity(decoder, read, ())
    assert found.perplexity == pytest.approx(whole, rel=1e-5)
    for name, curve in found.curves.items():
        for order, delta in zip(curve.orders, curve.delta, strict=True):
            for count in range(1, 4):
                if count > len(order):
                    assert math.isnan(delta[count - 1])
                    assert name.endswith("-protected")
                else:
                    expected = perplexity(decoder, read, order[:count]) - whole
                    assert delta[count - 1] == pytest.approx(expected, rel=1e-3, abs=1e-3)


def perplexity(decoder: Decoder, read: EvaluationText, removed: tuple[int, ...]) -> float:
    kept = [block for place, block in enumerate(decoder.blocks) if place not in removed]
    with decoder.running(kept), torch.no_grad():
        logits = decoder.logits(read.windows[:, :-1])
    return math.exp(nn.functional.cross_entropy(logits.flatten(0, 1), read.windows[:, 1:].flatten()))


def test_ratios_and_chance(pruning: tuple[Decoder, Importance, Pruning]) -> None:
    _, _, found = pruning
    last, best = found.curves["last-n"].delta[0], found.curves["best"].delta[0]
    assert found.curves["alpha"].orders == found.curves["last-n"].orders == ((3, 2, 1),)
    ratio = found.last_over["alpha"]
    assert ratio.value.tolist() == ratio.low.tolist() == ratio.high.tolist() == [1, 1, 1]
    worst = found.curves["worst"].delta[0]
    np.testing.assert_allclose(found.worst_over_best.value, worst / best)
    assert (found.worst_over_best.low < found.worst_over_best.value).all()
    assert (found.worst_over_best.value < found.worst_over_best.high).all()
    assert found.worst_over_best.low[0] > 1
    np.testing.assert_allclose(found.last_over["alpha_hill"].value, last / worst)
    # What matters least goes first: as good as the best of 30 random orders, or equal to it.
    random = found.curves["random"].delta
    for name in ("alpha", "alpha_hill"):
        as_good = (random <= found.curves[name].delta[0]).sum(axis=0)
        assert found.p_random[name].tolist() == ((1 + as_good) / 31).tolist()
    assert found.p_random["alpha_hill"][0] == 1
    assert found.p_random["alpha"][0] < 0.5
    assert np.isnan(found.p_random["alpha-protected"]).tolist() == [False, False, True]
    assert found.curves["random"].quantiles.shape == (5, 3)
    assert (np.diff(found.curves["random"].quantiles, axis=0) >= 0).all()


def test_errors_over_the_text_are_those_of_resampled_texts(
    pruning: tuple[Decoder, Importance, Pruning],
) -> None:
    """The closed form against the spread of delta perplexity over 2000 resampled texts."""
    decoder, _, found = pruning
    read = its_own_text(decoder)
    sets = [frozenset[int](), frozenset({3, 2})]
    nats = dict(nats_without(decoder, read, sets))
    drawn = np.random.default_rng(0).integers(len(read.windows), size=(2000, len(read.windows)))
    deltas = np.exp(nats[sets[1]][drawn].mean(1)) - np.exp(nats[sets[0]][drawn].mean(1))
    # 2000 resamples give a standard deviation to 2 %; beyond first order it is 1 / (2 x 64 windows).
    assert found.curves["last-n"].error[0, 1] == pytest.approx(deltas.std(), rel=0.1)


def test_no_ratio_to_nothing(tmp_path: Path) -> None:
    """Blocks that write nothing cost nothing to remove: there is no ratio to that, and JSON says null."""
    model = planted([1.0, 1.0, 0.0, 0.0])
    alphas = {name: np.array([2.0, 2, 2, 2]) for name in HEAVIER_TAIL}
    decoder = Decoder.of(model)
    read = its_own_text(decoder)
    with Evaluations(tmp_path / "e") as evaluations:
        importance = measure_importance(decoder, read, alphas, evaluations)
        found = measure_pruning(decoder, read, importance, evaluations, most=2, seeds=2)
    assert found.curves["best"].delta[0].tolist() == [0, 0]
    assert np.isnan(found.worst_over_best.value).all()
    data = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert data["worst_over_best"]["value"] == [None, None]


def test_half_of_the_blocks_go_unless_told_otherwise(tmp_path: Path) -> None:
    alphas = {name: np.arange(4.0) for name in HEAVIER_TAIL}
    decoder = Decoder.of(ours())
    with Evaluations(tmp_path / "e") as evaluations:
        importance = measure_importance(decoder, text(), alphas, evaluations)
        assert measure_pruning(decoder, text(), importance, evaluations, seeds=1).most == 2
        for most in (0, 4):
            with pytest.raises(ValueError, match=f"between 1 and 3 of the model's 4 blocks .* not {most}"):
                measure_pruning(decoder, text(), importance, evaluations, most=most)
        with pytest.raises(ValueError, match="at least one seed, not 0"):
            measure_pruning(decoder, text(), importance, evaluations, seeds=0)


# The commands


def command(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers()
    importance_command.add(commands)
    prune_command.add(commands)
    parsed = parser.parse_args(arguments)
    code: int = parsed.run(parsed)
    return code


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder of GPT-2 with a tokenizer of its own, and a text beside it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    path = tmp_path_factory.mktemp("command") / "model"
    content = Path(argparse.__file__).read_text(encoding="utf-8")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(set(content.encode().decode("latin-1").replace(" ", "Ġ").replace("\n", "Ċ")))
    trainer = trainers.BpeTrainer(vocab_size=256, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([content], trainer)
    transformers_model("gpt2", vocabulary=tokenizer.get_vocab_size()).save_pretrained(path)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(path)
    (path.parent / "text.txt").write_text(content[:20000], encoding="utf-8")
    return path


def test_prune_command(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = [str(checkpoint), "--text", str(checkpoint.parent / "text.txt"), "--tokens", "300"]
    assert command("importance", *given) == 0
    out = checkpoint.parent / "model-pruning"
    evaluated = (out / "evaluations.jsonl").read_text().count("\n")
    assert evaluated == 1 + LAYERS
    assert command("prune", *given, "--seeds", "3") == 0
    assert (out / "evaluations.jsonl").read_text().count("\n") > evaluated
    shown = capsys.readouterr().out
    for words in (
        "importance with",
        "alpha_ranksize-protected",
        "random, median",
        "last-n / alpha",
        "worst / best",
    ):
        assert words in shown
    assert {file.name for file in out.iterdir()} == {
        *("evaluations.jsonl", "importance.json", "importance.png", "pruning.json", "pruning.png")
    }
    for name in ("importance.png", "pruning.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    importance = json.loads((out / "importance.json").read_text())
    pruning = json.loads((out / "pruning.json").read_text())
    assert importance["windows"] == 300 // CONTEXT
    assert importance["model_fingerprint"] == pruning["model_fingerprint"]
    assert math.exp(importance["loss"]) == pytest.approx(pruning["perplexity"])
    one = pruning["curves"]["last-n"]["delta_perplexity"][0][0]
    expected = math.exp(importance["loss"] + importance["importance"][-1]) - math.exp(importance["loss"])
    assert one == pytest.approx(expected)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["MODEL"], "no training run with a corpus of its own: give --text FILE"),
        (["MODEL", "--text", "missing.txt"], "No such file or directory: 'missing.txt'"),
        (["MODEL", "--text", "TEXT", "--context", "25"], "windows of 25 tokens: the model's context is 24"),
        (["MODEL", "--text", "BINARY"], "is not UTF-8 text (invalid start byte at byte 1)"),
        (["BARE", "--text", "TEXT"], "has no tokenizer"),
        (["EMPTY"], "is no folder with a run.json or a config.json"),
    ],
)
def test_errors(
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    error: str,
) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        (bare / name).write_bytes((checkpoint / name).read_bytes())
    (tmp_path / "binary").write_bytes(b"a\xff")
    places = {
        **{"MODEL": checkpoint, "TEXT": checkpoint.parent / "text.txt", "BARE": bare},
        **{"BINARY": tmp_path / "binary", "EMPTY": tmp_path},
    }
    given = [str(places.get(argument, argument)) for argument in arguments]
    assert command("prune", *given, "--out", str(tmp_path / "out")) == 2
    assert error in capsys.readouterr().err


def test_a_training_run_is_evaluated_on_what_its_corpus_held_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from spectral_fast.lifecycle.config import TrainConfig
    from spectral_fast.lifecycle.corpus import Corpus
    from spectral_fast.lifecycle.training import train

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data, other = tmp_path / "data", tmp_path / "other"
    for folder, shift in ((data, 0), (other, 1)):
        folder.mkdir()
        for number in range(8):
            words = " ".join(str((number + shift) * n * n % 977) for n in range(400))
            (folder / f"{number}.txt").write_text(words)
    corpus = Corpus.from_folder(data, vocabulary=300)
    model = ModelConfig(3, WIDTH, 2, 16, corpus.vocabulary)
    train(tmp_path / "run", model, TrainConfig(steps=2, batch=4, every=1), corpus)
    run = str(tmp_path / "run")
    assert command("importance", run, "--data", str(data), "--tokens", "160") == 0
    found = json.loads((tmp_path / "run-pruning" / "importance.json").read_text())
    assert found["windows"] == 10
    assert len(found["importance"]) == 3
    assert command("importance", run, "--data", str(other)) == 2
    assert "was trained on another corpus than this" in capsys.readouterr().err
    assert command("importance", run, "--text", "t") == 2
    assert "leave out --text" in capsys.readouterr().err
