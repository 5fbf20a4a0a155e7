"""TensorBoardSink: the statistics of every look as TensorBoard scalars."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from spectral_fast.monitor.metrics import metrics, require_statistics
from spectral_fast.monitor.record import ESTIMATED, Look

if TYPE_CHECKING:
    from torch.utils.tensorboard import FileWriter, SummaryWriter


class TensorBoardSink:
    """Writes every look's statistics as scalars, named as in :mod:`spectral_fast.monitor.metrics`.

    A call that has returned has written its scalars to the event file.

    Args:
        to: a directory for event files, or the SummaryWriter of the training script, which stays its own to
            close.
        statistics: fields of :class:`spectral_fast.SpectralStats` to write.

    Raises:
        ImportError: tensorboard is not installed.
        ValueError: a statistic of unknown name.
    """

    def __init__(
        self, to: str | os.PathLike[str] | SummaryWriter, *, statistics: Sequence[str] = ESTIMATED
    ) -> None:
        try:
            import torch.utils.tensorboard
        except ImportError as error:
            raise ImportError(
                "TensorBoardSink needs tensorboard, which the extra 'tensorboard' brings: "
                "pip install 'spectral_fast[tensorboard]'"
            ) from error
        self._statistics = require_statistics(statistics)
        self._theirs: SummaryWriter | None = None
        self._log_dir: str | None = None
        if isinstance(to, torch.utils.tensorboard.SummaryWriter):
            self._theirs = to
        else:
            self._log_dir = os.fspath(to)
        self._ours: FileWriter | None = None

    def __call__(self, look: Look) -> None:
        """Write a look.

        Raises:
            OSError: the event file cannot be written. With a directory, the next call begins another file in
                it, so that the look can be given again; a SummaryWriter that failed once fails from then on.
            ValueError: the SummaryWriter is closed.
        """
        from tensorboard.compat.proto.summary_pb2 import Summary

        # One event for all: an event each, as add_scalar writes, takes five times as long.
        named = metrics(look, self._statistics)
        summary = Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in named.items()])
        writer = self._writer()
        try:
            writer.add_summary(summary, look.step, look.time)
            writer.flush()
        except BaseException:
            self._ours = None  # its thread has ended with the error
            raise

    def close(self) -> None:
        """Close the event file, unless it is the SummaryWriter's."""
        if self._ours is not None:
            self._ours.close()
            self._ours = None

    def _writer(self) -> FileWriter:
        if self._theirs is not None:
            writer: FileWriter | None = self._theirs.file_writer
            if writer is None:
                raise ValueError(
                    "TensorBoardSink: its SummaryWriter is closed; give the sink a directory instead"
                )
            return writer
        if self._ours is None:
            from torch.utils.tensorboard import FileWriter

            self._ours = FileWriter(self._log_dir)
        return self._ours
