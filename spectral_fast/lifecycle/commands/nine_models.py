"""``spectral-fast lifecycle nine-models``: spectra of those on disk, the cost of a look for the others."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from spectral_fast.arguments import positive
from spectral_fast.lifecycle.commands.failure import failed
from spectral_fast.lifecycle.commands.subject import write_results
from spectral_fast.lifecycle.commands.tables import number, print_columns
from spectral_fast.lifecycle.outputs import plain
from spectral_fast.models.shapes import MODELS, ModelShape

if TYPE_CHECKING:
    from spectral_fast.lifecycle.nine_models import DepthGradient
    from spectral_fast.lifecycle.trajectories import Trajectories

_RANDOM = "random weights of these shapes, for cost only"
_EXIT_CODES = """\
exit codes:
  0    the table and the file are there
  2    bad usage, a checkpoint of another model, or files that cannot be read or written
  130  interrupted (Ctrl-C)
"""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "nine-models",
        help="stable rank and alphas of the nine models on disk; what a look at the others costs",
        description=(
            "List stable rank and the three exponents of those of the nine models that are on disk, by\n"
            "role: means and how they go with depth. A model is on disk where --checkpoint says or the\n"
            "Hugging Face cache has it; nothing is downloaded. Of the others only the shapes are used, with\n"
            "random weights, to time a look. Every matrix's values go to nine_models.json."
        ),
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--checkpoint",
        metavar="NAME=PATH",
        type=_named_path,
        action="append",
        default=[],
        help=f"where a model is; names: {', '.join(MODELS)}",
    )
    parser.add_argument(
        "--max-n", metavar="N", type=positive, help="do not time random models with a matrix side above N"
    )
    parser.add_argument("--out", metavar="DIR", type=Path, default=Path("nine-models"), help="(nine-models)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    try:
        return _run(dict(arguments.checkpoint), arguments.max_n, arguments.out)
    except (ValueError, OSError, ImportError) as error:
        return failed(error)


def _run(given: dict[str, Path], max_n: int | None, out: Path) -> int:
    from spectral_fast.lifecycle import nine_models

    out.mkdir(parents=True, exist_ok=True)
    cached = nine_models.can_read_cache()
    if not cached:
        print("Hugging Face's cache is not looked into: huggingface_hub is not installed", file=sys.stderr)
    found: dict[str, tuple[Path, Trajectories, list[DepthGradient]]] = {}
    for name, model in MODELS.items():
        path = given.get(name) or (nine_models.cached_checkpoint(name) if cached else None)
        if path is not None:
            look = nine_models.measure_model(model, path)
            found[name] = path, look, nine_models.depth_gradients(look)
    missing = [model for name, model in MODELS.items() if name not in found]
    seconds = nine_models.look_seconds(missing, max_n)
    _print(found, missing, seconds, max_n)
    threads = torch.get_num_threads()
    models: dict[str, Any] = {}
    for name, model in MODELS.items():
        models[name] = {"layers": model.layers, "width": model.width}
        if name in found:
            path, look, gradients = found[name]
            models[name] |= {"weights": path.name, "gradients": [_data(one) for one in gradients]}
            models[name]["matrices"] = _matrices(look)
        else:
            models[name] |= {"weights": _RANDOM, "look_seconds": seconds[name], "threads": threads}
    write_results(out, "nine_models.json", {"models": models})
    return 0


def _print(
    found: dict[str, tuple[Path, Trajectories, list[DepthGradient]]],
    missing: list[ModelShape],
    seconds: dict[str, float | None],
    max_n: int | None,
) -> None:
    from spectral_fast.lifecycle.nine_models import STATISTICS

    for name, (path, _, gradients) in found.items():
        print(f"{name}, measured from {path}")
        roles = dict.fromkeys(one.role for one in gradients)
        of = {(one.role, one.statistic): one for one in gradients}
        headings = ["role", *(f"{statistic}, gradient" for statistic in STATISTICS)]
        print_columns(headings, [[role, *(_cell(of[role, s]) for s in STATISTICS)] for role in roles])
        print()
    if found:
        print("mean over layers; first layer to last on a line through them, with its 95 % interval\n")
    if missing:
        threads = torch.get_num_threads()
        print(f"not on disk: {_RANDOM}")
        rows = []
        for model in missing:
            time = seconds[model.name]
            cell = f"not measured: above --max-n {max_n}" if time is None else number(time)
            rows.append([model.name, f"{model.layers} × {model.width}", str(6 * model.layers), cell])
        print_columns(["model", "layers", "matrices", f"seconds a look, {threads} threads"], rows, left=2)


def _cell(one: DepthGradient) -> str:
    slope = f"{number(one.mean)}, {one.slope:+.2g}"
    return slope if one.low != one.low else f"{slope} [{one.low:+.2g}, {one.high:+.2g}]"


def _data(one: DepthGradient) -> dict[str, Any]:
    data: dict[str, Any] = plain(one)
    return data


def _matrices(look: Trajectories) -> list[dict[str, Any]]:
    return [
        {
            **{"name": name, "layer": layer, "role": role},
            **{statistic: plain(float(values[0, place])) for statistic, values in look.values.items()},
        }
        for place, (name, layer, role) in enumerate(zip(look.names, look.layers, look.roles, strict=True))
    ]


def _named_path(text: str) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    if not equals or name not in MODELS:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=PATH with a name of {', '.join(MODELS)}")
    return name, Path(path)
