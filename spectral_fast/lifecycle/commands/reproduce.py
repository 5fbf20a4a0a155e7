"""``spectral-fast lifecycle reproduce``: the paper's questions asked of small models, by one command."""

from __future__ import annotations

import argparse
import importlib.util
from dataclasses import replace
from pathlib import Path

from spectral_fast.lifecycle.commands.failure import failed, not_installed
from spectral_fast.lifecycle.config import SIZES, TrainConfig

_EXIT_CODES = """\
exit codes:
  0    the page and its pictures are there
  2    bad usage, a folder that holds something else, or files that cannot be read or written
  130  interrupted (Ctrl-C); the same command goes on from there
"""
DEPTHS, SEEDS, STEPS, LR = (2, 4, 6, 10, 16), 2, 1000, 2e-3


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to those of ``spectral-fast lifecycle``."""
    reproduce = commands.add_parser(
        "reproduce",
        help="train a grid of small GPTs, measure all phenomena and the pruning on them, write a page",
        description=(
            "Train GPTs of several depths and seeds on the sources of Python's standard library, look at\n"
            "all their weights, measure every phenomenon of the paper, remove blocks, and write a page with\n"
            "what was found, claimed or not. As it stands it takes less than an hour on two cores."
        ),
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    option = reproduce.add_argument
    option("out", metavar="OUT", type=Path, help="folder of runs, evaluations and page; may be gone on with")
    option("--page", metavar="FOLDER", type=Path, help="where the page goes (OUT/page)")
    option("--depths", metavar="L", type=int, nargs="+", default=DEPTHS, help="layers (2 4 6 10 16)")
    option("--seeds", metavar="N", type=int, default=SEEDS, help="runs of each depth (2)")
    option("--steps", metavar="N", type=int, default=STEPS, help="optimizer steps of each (1000)")
    option("--width", metavar="N", type=int, help="of the models (96)")
    option("--data", metavar="FOLDER", type=Path, help="of text files (the standard library's sources)")
    option("--jobs", metavar="N", type=int, help="runs trained side by side, one thread each (the cores)")
    reproduce.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    if importlib.util.find_spec("matplotlib") is None:  # after an hour would be late
        return failed("the page needs matplotlib: pip install 'spectral_fast[lifecycle]'")
    try:
        from spectral_fast.lifecycle.page import write_page
        from spectral_fast.lifecycle.reproduce import Plan, reproduce
        from spectral_fast.monitor.parquet import RunError
    except ImportError as error:
        return not_installed(error)
    if arguments.jobs is not None and arguments.jobs < 1:
        return failed(f"--jobs {arguments.jobs}: is not a positive number")
    try:
        model = SIZES["thin-2"]
        if arguments.width is not None:
            model = replace(model, width=arguments.width)
        warm_up = min(100, arguments.steps // 10)
        plan = Plan(
            depths=tuple(arguments.depths),
            seeds=tuple(range(arguments.seeds)),
            model=model,
            training=TrainConfig(steps=arguments.steps, lr=LR, warm_up=warm_up),
            data=arguments.data,
        )
        found = reproduce(arguments.out, plan, jobs=arguments.jobs, say=_say)
        page = write_page(found, arguments.page or arguments.out / "page")
    except (RunError, ValueError) as error:
        return failed(error)
    except OSError as error:
        return failed(f"{error.filename or arguments.out}: {error.strerror or error}")
    print(f"wrote {page} after {found.seconds / 60:.1f} minutes")
    return 0


def _say(line: str) -> None:
    print(line, flush=True)
