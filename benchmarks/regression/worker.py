"""A process that times operations of the package in one source tree, as it is told over a pipe.

``python -P worker.py TREE HARNESS THREADS``: the package comes from TREE; operations, checks and clock from
HARNESS, so that two trees are given the same inputs and judged by the same rules. A line of JSON in
(``{"prepare": {...}}`` or ``{"sample": calls}``), a line of JSON out; what the package prints goes to stderr.

What is imported here from ``benchmarks`` therefore meets the package of another commit: these modules, what
they import and the ``__init__.py`` of both folders need no more of it than
:mod:`benchmarks.regression.watched` says. Run by :mod:`benchmarks.regression.commits`, never imported.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    tree, harness, threads = sys.argv[1:]
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches both processes: the parent ends this one
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def answer(**what: Any) -> None:
        print(json.dumps(what), file=answers, flush=True)

    # The package first, by itself: its modules stay with the tree whatever comes first on the path later.
    sys.path.insert(0, tree)
    try:
        package = importlib.import_module("spectral_fast")
        at = Path(str(package.__file__)).resolve()
        if not at.is_relative_to(Path(tree).resolve()):
            raise ImportError(f"spectral_fast was imported from elsewhere than {tree}")
        sys.path[0] = harness
        import torch

        from benchmarks.regression.watched import Operation
        from benchmarks.timing import Contestant, Timing, failure_status, host_clock, take_sample, warm_up
    except ImportError as error:
        answer(error=f"{type(error).__name__}: {error}")
        return
    torch.set_num_threads(int(threads))
    gc.disable()
    answer(version=package.__version__)

    contestant, timing = Contestant("none", lambda: None), Timing("none", None)
    for line in sys.stdin:
        order = json.loads(line)
        try:
            if "prepare" in order:
                gc.collect()
                wanted = order["prepare"]
                operation = Operation(wanted["kind"], tuple(wanted["shape"]), getattr(torch, wanted["dtype"]))
                if missing := operation.missing():
                    answer(missing=missing)
                    continue
                prepared = operation.prepare()
                if wrong := prepared.check(prepared.call()):
                    answer(wrong=wrong)
                    continue
                contestant, timing = Contestant(operation.name, prepared.call), Timing(operation.name, None)
                seconds = warm_up(contestant, timing, host_clock)
                timing.result = None
                answer(seconds=seconds, calls=timing.calls_per_sample)
            else:
                timing.calls_per_sample = order["sample"]
                answer(seconds=take_sample(contestant, timing, host_clock))
        except Exception as error:  # whatever the package raises is that operation's line, not the end
            answer(failed=failure_status(error))


main()
