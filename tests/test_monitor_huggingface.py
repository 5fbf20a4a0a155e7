"""SpectralCallback in a real run of transformers.Trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch.utils.data import Dataset

from spectral_fast.monitor import Look, SpectralCallback


class Tokens(Dataset[dict[str, torch.Tensor]]):
    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        tokens = torch.randint(50, (12,), generator=torch.Generator().manual_seed(index))
        return {"input_ids": tokens, "labels": tokens}


def model() -> Any:
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=50, n_positions=16, n_embd=16, n_layer=2, n_head=2)
    return transformers.GPT2LMHeadModel(config)


def trainer(folder: Path, callbacks: list[Any], **options: Any) -> Any:
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=4,
        learning_rate=1e-3,
        max_steps=options.pop("max_steps", 7),
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        seed=1,
        **options,
    )
    return transformers.Trainer(model=model(), args=arguments, train_dataset=Tokens(), callbacks=callbacks)


def test_steps_are_the_trainers_with_accumulation_and_training_is_the_same(tmp_path: Path) -> None:
    looks: list[Look] = []
    callback = SpectralCallback(sinks=[looks.append], every=3, track_every=2, budget=None)
    assert callback.monitor is None
    watched = trainer(tmp_path / "watched", [callback], save_strategy="no")
    watched.train()
    assert [(look.step, look.kind) for look in looks] == [
        (0, "exact"), (2, "tracked"), (3, "exact"), (4, "tracked"), (6, "exact")
    ]  # fmt: skip
    roles = [(m.layer, m.role) for m in looks[0].matrices]
    assert roles == [(i, role) for i in (0, 1) for role in ("q", "k", "v", "o", "mlp_in", "mlp_out")]
    assert looks[0].matrices[0].svdvals[0] != looks[-1].matrices[0].svdvals[0]
    assert callback.monitor is not None
    assert callback.monitor.report().step == 7
    with pytest.raises(RuntimeError, match="closed"):
        callback.monitor.step()

    plain = trainer(tmp_path / "plain", [], save_strategy="no")
    plain.train()
    for name, tensor in plain.model.state_dict().items():
        assert torch.equal(tensor, watched.model.state_dict()[name]), name


def test_a_resumed_run_counts_on(tmp_path: Path) -> None:
    first: list[Look] = []
    second: list[Look] = []
    options = {"every": 4, "budget": None}
    saves = {"save_strategy": "steps", "save_steps": 3}
    trainer(tmp_path, [SpectralCallback(sinks=[first.append], **options)], max_steps=3, **saves).train()
    resumed = trainer(tmp_path, [SpectralCallback(sinks=[second.append], **options)], max_steps=6, **saves)
    resumed.train(resume_from_checkpoint=True)
    assert [look.step for look in first] == [0, 1, 2, 3]
    assert [(look.step, look.kind) for look in second] == [
        (3, "exact"), (4, "exact"), (5, "tracked"), (6, "tracked")
    ]  # fmt: skip
    # The checkpoint's weights, not those the resumed Trainer was made with.
    tracked, again = first[-1].matrices[0], second[0].matrices[0]
    assert tracked.statistics["spectral_norm"] == again.statistics["spectral_norm"]


def test_the_trainer_tells_when_a_step_was_made() -> None:
    with pytest.raises(ValueError, match="leave optimizer out"):
        SpectralCallback(optimizer=torch.optim.SGD([torch.zeros(1)]))
