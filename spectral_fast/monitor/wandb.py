"""WandbSink: the statistics of every look in a Weights & Biases run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from spectral_fast.monitor.metrics import metrics, require_statistics
from spectral_fast.monitor.record import ESTIMATED, Look

if TYPE_CHECKING:
    import wandb

_STEP = "spectra_step"


class WandbSink:
    """Logs every look's statistics, named as in :mod:`spectral_fast.monitor.metrics`.

    The horizontal axis of their charts is ``spectra_step``, the training step. W&B's own step counts calls of
    ``run.log``, ours among them, and W&B drops what comes with a step that has passed: a script that gives
    ``run.log`` its steps should let the sink have a run of its own.

    Args:
        run: the run of the training script, which stays its own to finish; without it, the sink starts one.
        statistics: fields of :class:`spectral_fast.SpectralStats` to log.
        **init: arguments of ``wandb.init`` for a run of the sink's own, such as project and mode="offline".

    Raises:
        ImportError: wandb is not installed.
        ValueError: a run and arguments for a new one, or a statistic of unknown name.
    """

    def __init__(
        self, run: wandb.Run | None = None, *, statistics: Sequence[str] = ESTIMATED, **init: Any
    ) -> None:
        try:
            import wandb
        except ImportError as error:
            raise ImportError(
                "WandbSink needs wandb, which the extra 'wandb' brings: pip install 'spectral_fast[wandb]'"
            ) from error
        if run is not None and init:
            raise ValueError(
                f"WandbSink: give a run or arguments for a new one ({', '.join(init)}), not both"
            )
        self._statistics = require_statistics(statistics)
        self._owns_run = run is None
        self._run = wandb.init(**init) if run is None else run
        self._run.define_metric(_STEP, hidden=True)
        self._run.define_metric("spectra_*", step_metric=_STEP)

    def __call__(self, look: Look) -> None:
        """Log a look. It is with W&B's own process then, which writes and sends it in its own time.

        Raises:
            Exception: whatever wandb raises, such as wandb.errors.UsageError after the run was finished.
        """
        self._run.log({_STEP: look.step, **metrics(look, self._statistics)})

    def close(self) -> None:
        """Finish the run, unless it was given."""
        if self._owns_run:
            self._run.finish()
