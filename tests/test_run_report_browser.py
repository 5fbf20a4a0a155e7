"""The report of a run in a real browser, light and dark, on a screen and on a telephone."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from spectral_fast.monitor.report import write_report
from tests.gates import missing
from tests.monitored import SMALL, write_run

if importlib.util.find_spec("PySide6") is None:
    missing("PySide6 is not installed: the test extra has it on Linux")

WIDTHS = (1280, 400)


def visit(page, scheme="light"):
    """What the browser saw, at each of WIDTHS; see tests/browser.py."""
    command = [sys.executable, "-m", "tests.browser", str(page), scheme, *map(str, WIDTHS)]
    root = Path(__file__).parent.parent
    run = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120, env=dict(os.environ))
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser")
    long = ("a" * 300, None, "other", 24, 16)
    kinds = {step: "exact" if step % 5 == 0 else "tracked" for step in range(7)}
    write_run(folder / "run", kinds, [*SMALL, long])
    return write_report(folder / "run", folder / "out")[0]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_in_a_browser(page, scheme):
    seen = visit(page, scheme)
    assert seen["console"] == []
    assert set(seen["requests"]) == {page.as_uri()}
    for width, look in zip(WIDTHS, seen["looks"], strict=True):
        assert look["inner"] == width
        assert look["scroll"] <= width
        assert look["outside"] == []
        assert len(look["images"]) == page.read_text(encoding="utf-8").count("<img ") > 20
        for image in look["images"]:
            assert image["complete"]
            assert image["natural"] > 0
            # A panel has letters of 11 points at 518 pixels: seven at least are left of them.
            assert image["width"] >= 330
            assert len(image["alt"]) > 40
        for text in (
            "Spectra of the run run",
            "Stable rank over layers and steps",
            "First and last values",
            "h.1.mlp.fc1",
        ):
            assert text in look["text"]
        assert look["background"] == {"light": "rgb(255, 255, 255)", "dark": "rgb(21, 24, 28)"}[scheme]


def test_the_browser_sees_what_is_wrong_with_a_page(tmp_path):
    """So that its silence above means something."""
    page = tmp_path / "bad.html"
    page.write_text(
        '<!DOCTYPE html><meta name="viewport" content="width=device-width"><title>bad</title><main>'
        '<img alt="broken" src="data:image/png;base64,AAAA"><img alt="elsewhere" src="other.png">'
        '<div style="width:2000px">wide</div></main><script>missing()</script>'
    )
    seen = visit(page)
    assert any("missing is not defined" in message for message in seen["console"])
    assert (tmp_path / "other.png").as_uri() in seen["requests"]
    for look in seen["looks"]:
        assert [image["natural"] for image in look["images"]] == [0, 0]
        assert look["scroll"] >= 2000
        assert "DIV" in look["outside"]
