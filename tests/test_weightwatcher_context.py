"""Entering and leaving weightwatcher_accelerated: everything is put back, and nothing is replaced by half."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import threading

import numpy as np
import pytest

import spectral_fast
from spectral_fast import weightwatcher as replacement
from spectral_fast import weightwatcher_accelerated
from tests.oracles import weightwatcher_models as models


@pytest.fixture(scope="module", autouse=True)
def quiet():
    if importlib.util.find_spec("weightwatcher") is None:
        pytest.skip("weightwatcher is not installed")
    with models.quiet():
        yield


@pytest.fixture(scope="module")
def modules():
    return {name: importlib.import_module(f"weightwatcher.{name}") for name in replacement._USED}


@pytest.fixture
def fits(modules):
    return modules["WW_powerlaw"]


@pytest.fixture
def unchanged(modules):
    """Fails the test where an attribute of weightwatcher is another object afterwards."""
    before = {name: dict(vars(module)) for name, module in modules.items()}

    def check() -> bool:
        # `is`, attribute by attribute: == would compare arrays.
        return all(
            vars(module).keys() == before[name].keys()
            and all(vars(module)[key] is value for key, value in before[name].items())
            for name, module in modules.items()
        )

    yield check
    assert check()


def test_everything_is_put_back(unchanged, modules) -> None:
    with weightwatcher_accelerated():
        replaced = [
            (name, attribute)
            for name, attributes in replacement._USED.items()
            for attribute in attributes
            if "spectral_fast" in (getattr(vars(modules[name])[attribute], "__module__", None) or "")
        ]
        assert replaced == [
            *(
                ("RMT_Util", attribute)
                for attribute in ("_svd_vals_accurate", "_svd_vals_fast", "pl_fit", "KernelDensity")
            ),
            ("WW_powerlaw", "pl_fit"),
            ("weightwatcher", "pl_fit"),
        ]
    assert unchanged()


def test_after_an_exception(unchanged) -> None:
    inside = []

    def interrupted() -> None:
        with weightwatcher_accelerated():
            inside.append(not unchanged())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert inside == [True]
    assert unchanged()


def test_nested(unchanged, modules) -> None:
    with weightwatcher_accelerated():
        outer = modules["RMT_Util"].pl_fit
        with weightwatcher_accelerated():
            assert modules["RMT_Util"].pl_fit is outer
        assert modules["RMT_Util"].pl_fit is outer
        with pytest.raises(ZeroDivisionError), weightwatcher_accelerated():
            _ = 1 / 0
        assert modules["RMT_Util"].pl_fit is outer
    assert unchanged()


def test_as_a_decorator(unchanged) -> None:
    @weightwatcher_accelerated()
    def inside() -> bool:
        return not unchanged()

    assert inside()
    assert unchanged()
    assert inside()


def test_threads_that_leave_in_another_order(unchanged) -> None:
    second_entered, first_left = threading.Event(), threading.Event()
    seen = []

    def second() -> None:
        with weightwatcher_accelerated():
            second_entered.set()
            first_left.wait(10)
            seen.append(unchanged())

    thread = threading.Thread(target=second)
    with weightwatcher_accelerated():
        thread.start()
        assert second_entered.wait(10)
    first_left.set()
    thread.join(10)
    assert seen == [False]  # still ours, although the thread that came first is gone
    assert unchanged()


def test_a_failed_entry_leaves_nothing(unchanged, modules, monkeypatch: pytest.MonkeyPatch) -> None:
    right = replacement._replacements

    class Interrupted:
        fit = "own"

        def __setattr__(self, name: str, value: str) -> None:
            super().__setattr__(name, value)
            if value != "own":
                raise KeyboardInterrupt

    last = Interrupted()
    monkeypatch.setattr(replacement, "_replacements", lambda: [*right(), (last, "fit", "ours")])
    with pytest.raises(KeyboardInterrupt):
        weightwatcher_accelerated().__enter__()
    assert last.fit == "own"
    assert unchanged()
    monkeypatch.undo()
    with weightwatcher_accelerated():
        assert not unchanged()


def test_without_weightwatcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "weightwatcher", None)
    with pytest.raises(ImportError, match=r"pip install 'spectral_fast\[weightwatcher\]'"):
        weightwatcher_accelerated().__enter__()


def test_a_dependency_that_is_missing_keeps_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_dependency(name: str) -> None:
        raise ModuleNotFoundError("No module named 'sklearn'", name="sklearn")

    monkeypatch.setattr(importlib, "import_module", without_dependency)
    with pytest.raises(ModuleNotFoundError, match="sklearn"):
        weightwatcher_accelerated().__enter__()


@pytest.mark.parametrize(
    ("module", "attribute"),
    [(name, attribute) for name, used in replacement._USED.items() for attribute in used],
)
def test_a_version_that_lacks_something(
    unchanged, modules, module: str, attribute: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.delattr(modules[module], attribute)
        with pytest.raises(RuntimeError, match=rf"weightwatcher 0\.7\.7 has no {module}\.{attribute}"):
            weightwatcher_accelerated().__enter__()
        assert replacement._originals == []
        assert replacement._inside == 0


def test_a_version_without_a_module(unchanged, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "weightwatcher.WW_powerlaw", None)
    with pytest.raises(RuntimeError, match="has no module WW_powerlaw"):
        weightwatcher_accelerated().__enter__()


def test_a_version_that_fits_otherwise(unchanged, fits, monkeypatch: pytest.MonkeyPatch) -> None:
    search = fits.WWFit.fit_power_law_standard

    def two_sided(fit) -> None:
        search(fit)
        fit.Ds = fit.Ds + 1 / (fit.N - np.arange(fit.N - 1))

    with monkeypatch.context() as patched:
        patched.setattr(fits.WWFit, "fit_power_law_standard", two_sided)
        with pytest.raises(RuntimeError, match=r"0\.7\.7 fits a power law by another convention"):
            weightwatcher_accelerated().__enter__()
        assert unchanged()


def test_it_is_public() -> None:
    assert "weightwatcher_accelerated" in spectral_fast.__all__
