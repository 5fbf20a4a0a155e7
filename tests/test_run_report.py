"""The report of a run: its numbers, its edges, its files and the command."""

import math
import re
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from spectral_fast import cli
from spectral_fast.monitor.parquet import ParquetSink, RunError
from spectral_fast.monitor.record import Look, MatrixLook
from spectral_fast.monitor.report import write_report
from spectral_fast.monitor.report.history import History
from spectral_fast.monitor.report.maps import heat_maps
from tests.monitored import SMALL, look, write_run

KINDS = {step: "exact" if step % 5 == 0 else "tracked" for step in range(12)}


def one(name, layer, role, kind, statistics, errors=None, held=(), svdvals=()):
    values = np.array(svdvals, dtype=np.float32)
    return MatrixLook(name, layer, role, 4, 2, "float32", kind, statistics, errors or {}, held, values)


def history_of(path, looks):
    sink = ParquetSink(path)
    for at in looks:
        sink(at)
    sink.close()
    return History(path)


def test_values_errors_and_held_by_step_and_matrix(tmp_path):
    write_run(tmp_path / "run", KINDS)
    history = History(tmp_path / "run")
    # By role, then layer.
    assert [(m.role, m.layer) for m in history.matrices] == [("q", 0), ("q", 1), ("mlp_in", 0), ("mlp_in", 1)]
    assert history.steps.tolist() == list(range(12))
    assert history.exact.tolist() == [step % 5 == 0 for step in range(12)]
    order = [0, 2, 1, 3]
    for name in ("stable_rank", "alpha"):
        found = history.statistic(name)
        for step in range(12):
            matrices = look(step, KINDS[step]).matrices
            for place, index in enumerate(order):
                matrix = matrices[index]
                assert found.value[step, place] == matrix.statistics[name]
                assert found.held[step, place] == (name in matrix.held)
                error = found.error[step, place]
                assert error == matrix.errors[name] if name in matrix.errors else math.isnan(error)
    (step, values), *_ = history.spectra(1)
    assert step == 0
    assert values.tolist() == look(0).matrices[2].svdvals.tolist()
    assert len(history.spectra(1)) == 3


def test_an_exact_value_wins_at_its_step_and_is_compared_with_the_estimate_before(tmp_path):
    def at(step, kind, a, error=None, held=()):
        errors = {} if error is None else {"alpha": error}
        return Look(step, kind, 0.0, 0.0, 0.0, 5, 1, [one("a", 0, "q", kind, {"alpha": a}, errors, held)])

    history = history_of(tmp_path, [
        at(0, "exact", 2.0), at(3, "tracked", 2.5), at(5, "exact", 2.0),     # no error stated
        at(8, "tracked", 2.2, 0.1), at(9, "tracked", 4.0, 0.5, ("alpha",)),  # only the last one counts
        at(9, "exact", 5.0), at(10, "exact", 1.0), at(12, "tracked", 9.0),
    ])  # fmt: skip
    assert history.statistic("alpha").value[:, 0].tolist() == [2.0, 2.5, 2.0, 2.2, 5.0, 1.0, 9.0]
    audit = history.audit("alpha")
    assert audit.gap.tolist() == [2, 0]
    assert audit.difference == pytest.approx([0.25, 0.2])
    assert math.isnan(audit.interval[0])
    assert audit.interval[1] == pytest.approx(1.96 * 0.5 / 5)
    assert audit.held.tolist() == [False, True]


def test_exact_values_of_a_tracked_look_are_not_compared(tmp_path):
    """A tracker looks at small matrices exactly: what the weights did since is no error of an estimate."""

    def at(step, kind, error, a):
        errors = {} if kind == "exact" else {"alpha": error}
        return Look(step, kind, 0.0, 0.0, 0.0, 5, 1, [one("a", 0, "q", kind, {"alpha": a}, errors)])

    looks = [at(0, "exact", 0, 2.0), at(4, "tracked", 0.0, 2.5), at(5, "exact", 0, 3.0)]
    looks += [at(9, "tracked", 0.1, 3.5), at(10, "exact", 0, 4.0)]
    assert history_of(tmp_path, looks).audit("alpha").difference == pytest.approx([0.125])


def test_a_heat_map_leaves_out_what_was_not_looked_at(tmp_path):
    def at(step, layers, every):
        matrices = [one(f"{n}", n, "q", "exact", {"alpha": 10.0 * n + step}) for n in layers]
        return Look(step, "exact", 0.0, 0.0, 0.0, every, 0, matrices)

    # Layer 1 has no q; layer 3 is missing once; a look due at 4 was not made.
    history = history_of(tmp_path, [at(0, (0, 2, 3), 2), at(2, (0, 2), 2), at(6, (0, 2, 3), 4)])
    (panel,) = heat_maps(history, "alpha", "α")
    drawn = panel.draw.keywords
    assert drawn["names"] == [0, 1, 2, 3]
    nan = math.nan
    expected = [[0, 2, 6], [nan, nan, nan], [20, 22, 26], [30, nan, 36]]
    np.testing.assert_array_equal(drawn["grid"], expected)
    assert list(zip(drawn["starts"], drawn["ends"], strict=True)) == [(0, 2), (2, 4), (6, 10)]
    assert panel.alt == (
        "Heat map of α of the role query, layers 0 to 3, steps 0 to 6. "
        "The first row goes from 0.00 to 6.00, the last from 30.0 to 36.0."
    )


def test_a_long_run_is_drawn_in_as_many_columns_as_can_be_seen(tmp_path):
    looks = [
        Look(step, "exact", 0.0, 0.0, 0.0, 1, 0, [one("a", 0, "q", "exact", {"alpha": float(step)})])
        for step in range(1500)
    ]
    (panel,) = heat_maps(history_of(tmp_path, looks), "alpha", "α")
    drawn = panel.draw.keywords
    assert len(drawn["starts"]) <= 600
    assert drawn["starts"][0] == 0
    assert drawn["ends"][-1] == 1500
    assert (drawn["starts"][1:] == drawn["ends"][:-1]).all()
    # Each column shows the last look in it.
    assert (drawn["grid"][0] == drawn["ends"] - 1).all()


def pictures(page):
    return re.findall(r'<img src="data:image/svg\+xml;base64,([^"]+)" alt="([^"]+)"', page)


def png_size(path):
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", data[16:24])


@pytest.fixture(scope="module")
def command_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    write_run(folder / "run", KINDS)
    code = cli.main(["report", str(folder / "run")])
    return code, folder / "run-report"


def test_the_command_writes_a_page_and_pictures(command_run):
    code, out = command_run
    assert code == 0
    names = ["alpha", "alpha_hill", "alpha_ranksize", "audit", "cost", "sigma_1", "spectra", "stable_rank"]
    assert sorted(file.name for file in out.iterdir()) == sorted(
        [*(f"{n}.png" for n in names), "report.html"]
    )
    page = (out / "report.html").read_text(encoding="utf-8")
    # Two roles: four maps and sigma_1 each; two layers of spectra each; cost; all five statistics compared.
    assert len(pictures(page)) == 2 * 4 + 2 + 2 * 2 + 3 + 5
    assert all(alt.strip().endswith(".") for _, alt in pictures(page))
    assert png_size(out / "cost.png") == (3 * 540, 350 + 60)
    assert "3 exact, 9 tracked, at steps 0 to 11" in page
    assert "still being written" not in page


def test_the_page_asks_for_nothing(command_run):
    page = (command_run[1] / "report.html").read_text(encoding="utf-8")
    page = re.sub(r"base64,[^\"]+", "", page)
    assert not re.search(r"https?:|<script|<link|url\(|@import|\bon\w+=", page)
    assert set(re.findall(r'(?:src|href)="([^"#]*)', page)) == {"data:image/svg+xml;", ""}


def test_the_page_says_what_was_first_and_last(command_run):
    page = (command_run[1] / "report.html").read_text(encoding="utf-8")
    rows = re.findall(r"<tr>(.*?)</tr>", page)
    (row,) = [row for row in rows if "h.1.mlp.fc1.weight" in row]
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", row)
    first, last = look(0).matrices[3], look(11, "tracked").matrices[3]
    rank = last.statistics["stable_rank"]
    assert cells[:4] == ["h.1.mlp.fc1.weight", "1", "MLP in", "24 × 16"]
    assert cells[4:6] == [f"{first.statistics['stable_rank']:.2f}", f"{rank:.5f} ± {1e-4 * rank:.5f}"]
    held = last.statistics["alpha_hill"]
    assert cells[9] == f"{held:.3f} ± {0.01 * held:.3f} (held)"


def test_the_same_run_gives_the_same_files(command_run, tmp_path):
    _, out = command_run
    write_report(out.with_name("run"), tmp_path)
    for file in out.iterdir():
        assert (tmp_path / file.name).read_bytes() == file.read_bytes()


HOSTILE = '<script>alert(1)</script>$\\frac"&日本'


@pytest.mark.parametrize(
    "case", ["one look", "no layers", "nan", "tracked only", "zero matrix", "hostile names", "no statistics"]
)
def test_edges(tmp_path, case):
    plain = look(0, matrices=SMALL[:1])
    if case == "no layers":
        names = [f"a matrix of quite a long name, number {i}" for i in range(20)]
        plain = look(0, matrices=[(name, None, "other", 9, 5) for name in names])
    elif case == "nan":
        nothing = dict.fromkeys(plain.matrices[0].statistics, math.nan)
        bad = replace(plain.matrices[0], statistics=nothing, svdvals=np.full(16, np.nan, np.float32))
        plain = replace(plain, matrices=[bad])
    elif case == "tracked only":
        plain = replace(look(3, "tracked", SMALL[:1]), every=0, track_every=0)
    elif case == "zero matrix":
        zeros = {**plain.matrices[0].statistics, "spectral_norm": 0.0, "stable_rank": math.nan}
        plain = replace(
            plain, matrices=[replace(plain.matrices[0], statistics=zeros, svdvals=np.zeros(16, np.float32))]
        )
    elif case == "hostile names":
        plain = look(0, matrices=[(HOSTILE, None, HOSTILE, 9, 5), (HOSTILE * 9, None, HOSTILE, 9, 5)])
    elif case == "no statistics":
        plain = replace(
            plain, matrices=[replace(plain.matrices[0], statistics={}, svdvals=np.zeros(0, np.float32))]
        )
    sink = ParquetSink(tmp_path / "run")
    sink(plain)  # not closed: the run is still being written
    written = write_report(tmp_path / "run", tmp_path / "out")
    page = written[0].read_text(encoding="utf-8")
    assert "This run is still being written, or its process was killed." in page
    assert len(pictures(page)) >= 3
    assert (tmp_path / "out/stable_rank.png").exists() == (
        case not in ("nan", "zero matrix", "no statistics")
    )
    if case == "hostile names":
        assert "<script" not in page
        assert "&lt;script&gt;alert(1)&lt;/script&gt;$\\frac&quot;&amp;日本" in page
    if case == "nan":
        assert "No look of this run has it." in page
    if case == "tracked only":
        assert "No exact look was made" in page
        assert "No exact look follows an estimate." in page
    sink.close()


def test_a_deep_model_shows_four_layers_of_spectra_and_all_in_the_maps(tmp_path):
    write_run(tmp_path / "run", {0: "exact", 5: "exact"}, [(f"h.{n}.q", n, "q", 6, 4) for n in range(48)])
    page = write_report(tmp_path / "run", tmp_path / "out")[0].read_text(encoding="utf-8")
    alts = [alt for _, alt in pictures(page)]
    assert sum(alt.startswith("Singular values of") for alt in alts) == 4
    assert any("h.47.q, 6 by 4" in alt for alt in alts)
    assert any("stable rank of the role query, layers 0 to 47" in alt for alt in alts)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing"], r"missing: is no directory; give the one that a ParquetSink wrote"),
        (["folder"], r"folder: is no run; give the directory that a ParquetSink wrote"),
        (["empty"], r"empty: has no look yet; wait for the first one"),
        (["run", "--out", "run"], r"run: is in the run, which holds Parquet files only"),
        (["run", "--out", "run/report"], r"report: is in the run"),
        (["run", "--out", "file"], r"file: is a file; give a directory to --out"),
        (["run", "--out", "file/below"], r"file/below: Not a directory"),
    ],
)
def test_the_command_says_what_is_wrong(tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("file").touch()
    ParquetSink("empty").close()
    write_run("run", {0: "exact"}, SMALL[:1])
    assert cli.main(["report", *arguments]) == 2
    assert re.search(rf"^spectral-fast: error: .*{message}", capsys.readouterr().err)
    assert sorted(file.name for file in Path("run").iterdir()) == ["_lock", "part-000000.parquet"]


def test_the_command_without_its_packages_names_the_extra(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert cli.main(["report", str(tmp_path)]) == 2
    told = "report needs pyarrow and matplotlib: pip install 'spectral_fast[parquet,demo]'"
    assert told in capsys.readouterr().err
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "matplotlib" else object())
    assert cli.main(["report", str(tmp_path)]) == 2
    assert "report needs matplotlib: pip install 'spectral_fast[demo]'" in capsys.readouterr().err


def test_the_overview_of_one_look_outside_of_layers(tmp_path):
    write_run(tmp_path / "run", {1: "exact"}, [("a", None, "other", 4, 2)])
    assert cli.main(["report", str(tmp_path / "run")]) == 0
    page = (tmp_path / "run-report/report.html").read_text(encoding="utf-8")
    assert "<dd>1 exact, at step 1</dd>" in page
    assert "<dd>1: " in page


def test_a_run_without_a_look_raises(tmp_path):
    ParquetSink(tmp_path / "run").close()
    with pytest.raises(RunError, match="has no look yet"):
        write_report(tmp_path / "run", tmp_path / "out")
    assert not (tmp_path / "out").exists()
