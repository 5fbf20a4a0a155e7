"""Writes docs/api.md from the package's signatures, docstrings and argument parsers.

    python docs/generate_api.py

The sources are parsed, not imported, so that what needs an optional package is described without it; only
the command's parsers are built. tests/test_docs.py fails where docs/api.md is not what this writes.
"""

from __future__ import annotations

import argparse
import ast
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs/api.md"
WIDTH = 100

# In the order of need. A name without a module is of __all__, and all of __all__ has to be there; the others
# are what those take, return and raise.
TOP_LEVEL = {
    "Singular values": ("svdvals", "svdvals_ex", "linalg.SvdvalsResult"),
    "Statistics": ("spectral_stats", "stats_from_svdvals", "SpectralStats"),
    "Exponents": (
        "fit_powerlaw",
        "PowerLawFit",
        "hill_alpha",
        "ranksize_slope",
        "goodness_of_fit",
        "GoodnessOfFit",
        "compare_lognormal",
        "LogNormalComparison",
    ),
    "Estimates and tracking": ("tail_stats", "TailStats", "SpectralTracker", "TrackedStats"),
    "Weights": (
        "weight_matrices",
        "WeightMatrix",
        "models.matrices.WeightMatrices",
        "models.matrices.SkippedTensor",
        "models.checkpoint.open_checkpoint",
        "models.checkpoint.Checkpoint",
        "models.files.CheckpointTensor",
        "models.files.CheckpointError",
    ),
    "Which path runs": ("explain", "heuristics.Plan", "capabilities"),
    "WeightWatcher": ("weightwatcher_accelerated",),
}
MONITOR = {
    "The monitor": ("SpectralMonitor", "MonitorReport", "Look", "MatrixLook", "SpectralCallback"),
    "Sinks": ("ParquetSink", "parquet.read_run", "parquet.RunError", "TensorBoardSink", "WandbSink"),
    "Ranks": ("ranks.Ranks", "distributed.DistributedRanks"),
}
LIFECYCLE = {
    "Train": (
        "config.ModelConfig",
        "config.TrainConfig",
        "corpus.Corpus",
        "corpus.CorpusError",
        "training.train",
        "training.Progress",
        "training.held_out_loss",
        "gpt.GPT",
        "run_folder.load_model",
        "run_folder.RunSummary",
        "run_folder.TrainingError",
    ),
    "Measure phenomena": (
        "trajectories.Trajectories",
        "wave.measure_wave",
        "wave.Wave",
        "gradient.measure_gradient",
        "gradient.Gradient",
        "gradient.InvertedU",
        "asymmetry.measure_asymmetry",
        "asymmetry.Asymmetry",
        "timescales.measure_timescales",
        "timescales.Timescales",
        "timescales.Decay",
        "scaling.measure_scaling",
        "scaling.Scaling",
        "series.Estimate",
        "findings.read_run",
        "findings.Run",
        "findings.measure_all",
        "findings.Measurement",
        "findings.findings",
        "findings.Finding",
    ),
    "Rank layers and prune": (
        "adapters.load_decoder",
        "adapters.Decoder",
        "perplexity.EvaluationText",
        "perplexity.evaluate",
        "evaluations.Evaluations",
        "importance.layer_alphas",
        "importance.measure_importance",
        "importance.Importance",
        "correlation.rank_correlation",
        "correlation.RankCorrelation",
        "pruning.measure_pruning",
        "pruning.Pruning",
        "pruning.Curve",
        "pruning.Ratio",
    ),
    "Reproduce": ("reproduce.reproduce", "reproduce.Plan", "reproduce.Reproduction", "reproduce.Trained"),
    "The nine models": (
        "nine_models.measure_model",
        "nine_models.depth_gradients",
        "nine_models.DepthGradient",
        "nine_models.look_seconds",
    ),
}
# Their methods are called by somebody else: the Trainer's callbacks, and those of Ranks once more.
CALLED_BY_OTHERS = ("SpectralCallback", "DistributedRanks")


@dataclass(frozen=True)
class Definition:
    """A class or function of a module, as parsed."""

    module: str
    node: ast.FunctionDef | ast.ClassDef

    @property
    def name(self) -> str:
        return self.node.name


@cache
def parse(module: str) -> tuple[ast.Module, Path]:
    """A module's syntax tree and file."""
    path = ROOT / (module.replace(".", "/") + ".py")
    if not path.exists():
        path = ROOT / module.replace(".", "/") / "__init__.py"
    return ast.parse(path.read_text(encoding="utf-8")), path


def definition(module: str, name: str) -> Definition:
    for node in parse(module)[0].body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
            return Definition(module, node)
    raise LookupError(f"{module} defines no {name}")


def public(package: str) -> dict[str, Definition]:
    """What a package's __all__ names, wherever it is defined."""
    tree, _ = parse(package)
    names: list[str] = []
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            names = ast.literal_eval(node.value)
    return {name: resolve(package, name) for name in names if not name.startswith("__")}


def resolve(module: str, name: str) -> Definition:
    """A definition, through the packages that hand it on."""
    tree, path = parse(module)
    if path.name == "__init__.py":
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and any(alias.name == name for alias in node.names):
                return resolve(str(node.module), name)
    return definition(module, name)


def section(package: str, groups: dict[str, tuple[str, ...]]) -> Iterator[str]:
    """A package's definitions, group by group."""
    known = public(package)
    wanted = [name for names in groups.values() for name in names if "." not in name]
    if left_out := set(known) - set(wanted) - {"SpectralMonitor"}:
        raise LookupError(f"{package}: no group in docs/generate_api.py has {', '.join(sorted(left_out))}")
    for title, names in groups.items():
        yield f"**{title}**"
        for name in names:
            module, _, last = name.rpartition(".")
            yield entry(definition(f"{package}.{module}", last) if module else known[name])


# Signatures


def arguments(function: ast.FunctionDef, *, method: bool) -> list[str]:
    """Each argument as written, with `*` and `/` where they belong."""
    a = function.args
    plain = [*a.posonlyargs, *a.args]
    defaults: list[ast.expr | None] = [None] * (len(plain) - len(a.defaults)) + list(a.defaults)
    parts = [written(arg, default) for arg, default in zip(plain, defaults, strict=True)]
    if a.posonlyargs:
        parts.insert(len(a.posonlyargs), "/")
    if a.vararg is not None:
        parts.append("*" + written(a.vararg, None))
    elif a.kwonlyargs:
        parts.append("*")
    parts += [written(arg, default) for arg, default in zip(a.kwonlyargs, a.kw_defaults, strict=True)]
    if a.kwarg is not None:
        parts.append("**" + written(a.kwarg, None))
    return parts[1:] if method else parts


def written(arg: ast.arg, default: ast.expr | None) -> str:
    text = arg.arg if arg.annotation is None else f"{arg.arg}: {ast.unparse(arg.annotation)}"
    if default is None:
        return text
    return f"{text}{' = ' if arg.annotation is not None else '='}{ast.unparse(default)}"


def call(name: str, parts: list[str], returns: ast.expr | None) -> str:
    end = f") -> {ast.unparse(returns)}" if returns is not None else ")"
    line = f"{name}({', '.join(parts)}{end}"
    if len(line) <= WIDTH:
        return line
    return "\n".join([f"{name}(", *(f"    {part}," for part in parts), end])


def decorators(node: ast.FunctionDef | ast.ClassDef) -> set[str]:
    return {ast.unparse(d).split("(")[0].rpartition(".")[2] for d in node.decorator_list}


def fields(node: ast.ClassDef) -> list[tuple[str, str, str]]:
    """Of a dataclass or NamedTuple: each public field as written, its name and the string below it."""
    found = []
    for at, item in enumerate(node.body):
        if not isinstance(item, ast.AnnAssign) or not isinstance(item.target, ast.Name):
            continue
        name = item.target.id
        if name.startswith("_"):
            continue
        below = node.body[at + 1] if at + 1 < len(node.body) else None
        value = below.value if isinstance(below, ast.Expr) else None
        says = value.value if isinstance(value, ast.Constant) and isinstance(value.value, str) else ""
        text = f"{name}: {ast.unparse(item.annotation)}"
        if item.value is not None and ast.unparse(item.value).split("(")[0] != "field":
            text += f" = {ast.unparse(item.value)}"
        found.append((text, name, says))
    return found


def methods(node: ast.ClassDef) -> Iterator[ast.FunctionDef]:
    """Public ones that say what they do."""
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and not item.name.startswith("_") and ast.get_docstring(item):
            yield item


# Docstrings to Markdown

SECTIONS = {"Args": "Arguments", "Attributes": "Attributes", "Raises": "Raises", "Returns": "Returns"}
_ROLE = re.compile(r":(?:func|class|mod|meth):`~?\.?([^`]+)`")
_ITEM = re.compile(r"((?:\*\*)?[A-Za-z_][\w.]*(?:, [A-Za-z_][\w.]*)*): (.*)")


def markdown(docstring: str, names: set[str]) -> str:
    """Paragraphs; lists of what a docstring says of `names`, and in its sections; diagrams as they are."""
    parts = []
    for block in re.split(r"\n\s*\n", docstring.strip("\n")):
        lines = block.split("\n")
        head = lines[0].removesuffix(":")
        if lines[0].endswith(":") and head in SECTIONS and len(lines) > 1:
            inside = textwrap.dedent("\n".join(lines[1:])).split("\n")
            parts.append(f"**{SECTIONS[head]}**\n\n{items(inside, None)}")
        elif lines[0].startswith("    "):
            parts.append(fenced(textwrap.dedent(block)))
        elif any(_names(line, names) for line in lines):
            parts.append(items(lines, names))
        elif all(line.startswith(("- ", "  ")) for line in lines):
            parts.append(inline(block))
        else:
            parts.append(inline(" ".join(line.strip() for line in lines).replace("::", ":")))
    return "\n\n".join(parts)


def _names(line: str, names: set[str] | None) -> re.Match[str] | None:
    """`a, b: text` where all of a, b are arguments (of a section: anything)."""
    found = _ITEM.match(line)
    if found is None or names is None:
        return found
    return found if set(found[1].split(", ")) <= names else None


def items(lines: list[str], names: set[str] | None) -> str:
    """A list. What an item goes on with is indented; other lines are a paragraph behind the list."""
    out: list[str] = []
    for line in lines:
        text = inline(line.strip())
        if (found := _names(line, names)) is not None:
            out.append(f"- `{found[1]}`: {inline(found[2])}")
        elif out and (line.startswith(" ") or not out[-1].startswith("- ")):
            out[-1] += f" {text}"
        else:
            out.append(f"\n{text}" if out else text)
    return "\n".join(out)


def inline(text: str) -> str:
    """Roles and double backticks as Markdown's code; no asterisk outside of it is emphasis."""
    text = _ROLE.sub(lambda found: linked(found[1]), text)
    text = re.sub(r"``([^`]+)``", lambda found: f"`{found[1]}`", text)
    parts = text.split("`")
    return "`".join(re.sub(r"\\?\*", r"\\*", part) if i % 2 == 0 else part for i, part in enumerate(parts))


def linked(path: str) -> str:
    """A name in code type, and where it has an entry on this page a link to that."""
    name = path.rpartition(".")[2]
    groups = (TOP_LEVEL, MONITOR, LIFECYCLE)
    entries = {one.rpartition(".")[2] for group in groups for names in group.values() for one in names}
    return f"[`{path}`](#{name.lower()})" if name in entries else f"`{path}`"


def fenced(text: str) -> str:
    return f"```text\n{text.rstrip()}\n```"


def documented(node: ast.FunctionDef | ast.ClassDef, names: set[str]) -> str:
    docstring = ast.get_docstring(node)
    if docstring is None:
        raise LookupError(f"{node.name} is public and has no docstring")
    return markdown(docstring, names)


# The page


def entry(found: Definition) -> str:
    path = parse(found.module)[1].relative_to(ROOT).as_posix()
    where = f"`{found.module}`, [source](../{path})"
    node = found.node
    if isinstance(node, ast.FunctionDef):
        signature = call(node.name, arguments(node, method=False), node.returns)
        body = documented(node, argument_names(node))
        return "\n\n".join([f"### {node.name}", where, fenced(signature), body])
    return "\n\n".join([f"### {node.name}", where, *of_class(node)])


def argument_names(function: ast.FunctionDef) -> set[str]:
    a = function.args
    return {arg.arg for arg in (*a.posonlyargs, *a.args, *a.kwonlyargs, a.vararg, a.kwarg) if arg is not None}


def of_class(node: ast.ClassDef) -> Iterator[str]:
    init = next((m for m in node.body if isinstance(m, ast.FunctionDef) and m.name == "__init__"), None)
    kept = fields(node)
    if init is not None:
        yield fenced(call(node.name, arguments(init, method=True), None))
    elif kept:
        yield fenced("\n".join([f"class {node.name}:", *(f"    {text}" for text, _, _ in kept)]))
    else:
        yield fenced(f"class {node.name}({', '.join(ast.unparse(base) for base in node.bases)})")
    names = argument_names(init) if init is not None else {name for _, name, _ in kept}
    yield documented(node, names)
    said = [f"- `{name}`: {inline(says)}" for _, name, says in kept if says]
    if said:
        yield "\n".join(said)
    for method in methods(node) if node.name not in CALLED_BY_OTHERS else ():
        kind = decorators(method)
        if "property" in kind:
            signature = f"{method.name}: {ast.unparse(method.returns)}" if method.returns else method.name
        else:
            parts = arguments(method, method="staticmethod" not in kind)
            signature = call(method.name, parts, method.returns)
        yield f"#### {node.name}.{method.name}"
        yield fenced(signature)
        yield documented(method, argument_names(method))


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """A parser and those of its sub-commands."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for each in action.choices.values():
                yield from parsers(each)


def command(parser: argparse.ArgumentParser) -> str:
    """A parser as a section, independent of how a version of argparse wraps its help."""
    parts = [f"### {parser.prog}"]
    if parser.description:
        parts.append(parser.description.replace("\n", " ").strip())
    rows, usage = [], [parser.prog]
    for action in parser._actions:
        if isinstance(action, argparse._HelpAction):
            continue
        if isinstance(action, argparse._SubParsersAction):
            usage.append(f"{action.metavar or 'COMMAND'} ...")
            rows += [(f"`{choice.dest}`", str(choice.help)) for choice in action._choices_actions]
            continue
        text, shown = as_typed(action)
        usage.append(shown)
        rows.append((f"`{text}`", (action.help or "") % {"default": action.default}))
    parts.append(fenced(" ".join(usage) if len(usage) < 3 else wrapped(usage)))
    if rows:
        parts.append("\n".join(["| | |", "|---|---|", *(f"| {cell(a)} | {cell(b)} |" for a, b in rows)]))
    if parser.epilog:
        parts.append(fenced(parser.epilog))
    return "\n\n".join(parts)


def cell(text: str) -> str:
    return text.replace("|", "\\|")


def as_typed(action: argparse.Action) -> tuple[str, str]:
    """An argument as it is typed, and as a usage line has it."""
    value = action.metavar or ("|".join(map(str, action.choices)) if action.choices else action.dest.upper())
    value = "" if action.nargs == 0 else str(value)
    if not action.option_strings:
        return value, {"+": f"{value} [{value} ...]", "?": f"[{value}]"}.get(str(action.nargs), value)
    text = f"{action.option_strings[-1]} {value}".rstrip()
    return text, text if action.required else f"[{text}]"


def wrapped(usage: list[str]) -> str:
    lines = [usage[0]]
    for part in usage[1:]:
        if len(lines[-1]) + len(part) + 1 > WIDTH:
            lines.append(" " * len(usage[0]))
        lines[-1] += " " + part
    return "\n".join(lines)


def page() -> str:
    """The text of docs/api.md."""
    from spectral_fast import cli

    sections = [
        "# API reference",
        "Written by `python docs/generate_api.py` from signatures, docstrings and argument parsers; not to "
        "be edited by hand. (\\*) is a batch of any shape, k = min(m, n), lambda = sigma^2.",
        "## spectral_fast",
        *section("spectral_fast", TOP_LEVEL),
        "## spectral_fast.monitor",
        "The guide is [monitor.md](monitor.md); what a sink writes, [sinks.md](sinks.md); many ranks, "
        "[distributed.md](distributed.md).",
        *section("spectral_fast.monitor", MONITOR),
        "## spectral_fast.lifecycle",
        "The main functions and what they return. [lifecycle.md](lifecycle.md) has the definitions.",
        *section("spectral_fast.lifecycle", LIFECYCLE),
    ]
    sections.append("## The command line")
    sections.append("[cli.md](cli.md) and [lifecycle.md](lifecycle.md) say what the commands write.")
    sections += [command(parser) for parser in parsers(cli._parser())]
    return "\n\n".join(sections) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
