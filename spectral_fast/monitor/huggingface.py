"""SpectralCallback: a monitor in the Hugging Face Trainer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from spectral_fast.monitor.delivery import Sink
from spectral_fast.monitor.monitor import SpectralMonitor


class SpectralCallback(TrainerCallback):
    """Looks at the weights while transformers.Trainer trains, as one of its ``callbacks``.

    One exact look before the first step, then after each optimizer step what the schedule has; gradient
    accumulation and resuming from a checkpoint are the Trainer's, and steps are its ``global_step``.

    sinks, options: as in :class:`SpectralMonitor`; the callback makes the monitor when training begins,
        and closes it and its sinks when training ends.

    Attributes:
        monitor: the monitor, None before training begins; closed after its end, with its report.
    """

    def __init__(self, *, sinks: Sequence[Sink] = (), **options: Any) -> None:
        if "optimizer" in options:
            raise ValueError("SpectralCallback: the Trainer tells when a step was made; leave optimizer out")
        self._sinks = sinks
        self._options = options
        self.monitor: SpectralMonitor | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Make the monitor and look once."""
        self.monitor = SpectralMonitor(kwargs["model"], sinks=self._sinks, **self._options)
        self.monitor.load_state_dict({**self.monitor.state_dict(), "step": state.global_step})
        self.monitor.look()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """An optimizer step was made."""
        assert self.monitor is not None
        self.monitor.step()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Deliver what waits and close the sinks."""
        assert self.monitor is not None
        self.monitor.close()
