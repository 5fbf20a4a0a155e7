"""The command line: what files hold, interruption, memory, drivers and devices."""

import json
import math
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from test_cli import matrix, rows_of

import spectral_fast
from spectral_fast import cli

pq = pytest.importorskip("pyarrow.parquet")


@pytest.fixture
def checkpoint(tmp_path):
    """A folder of a model with fused attention, experts, a bad, a packed and a degenerate matrix."""
    folder = tmp_path / "model"
    folder.mkdir()
    save_file(
        {
            "gpt_neox.embed_in.weight": matrix(50, 12, 0),
            "gpt_neox.layers.0.attention.query_key_value.weight": matrix(36, 12, 1),
            "gpt_neox.layers.0.attention.dense.weight": torch.full((12, 12), float("nan")),
            "gpt_neox.layers.0.mlp.experts.down_proj": matrix(36, 9, 2).view(3, 12, 9),
            "gpt_neox.layers.0.mlp.experts.gate_up_proj": matrix(36, 10, 3).view(2, 18, 10),
            "gpt_neox.layers.1.mlp.dense_h_to_4h.weight": torch.diag(torch.tensor([3.0, 1.0, 0.0])),
            "gpt_neox.layers.1.mlp.dense_4h_to_h.qweight": torch.ones(4, 4, dtype=torch.int32),
        },
        folder / "model.safetensors",
    )
    config = {"model_type": "gpt_neox", "num_attention_heads": 3}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def results(checkpoint, tmp_path, capsys):
    """What one run printed and wrote."""
    files = {kind: tmp_path / f"out.{kind}" for kind in ("csv", "json", "parquet")}
    options = [word for kind, path in files.items() for word in (f"--{kind}", str(path))]
    assert cli.main(["analyze", str(checkpoint), "--threads", "1", *options]) == 1
    return capsys.readouterr().out, files


def no_constants(text):
    raise AssertionError(f"{text} is no JSON")


def test_the_table_names_parts_and_says_what_is_missing(results):
    out, _ = results
    lines = out.splitlines()
    assert [line.split()[1] for line in lines[1:11]] == [
        *"qkvo", "mlp_gate_in", "mlp_gate_in", *["mlp_out"] * 3, "mlp_in",
    ]  # fmt: skip
    assert lines[1].endswith("query_key_value.weight[q]")
    assert lines[7].endswith("experts.down_proj[0]")
    assert "1 matrix outside the layers left out" in lines[11]
    assert lines[12] == (
        "not analysed: gpt_neox.layers.0.attention.dense.weight: 144 of its 144 entries are NaN or infinite"
    )
    assert lines[13].startswith("note: gpt_neox.layers.0.mlp.experts.gate_up_proj[0], ")
    assert lines[13].endswith("left whole: the layout of model_type 'gpt_neox' is not known")
    assert lines[14].startswith("skipped: gpt_neox.layers.1.mlp.dense_4h_to_h.qweight: int32 entries")


def test_json(results, checkpoint):
    _, files = results
    content = json.loads(files["json"].read_text(), parse_constant=no_constants)
    assert content["schema_version"] == 1
    assert content["complete"] is True
    assert (content["checkpoint"], content["model_type"]) == (str(checkpoint), "gpt_neox")
    assert (content["driver"], content["device"], content["threads"]) == (None, "cpu", 1)
    assert content["versions"]["torch"] == torch.__version__
    assert set(content["capabilities"]) == set(spectral_fast.capabilities())
    assert [t["name"] for t in content["skipped"]] == ["gpt_neox.layers.1.mlp.dense_4h_to_h.qweight"]
    assert content["skipped"][0]["shape"] == [4, 4]
    records = {record["name"]: record for record in content["matrices"]}
    assert len(records) == 10
    bad = records["gpt_neox.layers.0.attention.dense.weight"]
    assert bad["alpha"] is None
    assert bad["note"] == "144 of its 144 entries are NaN or infinite"
    diagonal = records["gpt_neox.layers.1.mlp.dense_h_to_4h.weight"]
    assert diagonal["condition_number"] is None  # infinite
    assert diagonal["stable_rank"] == pytest.approx(10 / 9)
    weight = matrix(36, 12, 1).view(3, 3, 4, 12)[:, 1].reshape(12, 12)
    key = records["gpt_neox.layers.0.attention.query_key_value.weight[k]"]
    assert (key["layer"], key["role"], key["rows"], key["cols"], key["dtype"]) == (0, "k", 12, 12, "float32")
    expected = spectral_fast.spectral_stats(weight)
    assert key["spectral_norm"] == pytest.approx(float(expected.spectral_norm), rel=1e-6)
    assert key["n_tail"] == int(expected.n_tail)


def test_csv_json_and_parquet_say_the_same(results):
    _, files = results
    from_csv = rows_of(files["csv"])
    from_json = json.loads(files["json"].read_text())["matrices"]
    table = pq.read_table(files["parquet"])
    from_parquet = table.to_pylist()
    assert len(from_csv) == len(from_json) == len(from_parquet) == 10
    for a, b, c in zip(from_csv, from_json, from_parquet, strict=True):
        assert list(a) == list(b) == list(c)
        for key, text in a.items():
            if isinstance(b[key], float):
                assert float(text) == b[key] == c[key]
            elif b[key] is None and text:
                assert not math.isfinite(float(text))
                assert not math.isfinite(c[key])
            else:
                assert (
                    text == ("" if b[key] is None else str(b[key])) == ("" if c[key] is None else str(c[key]))
                )
    about = json.loads(table.schema.metadata[b"spectral_fast"])
    assert about["schema_version"] == 1
    assert about["skipped"] == json.loads(files["json"].read_text())["skipped"]
    assert str(table.schema.field("n_tail").type) == "int64"
    assert str(table.schema.field("alpha").type) == "double"


def flat_checkpoint(path, layers=6):
    torch.save({f"layers.{i}.fc1.weight": matrix(30, 20, i) for i in range(layers)}, path)
    return path


# Runs the command in a process whose fourth matrix takes forever, which it says on standard error.
HANGING = """
import sys, time
from spectral_fast import analyze, cli
calls, svdvals = [], analyze.svdvals
def hang(tensor, driver):
    calls.append(1)
    if len(calls) == 4:
        print("hanging", file=sys.stderr, flush=True)
        time.sleep(100)
    return svdvals(tensor, driver=driver)
analyze.svdvals = hang
sys.exit(cli.main(sys.argv[1:]))
"""


def test_an_interrupt_leaves_what_was_finished(tmp_path):
    path = flat_checkpoint(tmp_path / "m.pt")
    outputs = {kind: tmp_path / f"out.{kind}" for kind in ("csv", "json", "parquet", "plot")}
    outputs["plot"] = tmp_path / "out.png"
    options = [word for kind, output in outputs.items() for word in (f"--{kind}", str(output))]
    command = [sys.executable, "-c", HANGING, "analyze", str(path), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr.readline() == "hanging\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert err == ""
    lines = out.splitlines()
    assert [line.split()[0] for line in lines[1:4]] == ["0", "1", "2"]
    assert lines[4] == "interrupted: 3 of 6 matrices analysed"
    assert len(rows_of(outputs["csv"])) == 3
    content = json.loads(outputs["json"].read_text())
    assert content["complete"] is False
    assert [record["layer"] for record in content["matrices"]] == [0, 1, 2]
    assert pq.read_table(outputs["parquet"]).num_rows == 3
    assert outputs["plot"].read_bytes().startswith(b"\x89PNG")
    names = {output.name for output in outputs.values()} | {"m.pt"}
    assert {file.name for file in tmp_path.iterdir()} == names


def test_an_interrupt_before_the_first_matrix(tmp_path, monkeypatch, capsys):
    path = flat_checkpoint(tmp_path / "m.pt")

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "analyze_matrix", interrupt)
    out = tmp_path / "out.csv"
    assert cli.main(["analyze", str(path), "--csv", str(out)]) == 130
    assert "interrupted: 0 of 6 matrices analysed" in capsys.readouterr().out
    assert rows_of(out) == []
    monkeypatch.setattr(cli, "open_checkpoint", interrupt)
    assert cli.main(["analyze", str(path)]) == 130
    assert capsys.readouterr().err == "spectral-fast: interrupted\n"


MEASURED = """
import re, sys
from pathlib import Path
from spectral_fast import cli
def peak():  # not ru_maxrss, which begins at the size of the process that started this one
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
cli.main(["analyze", sys.argv[1]])
before = peak()
code = cli.main(["analyze", sys.argv[2]])
print("grown", peak() - before)
sys.exit(code)
"""


def test_memory_stays_near_one_matrix(tmp_path):
    small = flat_checkpoint(tmp_path / "small.pt")
    folder = tmp_path / "model"
    folder.mkdir()
    # torch 2.9 maps its files as a whole.
    kinds = ["safetensors"] * 2 + (["safetensors"] if torch.__version__.startswith("2.9") else ["bin"]) * 2
    weight_map = {}
    for shard, kind in enumerate(kinds):  # 100 MB each, of 25 matrices of 4 MB
        file = f"{shard}.{kind}"
        tensors = {f"layers.{shard}.{i}.fc1.weight": torch.zeros(32768, 32) for i in range(25)}
        for tensor in tensors.values():
            tensor[0, 0] = 1
        (save_file if kind == "safetensors" else torch.save)(tensors, folder / file)
        weight_map |= dict.fromkeys(tensors, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert sum(file.stat().st_size for file in folder.iterdir()) > 400e6
    result = subprocess.run(
        [sys.executable, "-c", MEASURED, small, folder], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    grown = int(result.stdout.splitlines()[-1].removeprefix("grown "))
    assert grown < 60 << 10  # kilobytes: a matrix, a copy of it and workspace; not one shard


def test_progress_is_shown_on_a_terminal_only_and_leaves_nothing_on_standard_output(tmp_path, capsys):
    path = flat_checkpoint(tmp_path / "m.pt")
    assert cli.main(["analyze", str(path)]) == 0
    quiet = capsys.readouterr()
    assert quiet.err == ""
    terminal, end = pty.openpty()
    try:
        command = [sys.executable, "-m", "spectral_fast.cli", "analyze", str(path)]
        environment = {**os.environ, "TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8"}
        shown = subprocess.run(command, stdout=subprocess.PIPE, stderr=end, env=environment, check=True)
        assert b"analysing" in os.read(terminal, 100_000)
    finally:
        os.close(terminal)
        os.close(end)
    assert shown.stdout.decode() == quiet.out


def test_driver_and_threads_reach_the_computation(tmp_path, monkeypatch):
    path = flat_checkpoint(tmp_path / "m.pt", layers=1)
    calls = []
    monkeypatch.setattr(
        "spectral_fast.analyze.svdvals",
        lambda tensor, driver: (
            calls.append((driver, torch.get_num_threads())) or torch.linalg.svdvals(tensor)
        ),
    )
    before = torch.get_num_threads()
    for threads in ("1", "3"):
        assert cli.main(["analyze", str(path), "--driver", "gram", "--threads", threads]) == 0
    assert calls == [("gram", 1), ("gram", 3)]
    assert torch.get_num_threads() == before


def test_each_driver_gives_its_values(tmp_path, capsys):
    path = flat_checkpoint(tmp_path / "m.pt")
    tables = []
    for driver in spectral_fast.capabilities()["drivers"]["cpu"]:
        assert cli.main(["analyze", str(path), "--driver", driver]) == 0
        tables.append(capsys.readouterr().out)
    assert len(tables) > 1
    assert len(set(tables)) == 1


def test_impossible_drivers_devices_and_files(tmp_path, checkpoint, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    for options, parts in [
        (["--driver", "qr"], ["--driver qr: is unknown; choose from ", "bidiag", "torch"]),
        (["--driver", "gesvdj"], ["--driver gesvdj: is not available on cpu; choose from ", "bidiag"]),
        (["--device", "cuda"], ["--device cuda: torch ", "sees 0 GPUs"]),
        (["--device", "cuda:7"], ["sees 0 GPUs"]),
        (["--device", "mps"], ["is neither cpu nor cuda"]),
        (["--device", "gpu"], ["is neither cpu nor cuda"]),
        (["--json", checkpoint / "config.json"], ["belongs to the checkpoint"]),
        (["--csv", checkpoint / "model.safetensors"], ["belongs to the checkpoint"]),
        (["--csv", tmp_path / "a", "--json", tmp_path / "a"], ["more than one file"]),
    ]:
        assert cli.main(["analyze", str(checkpoint), *map(str, options)]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        for part in parts:
            assert part in captured.err
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert cli.main(["analyze", str(checkpoint), "--device", "cuda", "--compare"]) == 2
    assert "--compare times the CPU only" in capsys.readouterr().err
    for threads in ("0", "-1", "two"):
        with pytest.raises(SystemExit) as caught:
            cli.main(["analyze", str(checkpoint), "--threads", threads])
        assert caught.value.code == 2
        assert f"argument --threads: '{threads}' is not a positive whole number" in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu(tmp_path, capsys):
    path = flat_checkpoint(tmp_path / "m.pt")
    tables = []
    for device in ("cpu", "cuda"):
        assert cli.main(["analyze", str(path), "--device", device]) == 0
        tables.append(capsys.readouterr().out)
    assert tables[0] == tables[1]


def test_a_matrix_that_fails_on_the_way_is_a_row_not_an_abort(tmp_path, monkeypatch, capsys):
    path = flat_checkpoint(tmp_path / "m.pt", layers=3)
    svdvals = torch.linalg.svdvals
    errors = iter([torch.OutOfMemoryError("too much"), ValueError("driver 'gram' is not available")])

    def fail_twice(tensor, driver):
        for error in errors:
            raise error
        return svdvals(tensor)

    monkeypatch.setattr("spectral_fast.analyze.svdvals", fail_twice)
    assert cli.main(["analyze", str(path)]) == 1
    out = capsys.readouterr().out
    assert "not analysed: layers.0.fc1.weight: out of memory on cpu" in out
    assert "not analysed: layers.1.fc1.weight: driver 'gram' is not available" in out
    assert len(out.splitlines()) == 6


def test_a_broken_config_is_a_warning(checkpoint, capsys):
    (checkpoint / "config.json").write_text("{")
    assert cli.main(["analyze", str(checkpoint)]) == 1
    captured = capsys.readouterr()
    assert "spectral-fast: warning: ignored: " in captured.err
    assert str(Path("config.json")) in captured.err
    assert "query_key_value.weight[q]" not in captured.out
    assert "query_key_value.weight, " in captured.out
    assert ": left whole: its layout depends on the model" in captured.out
