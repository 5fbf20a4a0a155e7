"""Commands in the documentation, held against the parsers, Makefile targets and extras that there are."""

from __future__ import annotations

import argparse
import importlib.util
import re
import shlex
import tomllib
from functools import cache
from typing import Any

import benchmarks.__main__ as benchmarks
from spectral_fast import cli
from tests.doc_pages import ROOT

# Stands for what the reader has.
_PLACEHOLDER = re.compile(r"\.\.\.|…|[A-Z]+")


class UnknownCommandError(Exception):
    """A command that would not do what the page says; the message says why."""


def check_line(line: str) -> None:
    """A line of a console block. Raises UnknownCommandError."""
    words = shlex.split(line, comments=True)
    if not words:
        return
    if words[0] == "torchrun" and "-m" in words:
        check_line(shlex.join(["python", *words[words.index("-m") :]]))
    elif "[" in line and words[0] in ("spectral-fast", "python"):
        check_options(line)
    elif words[0] == "spectral-fast":
        _parse(cli._parser(), words[1:])
    elif words[0] == "make":
        _check_make(words[1:])
    elif words[0] == "pip" and words[1] == "install":
        _check_extras(words[2:])
    elif words[0] == "python" and words[1] == "-m":
        _check_module(words[2], words[3:])
    elif words[0] in ("python", "pytest"):
        _check_files([word for word in words[1:] if word.endswith(".py")])
    else:
        raise UnknownCommandError(
            f"nothing here knows {words[0]!r}; mark the block as not run, with a reason"
        )


def check_options(text: str) -> None:
    """A usage line, or a command in running text, which may leave out what it needs: options exist."""
    words = [word for word in re.sub(r"[\[\]]", " ", text).split() if not _PLACEHOLDER.fullmatch(word)]
    if words[:2] == ["python", "-m"]:
        if words[2] != "benchmarks":
            return check_line(text)
        parser, words = benchmarks._parser(), words[3:]
    elif words[0] == "spectral-fast":
        parser, words = cli._parser(), words[1:]
    else:
        return check_line(text)
    return _check_names(parser, words)


def _check_names(parser: argparse.ArgumentParser, words: list[str]) -> None:
    """Commands and options are there by these names: argparse takes an abbreviation too."""
    while words and (choices := _subcommands(parser)):
        names = words[0].split("|")
        if unknown := [name for name in names if name not in choices and not name.startswith("-")]:
            raise UnknownCommandError(f"{parser.prog} has no command {', '.join(unknown)}")
        if len(names) > 1 or names[0].startswith("-"):
            return
        parser, words = choices[names[0]], words[1:]
    for word in words:
        option = word.split("=")[0]
        if option.startswith("--") and option not in parser._option_string_actions:
            raise UnknownCommandError(f"{parser.prog} has no option {option}")


def options_of(command: str) -> set[str]:
    """The options of a command of spectral-fast, such as "lifecycle train"."""
    parser = cli._parser()
    for name in command.split():
        parser = _subcommands(parser)[name]
    return {option for option in parser._option_string_actions if option.startswith("--")} - {"--help"}


def _subcommands(parser: argparse.ArgumentParser) -> dict[str, Any]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def _parse(parser: argparse.ArgumentParser, words: list[str]) -> None:
    words = [word for word in words if word not in ("...", "…")]
    _check_names(parser, words)
    try:
        parser.parse_args(words)
    except SystemExit as error:
        if error.code:
            raise UnknownCommandError(f"{parser.prog} does not take {shlex.join(words)}") from error


def _check_module(module: str, words: list[str]) -> None:
    if module == "benchmarks":
        _parse(benchmarks._parser(), words)
    elif module == "spectral_fast.cli":
        _parse(cli._parser(), words)
    elif module == "pytest":
        _check_files([word for word in words if word.endswith(".py")])
    elif importlib.util.find_spec(module) is None:
        raise UnknownCommandError(f"there is no module {module}")


@cache
def _makefile() -> tuple[frozenset[str], frozenset[str]]:
    """Targets and variables."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^([a-z][\w-]*):(?!=)", text, re.M)
    return frozenset(targets), frozenset(re.findall(r"^(\w+) *[?:]=", text, re.M))


def _check_make(words: list[str]) -> None:
    targets, variables = _makefile()
    for word in words:
        name, assigns, _ = word.partition("=")
        if name not in (variables if assigns else targets):
            raise UnknownCommandError(f"the Makefile has no {name}")


def _check_extras(words: list[str]) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for word in words:
        found = re.fullmatch(r"(?:\.|spectral_fast)(?:\[([\w,]+)\])?", word)
        if found is None and not word.startswith("-"):
            raise UnknownCommandError(f"{word!r} is not this package; mark the block as not run")
        if found is not None and found[1]:
            for extra in found[1].split(","):
                if extra not in extras:
                    raise UnknownCommandError(f"pyproject.toml has no extra {extra}")


def _check_files(names: list[str]) -> None:
    for name in names:
        if not (ROOT / name).exists():
            raise UnknownCommandError(f"there is no {name}")
