"""What can be said of the documentation without running it: links, names, commands, completeness."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from spectral_fast.monitor.parquet import schema
from spectral_fast.stats import scalar_fields
from tests.doc_commands import UnknownCommandError, check_line, check_options, options_of
from tests.doc_pages import COMMANDS, ROOT, Block, anchors, blocks, code_spans, files, links, pages

DOCS = ROOT / "docs"
# Why a block may be left unrun. Another reason is another block that nobody runs: add it here knowingly.
REASONS = {"needs a CUDA device", "needs the network"}
ALL = [block for page in pages() for block in blocks(page)]
_FILE = re.compile(r"[\w./-]+/[\w.-]+\.(?:py|inl|cu|cpp|h|md|toml|pyi)")


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def test_blocks_were_found() -> None:
    languages = {block.language for block in ALL}
    assert languages >= {"python", "console", "text"}
    assert any(block.kind == "torchrun" for block in ALL)


def test_every_block_is_run_checked_or_marked() -> None:
    """tests/test_docs_run.py runs Python; commands are held against their parsers below."""
    unknown = [
        f"{block.where}: {block.language or 'no language'}; name it python, sh or text, or mark it"
        for block in ALL
        if block.language not in ("python", "console", "text") and not block.kind
    ]
    unknown += [
        f"{block.where}: {block.kind} is for Python"
        for block in ALL
        if block.kind in ("slow", "torchrun") and block.language != "python"
    ]
    assert not unknown


def test_unrun_blocks_have_a_known_reason(capsys: pytest.CaptureFixture[str]) -> None:
    unrun = [block for block in ALL if block.kind == "not run"]
    for block in unrun:
        print(f"{block.where}: not run: {block.reason}")  # pytest -rP shows them
        if block.language == "python":
            block.compiled()
    assert {block.reason for block in unrun} <= REASONS


@pytest.mark.parametrize("page", pages(), ids=name)
def test_commands(page: Path) -> None:
    """Blocks of commands, and commands in running text."""
    wrong = []
    for block in blocks(page):
        if block.language == "console" and block.kind != "not run":
            for line in commands(block):
                wrong += complaints(check_line, line, block.where)
    for span in code_spans(page):
        words = span.split()
        if words[0] in COMMANDS and len(words) > 1 and "<" not in span:
            wrong += complaints(check_options, span, name(page))
    assert not wrong


def commands(block: Block) -> list[str]:
    """One a line, but for what goes on behind a backslash or, in a usage, indented."""
    text = block.code.replace("\\\n", " ")
    return re.sub(r"\n {4,}", " ", text).splitlines()


def complaints(check: object, text: str, where: str) -> list[str]:
    assert callable(check)
    try:
        check(text)
    except UnknownCommandError as error:
        return [f"{where}: {text}: {error}"]
    return []


@pytest.mark.parametrize(
    "command",
    [
        "spectral-fast analyse PATH",
        "spectral-fast analyze PATH --cvs spectra.csv",
        "spectral-fast lifecycle train",
        "make tset",
        "make test WORKER=4",
        "pip install '.[demmo]'",
        "python -m benchmarks svdvals --suit minilm",
        "python examples/train_gtp.py",
        "rm -rf build",
    ],
)
def test_a_wrong_command_is_seen(command: str) -> None:
    with pytest.raises(UnknownCommandError):
        check_line(command)


@pytest.mark.parametrize("command", ["analyze", "report", "lifecycle train"])
def test_usage_lines_name_every_option(command: str) -> None:
    usage = [b.code for b in ALL if b.code.startswith(f"spectral-fast {command} ") and "[--" in b.code]
    assert usage
    for code in usage:
        assert set(re.findall(r"--[\w-]+", code)) == options_of(command)


@pytest.mark.parametrize("page", pages(), ids=name)
def test_links(page: Path) -> None:
    broken = []
    for target in links(page):
        if re.match(r"https?://|mailto:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        if not (there in files() or any(there in file.parents for file in files())):
            broken.append(f"{target}: no such file")
        elif anchor and anchor not in anchors(there):
            broken.append(f"{target}: no such heading; there are {', '.join(sorted(anchors(there)))}")
    assert not broken


@pytest.mark.parametrize("page", pages(), ids=name)
def test_files_named_in_text(page: Path) -> None:
    """A path in code type is a file of the repository, at the root or, where it is short, further down."""
    names = [path.relative_to(ROOT).as_posix() for path in files()]
    spans = [span for span in code_spans(page) if _FILE.fullmatch(span) and not span.startswith("runs/")]
    missing = [span for span in spans if not any(f"/{each}".endswith(f"/{span}") for each in names)]
    assert not missing


def test_every_page_is_reachable() -> None:
    """From docs/index.md."""
    seen, queue = set(), [DOCS / "index.md"]
    while queue:
        page = queue.pop()
        if page in seen:
            continue
        seen.add(page)
        targets = ((page.parent / target.partition("#")[0]).resolve() for target in links(page))
        queue += [target for target in targets if target in pages() and DOCS in target.parents]
    assert {name(page) for page in pages() if DOCS in page.parents} == {name(page) for page in seen}


def test_the_api_reference_is_what_its_script_writes() -> None:
    page = runpy.run_path(str(DOCS / "generate_api.py"))["page"]()
    same = page == (DOCS / "api.md").read_text(encoding="utf-8")
    assert same, "docs/api.md is out of date: run python docs/generate_api.py"


def test_every_statistic_is_defined() -> None:
    for page in (ROOT / "README.md", DOCS / "statistics.md"):
        text = page.read_text(encoding="utf-8")
        for field in scalar_fields():
            assert f"`{field}`" in text, (page, field)


def test_every_column_of_a_run_is_described() -> None:
    text = (DOCS / "sinks.md").read_text(encoding="utf-8")
    for column in schema().names:
        assert column in scalar_fields() or f"`{column}`" in text, column
