"""TensorBoardSink and WandbSink: really run, and their files read back."""

import json
import math
import resource
import struct
import sys
import time
from contextlib import contextmanager

import numpy as np
import pytest
import torch.utils.tensorboard
import wandb
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.proto import wandb_internal_pb2

from spectral_fast.monitor.metrics import metrics
from spectral_fast.monitor.record import ESTIMATED, Look, MatrixLook
from spectral_fast.monitor.tensorboard import TensorBoardSink
from spectral_fast.monitor.wandb import WandbSink
from tests.monitored import look


def one(name, layer, role, statistics, held=()):
    return MatrixLook(
        name, layer, role, 4, 4, "float32", "tracked", statistics, {}, held, np.ones(2, np.float32)
    )


def test_names_are_stable_and_only_what_was_computed_is_named():
    found = Look(
        7, "tracked", 0.0, 0.25, 0.01, 50, 2,
        [
            one("h.0.q", 0, "q", {"alpha": 2.0, "stable_rank": 10.0}, held=("alpha",)),
            one("h.11.q", 11, "q", {"alpha": 4.0, "stable_rank": math.nan}),
            one("h.0.experts[0]", 0, "mlp_in", {"stable_rank": 1.0}),
            one("h.0.experts[1]", 0, "mlp_in", {"stable_rank": 2.0}),
            one("lm_head", None, "head", {"stable_rank": 5.0, "alpha": math.inf}),
        ],
    )  # fmt: skip
    assert metrics(found, ("alpha", "stable_rank")) == {
        "spectra_alpha/q/layer11": 4.0,
        "spectra_stable_rank/q/layer00": 10.0,
        "spectra_stable_rank/mlp_in/layer00/h.0.experts[0]": 1.0,
        "spectra_stable_rank/mlp_in/layer00/h.0.experts[1]": 2.0,
        "spectra_stable_rank/mlp_in/mean": 1.5,
        "spectra_stable_rank/head/lm_head": 5.0,
        "spectra_cost/seconds": 0.25,
        "spectra_cost/share": 0.01,
        "spectra_cost/every": 50.0,
        "spectra_cost/track_every": 2.0,
    }


def scalars(folder):
    """{tag: {step: (value, time)}} of all event files in a folder."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {
        tag: {event.step: (event.value, event.wall_time) for event in events.Scalars(tag)}
        for tag in events.Tags()["scalars"]
    }


def assert_written(read, looks, statistics=ESTIMATED):
    expected = {at.step: metrics(at, statistics) for at in looks}
    assert set(read) == {tag for named in expected.values() for tag in named}
    for tag, of_tag in read.items():
        assert set(of_tag) == {step for step, named in expected.items() if tag in named}
        for step, (value, _) in of_tag.items():
            assert value == np.float32(expected[step][tag])  # TensorBoard's scalars are float32


def test_tensorboard_writes_scalars(tmp_path):
    looks = [look(0), look(1, "tracked"), look(5)]
    sink = TensorBoardSink(tmp_path)
    for at in looks:
        sink(at)
        assert_written(scalars(tmp_path), looks[: looks.index(at) + 1])  # before it is closed, too
    sink.close()
    sink.close()
    read = scalars(tmp_path)
    assert_written(read, looks)
    # Held alphas are no values of step 1.
    assert set(read["spectra_alpha/q/layer01"]) == {0, 5}
    assert set(read["spectra_stable_rank/q/mean"]) == {0, 1, 5}
    assert read["spectra_stable_rank/q/mean"][5][1] == looks[2].time


def test_tensorboard_takes_the_script_s_own_writer(tmp_path):
    writer = torch.utils.tensorboard.SummaryWriter(tmp_path)
    sink = TensorBoardSink(writer, statistics=["condition_number"])
    writer.add_scalar("loss", 2.5, 3)
    sink(look(3))
    sink.close()
    writer.add_scalar("loss", 2.0, 4)
    writer.close()
    read = scalars(tmp_path)
    assert [value for value, _ in read.pop("loss").values()] == [2.5, 2.0]
    assert_written(read, [look(3)], ["condition_number"])
    with pytest.raises(ValueError, match="its SummaryWriter is closed"):
        sink(look(4))


@contextmanager
def largest_file(size):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnhandledThreadExceptionWarning"
)  # TensorBoard's own thread
def test_tensorboard_on_a_full_disk_takes_the_look_again(tmp_path):
    sink = TensorBoardSink(tmp_path)
    sink(look(0))
    (events,) = tmp_path.iterdir()
    with largest_file(events.stat().st_size + 50), pytest.raises(OSError, match="File too large"):
        sink(look(1))
    time.sleep(1.1)  # an event file has its name from the second
    sink(look(1))
    sink.close()
    assert len(list(tmp_path.iterdir())) == 2
    assert_written(scalars(tmp_path), [look(0), look(1)])


@pytest.fixture(scope="module")
def quiet_wandb():
    """Without its messages, and with its process ended."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_SILENT", "true")
        yield
        wandb.teardown()


@pytest.fixture
def offline(quiet_wandb, tmp_path):
    return {"mode": "offline", "dir": tmp_path}


def leveldb_log(content):
    """The records of a W&B file: seven bytes, then LevelDB's log format in blocks of 32 KiB."""
    assert content[:4] == b":W&B"
    at, whole = 7, b""
    while at + 7 <= len(content):
        if (left := -at % 32768) < 7:  # no room for a header: the block ends in padding
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, at)
        at += 7 + length
        if at > len(content):
            return
        whole += content[at - length : at]
        if kind in (1, 4):  # whole, or the last piece
            yield whole
            whole = b""


def wandb_records(folder):
    """Rows of the history and the metrics defined, from the file of the only finished run."""
    (file,) = folder.glob("wandb/offline-run-*/*.wandb")
    deadline = time.monotonic() + 30
    records = []
    # W&B's process may still be writing when finish() has returned.
    while not any(record.WhichOneof("record_type") == "exit" for record in records):
        assert time.monotonic() < deadline
        records = [wandb_internal_pb2.Record.FromString(data) for data in leveldb_log(file.read_bytes())]
        time.sleep(0.05)
    rows, defined = [], {}
    for record in records:
        kind = record.WhichOneof("record_type")
        if kind == "history":
            items = record.history.item
            rows.append({item.key or item.nested_key[0]: json.loads(item.value_json) for item in items})
        elif kind == "metric":
            defined[record.metric.name or record.metric.glob_name] = record.metric.step_metric
    return rows, defined


def test_wandb_offline_in_a_run_of_its_own(offline):
    looks = [look(0), look(1, "tracked"), look(5)]
    sink = WandbSink(project="spectra", **offline)
    for at in looks:
        sink(at)
    sink.close()
    rows, defined = wandb_records(offline["dir"])
    assert defined["spectra_*"] == "spectra_step"
    ours = [{key: value for key, value in row.items() if not key.startswith("_")} for row in rows]
    assert ours == [{"spectra_step": at.step, **metrics(at, ESTIMATED)} for at in looks]


def test_wandb_in_the_script_s_run(offline):
    with wandb.init(project="training", **offline) as run:
        sink = WandbSink(run, statistics=["stable_rank"])
        for step in range(3):
            run.log({"loss": 3.0 - step})
            sink(look(step))
        sink.close()
        run.log({"loss": 0.0})  # the run is not ours to finish
        with pytest.raises(ValueError, match="give a run or arguments for a new one \\(project\\), not both"):
            WandbSink(run, project="another")
    rows, _ = wandb_records(offline["dir"])
    assert [row["loss"] for row in rows if "loss" in row] == [3.0, 2.0, 1.0, 0.0]
    ours = [
        {k: v for k, v in row.items() if k.startswith("spectra")} for row in rows if "spectra_step" in row
    ]
    assert ours == [{"spectra_step": step, **metrics(look(step), ["stable_rank"])} for step in range(3)]
    with pytest.raises(wandb.errors.UsageError):
        sink(look(3))


@pytest.mark.parametrize("sink", [TensorBoardSink, WandbSink])
@pytest.mark.parametrize("statistics", [["stable_rank", "beta"], "alpha", ["svdvals"]])
def test_unknown_statistics_are_refused(tmp_path, sink, statistics):
    with pytest.raises(
        ValueError, match="must be a sequence of field names of SpectralStats: spectral_norm, "
    ):
        sink(tmp_path, statistics=statistics)


def test_without_their_packages_the_errors_name_the_extras(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match=r"pip install 'spectral_fast\[tensorboard\]'"):
        TensorBoardSink(tmp_path)
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError, match=r"pip install 'spectral_fast\[wandb\]'"):
        WandbSink()
