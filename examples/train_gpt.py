"""Train a small GPT on the Python standard library's sources, byte by byte, and watch its weights.

    python examples/train_gpt.py                  # a few minutes on two cores
    spectral-fast report gpt-run                  # draws what was seen

Everything it needs is on the machine. The part that concerns spectral_fast is in `main`.
"""

from __future__ import annotations

import argparse
import math
import sysconfig
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spectral_fast import SpectralMonitor
from spectral_fast.monitor import Look, ParquetSink

VOCABULARY = 256


@dataclass(frozen=True)
class Size:
    """Of the model, and of a batch: sequences of ``context`` bytes."""

    width: int = 256
    layers: int = 4
    heads: int = 4
    context: int = 256
    batch: int = 32


class Block(nn.Module):
    """Attention and MLP, each added to what it read."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        d = size.width
        self.heads = size.heads
        self.norm_1, self.norm_2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(d, d, bias=False) for _ in range(4))
        self.up_proj, self.down_proj = nn.Linear(d, 4 * d, bias=False), nn.Linear(4 * d, d, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, d = x.shape
        h = self.norm_1(x)
        q, k, v = (
            proj(h).view(batch, length, self.heads, -1).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        h = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o_proj(h.transpose(1, 2).reshape(batch, length, d))
        return x + self.down_proj(F.gelu(self.up_proj(self.norm_2(x))))


class GPT(nn.Module):
    """A decoder of bytes."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(VOCABULARY, size.width)
        self.position_embedding = nn.Embedding(size.context, size.width)
        self.layers = nn.ModuleList(Block(size) for _ in range(size.layers))
        self.norm = nn.LayerNorm(size.width)
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, bytes_: Tensor) -> Tensor:
        positions = torch.arange(bytes_.shape[1], device=bytes_.device)
        x = self.token_embedding(bytes_) + self.position_embedding(positions)
        for layer in self.layers:
            x = layer(x)
        return F.linear(self.norm(x), self.token_embedding.weight)


def corpus() -> Tensor:
    """The sources of the standard library as one tensor of bytes, 31 MB with Python 3.11."""
    library = Path(sysconfig.get_path("stdlib"))
    files = sorted(f for f in library.rglob("*.py") if "site-packages" not in f.parts)
    if not files:
        raise SystemExit(f"{library} has no .py files: this Python comes without its sources")
    return torch.frombuffer(bytearray(b"\0".join(f.read_bytes() for f in files)), dtype=torch.uint8)


class Training:
    """A model, its optimizer and an endless row of batches; two of one size train the same bits."""

    def __init__(
        self, size: Size, text: Tensor, *, lr: float = 1e-3, warm_up: int = 50, seed: int = 0
    ) -> None:
        torch.manual_seed(0)
        self.size, self.text = size, text
        self.model = GPT(size)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=lr, betas=(0.9, 0.95))
        self.warm_up = torch.optim.lr_scheduler.LinearLR(self.optimizer, 1e-2, 1.0, warm_up)
        self.generator = torch.Generator().manual_seed(0)

    def batch(self) -> tuple[Tensor, Tensor]:
        """Bytes, and the bytes that follow them."""
        context = self.size.context
        starts = torch.randint(len(self.text) - context, (self.size.batch,), generator=self.generator)
        rows = self.text[starts[:, None] + torch.arange(context + 1)].long()
        return rows[:, :-1], rows[:, 1:]

    def step(self) -> float:
        """One step; the loss in bits a byte."""
        bytes_, following = self.batch()
        loss = F.cross_entropy(self.model(bytes_).flatten(0, 1), following.flatten())
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.warm_up.step()
        return loss.item() / math.log(2)


def describe(look: Look) -> str:
    """Stable rank and Hill alpha of each role, mean over the layers."""
    cells = []
    for role in dict.fromkeys(matrix.role for matrix in look.matrices):
        mine = [matrix for matrix in look.matrices if matrix.role == role]
        rank, alpha = (
            sum(matrix.statistics[name] for matrix in mine) / len(mine)
            for name in ("stable_rank", "alpha_hill")
        )
        cells.append(f"{role} {rank:.1f} {alpha:.2f}")
    return " | ".join(cells)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Train a small GPT and watch the spectra of its weights.")
    add = parser.add_argument
    add("--run", type=Path, default=Path("gpt-run"), help="folder for what the monitor sees (gpt-run)")
    add("--steps", type=int, default=200, help="optimizer steps (200)")
    for name, default in vars(Size()).items():
        add(f"--{name}", type=int, default=default)
    add("--every", type=int, default=25, help="steps between exact looks (25)")
    add("--budget", type=float, default=0.02, help="share of wall time for looking (0.02); 0: no limit")
    arguments = parser.parse_args(argv)
    size = Size(**{name: getattr(arguments, name) for name in vars(Size())})
    training = Training(size, corpus())

    def show(look: Look) -> None:
        if look.kind == "exact":
            print(f"{look.step:5d}  exact look, {look.seconds * 1e3:4.0f} ms: {describe(look)}", flush=True)

    print("stable rank and Hill alpha of each role, mean over layers")
    began = time.perf_counter()
    with SpectralMonitor(
        training.model,
        every=arguments.every,
        budget=arguments.budget or None,
        sinks=[ParquetSink(arguments.run), show],
        optimizer=training.optimizer,
    ) as monitor:
        monitor.look()
        for step in range(1, arguments.steps + 1):
            loss = training.step()
            if step % arguments.every == 0:
                seconds = (time.perf_counter() - began) / step
                print(f"{step:5d}  {loss:.3f} bits a byte, {seconds:.3g} s a step", flush=True)
    report = monitor.report()
    looks = " and ".join(f"{count} {kind}" for kind, count in report.looks.items())
    print(f"{looks} looks took {report.share:.2%} of {report.elapsed:.0f} s; they are in {arguments.run}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
