"""What arguments of several commands are checked for."""

import pytest
import torch

from spectral_fast.arguments import device_of
from spectral_fast.cli import main


def test_a_device_is_the_cpu_or_a_gpu_that_is_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for text in ("cpu", "cuda", "cuda:0"):
        assert device_of(text) == torch.device(text)
    with pytest.raises(ValueError, match=r"--device cuda:1: torch sees 1 GPU here .*; use --device cpu"):
        device_of("cuda:1")


@pytest.mark.parametrize("device", ["meta", "mps"])
def test_a_device_that_torch_knows_and_we_do_not_trains_nothing(tmp_path, capsys, device):
    run = tmp_path / "run"
    assert main(["lifecycle", "train", str(run), f"--device={device}"]) == 2
    assert f"--device {device}: is neither cpu nor cuda" in capsys.readouterr().err
    assert not run.exists()
