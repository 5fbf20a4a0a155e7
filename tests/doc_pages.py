"""The pages of the documentation as data: code blocks with their marks, inline code, links, anchors."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = (".ci", "benchmarks", "csrc", "docs", "examples", "spectral_fast", "tests")

# What may stand in a comment on the line above a block: <!-- KIND: REASON -->.
_MARK = re.compile(r"<!-- (not run|slow|torchrun): (.+) -->")
_FENCE = re.compile(r"^( *)```(\w*)\s*$")
# The first word of an indented or unnamed block that makes it commands.
COMMANDS = ("spectral-fast", "make", "python", "pip", "pytest", "torchrun", "git", "cd")


@dataclass(frozen=True)
class Block:
    """A code block. kind, reason: of the mark above it, or ""."""

    page: Path
    line: int  # of its first line of code, from 1
    language: str
    code: str
    kind: str = ""
    reason: str = ""

    @property
    def where(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    def compiled(self) -> object:
        """As Python, with the page's line numbers."""
        return compile("\n" * (self.line - 1) + self.code, str(self.page), "exec")


@cache
def pages() -> tuple[Path, ...]:
    return tuple(path for path in files() if path.suffix == ".md")


@cache
def files() -> tuple[Path, ...]:
    """Of the repository, at the root and in its folders. (A copy without .git is tested too.)"""
    found = [path for path in ROOT.iterdir() if path.is_file()]
    for folder in FOLDERS:
        found += [path for path in (ROOT / folder).rglob("*") if path.is_file()]
    return tuple(sorted(found))


@cache
def blocks(page: Path) -> tuple[Block, ...]:
    """Fenced blocks, and indented ones that are commands ("console") or anything else ("text")."""
    found = []
    lines = page.read_text(encoding="utf-8").splitlines()
    at = 0
    while at < len(lines):
        fence = _FENCE.match(lines[at])
        if fence is None and not _indented(lines, at):
            at += 1
            continue
        mark = _MARK.fullmatch(lines[at - 1].strip()) if at else None
        first = at
        if fence is not None:
            end = next(i for i in range(at + 1, len(lines)) if lines[i].strip() == "```")
            code, language, at = lines[at + 1 : end], fence[2], end + 1
            first += 1
        else:
            while at < len(lines) and (lines[at].startswith("    ") or not lines[at].strip()):
                at += 1
            code, language = lines[first:at], ""
        code = [line.removeprefix("    " if fence is None else fence[1]) for line in code]
        if language in ("", "sh", "console"):
            language = (
                "console" if code[0].split(" ")[0] in COMMANDS else "text" if fence is None else language
            )
        kind, reason = mark.groups() if mark is not None else ("", "")
        found.append(Block(page, first + 1, language, "\n".join(code).rstrip() + "\n", kind, reason))
    return tuple(found)


def _indented(lines: list[str], at: int) -> bool:
    """Whether an indented block begins: behind an empty line, and not the next paragraph of a list."""
    if not lines[at].startswith("    ") or (at and lines[at - 1].strip()):
        return False
    before = next((line for line in reversed(lines[:at]) if line.strip() and not line.startswith(" ")), "")
    return not re.match(r"[-*]|\d+\.", before) or lines[at].startswith("       ")


def prose(page: Path) -> str:
    """The text without its blocks."""
    text = re.sub(r"^( *)```.*?^ *```$", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)
    return re.sub(r"(?<=\n\n)(?:    .*\n)+", "", text)


def code_spans(page: Path) -> list[str]:
    return [" ".join(span.split()) for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", prose(page))]


def links(page: Path) -> Iterator[str]:
    """Targets of links and pictures."""
    text = re.sub(r"`[^`]*`", "", prose(page))
    yield from re.findall(r"\]\(([^)\s]+)\)", text)


@cache
def anchors(page: Path) -> frozenset[str]:
    """As GitHub makes them: lower case, no punctuation, hyphens for spaces, a number where one is taken."""
    taken: Counter[str] = Counter()
    found = set()
    for heading in re.findall(r"^#+ +(.+?) *$", prose(page), re.M):
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        found.add(f"{slug}-{taken[slug]}" if taken[slug] else slug)
        taken[slug] += 1
    return frozenset(found)
