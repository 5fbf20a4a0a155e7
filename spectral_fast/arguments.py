"""What the arguments of several commands are checked for."""

import argparse

import torch


def positive(text: str) -> int:
    """A whole number above 0, as a ``type`` of argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


def device_of(text: str) -> torch.device:
    """The device that ``--device`` names. Raises ValueError for what is neither the CPU nor a GPU."""
    try:
        device = torch.device(text)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"--device {text}: is neither cpu nor cuda, such as cuda or cuda:1")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        there = torch.cuda.device_count()
        raise ValueError(
            f"--device {text}: torch sees {there} GPU{'' if there == 1 else 's'} here "
            f"(version {torch.__version__}); use --device cpu"
        )
    return device
