"""ParquetSink and read_run: what goes in comes out once, whatever happens to the process or the disk."""

import json
import math
import multiprocessing
import os
import random
import resource
import signal
import sys
import time
from contextlib import contextmanager

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest

from spectral_fast.monitor import parquet
from spectral_fast.monitor.journal import Journal, read_journal
from spectral_fast.monitor.parquet import ESTIMATED, ParquetSink, RunError, read_run, schema
from spectral_fast.monitor.record import Look, MatrixLook
from spectral_fast.stats import scalar_fields
from tests.monitored import SMALL, look, quick_look, write_run, write_until_killed


def matrix_look(name="w", kind="exact", statistics=None, errors=None, held=(), svdvals=(2.0, 1.0), layer=0):
    values = np.array(svdvals, dtype=np.float32)
    return MatrixLook(name, layer, "q", 3, 2, "bfloat16", kind, statistics or {}, errors or {}, held, values)


def steps_of(path):
    return read_run(path, ["step"])["step"].to_pylist()


@contextmanager
def largest_file(size):
    """Let no file of this process grow beyond a size: writing ends short or fails, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_every_value_comes_back(tmp_path):
    exact, tracked = look(0), look(1, "tracked")
    sink = ParquetSink(tmp_path / "run")
    sink(exact)
    sink(tracked)
    for table in (read_run(tmp_path / "run"), (sink.close(), read_run(tmp_path / "run"))[1]):
        assert table.schema.equals(schema())
        rows = table.to_pylist()
        assert len(rows) == 2 * len(SMALL)
        pairs = [(a, m) for a in (exact, tracked) for m in a.matrices]
        for row, (of, matrix) in zip(rows, pairs, strict=True):
            for name in ("step", "time", "seconds", "share", "every", "track_every"):
                assert row[name] == getattr(of, name)
            for name in ("name", "layer", "role", "rows", "cols", "dtype", "kind"):
                assert row[name] == getattr(matrix, name)
            for name in scalar_fields():
                assert row[name] == matrix.statistics.get(name)
            for name in ESTIMATED:
                assert row[f"{name}_error"] == matrix.errors.get(name)
            assert tuple(row["held"]) == matrix.held
            assert row["svdvals"] == matrix.svdvals.tolist()


def test_missing_is_null_and_nan_is_nan(tmp_path):
    found = [
        matrix_look("a", statistics={"alpha": math.nan, "stable_rank": math.inf}, layer=None),
        matrix_look("b", "tracked", {"n_tail": 7}, {"alpha": 0.5}, svdvals=()),
    ]
    sink = ParquetSink(tmp_path)
    sink(Look(3, "tracked", 1.0, 0.1, 0.0, 25, 0, found))
    sink(Look(4, "tracked", 1.0, 0.1, 0.0, 25, 0, []))
    sink.close()
    a, b = read_run(tmp_path).to_pylist()
    assert math.isnan(a["alpha"])
    assert a["stable_rank"] == math.inf
    assert (a["layer"], a["kind"], a["xmin"], a["alpha_error"]) == (None, "exact", None, None)
    assert (b["kind"], b["n_tail"], b["alpha_error"], b["svdvals"]) == ("tracked", 7.0, 0.5, [])


def test_plain_readers_take_a_closed_run(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "_PART_BYTES", 20_000)
    run = tmp_path / "lr=1"  # no column of its own
    write_run(run, {step: "exact" if step % 5 == 0 else "tracked" for step in range(12)})
    assert len(list(run.glob("part-*.parquet"))) > 1
    assert sorted(f.name for f in run.iterdir() if not f.name.startswith("part-")) == ["_lock"]
    table = read_run(run)
    assert pyarrow.dataset.dataset(run).to_table().equals(table)
    pd.testing.assert_frame_equal(pd.read_parquet(run), table.to_pandas())


def test_columns_are_chosen_and_in_the_order_asked(tmp_path):
    write_run(tmp_path / "run", {0: "exact"})
    assert read_run(tmp_path / "run", ["alpha", "step"]).column_names == ["alpha", "step"]
    with pytest.raises(ValueError, match="no such column: beta; there are step, kind"):
        read_run(tmp_path / "run", ["beta"])


def test_a_name_without_a_column_is_refused(tmp_path):
    sink = ParquetSink(tmp_path)
    bad = matrix_look("h.0", statistics={"beta": 1.0}, errors={"xmin": 1.0})
    with pytest.raises(ValueError, match=r"h\.0 at step 2: a run has no column for beta, xmin_error"):
        sink(Look(2, "exact", 0.0, 0.0, 0.0, 1, 1, [bad]))
    sink(look(3))
    assert set(steps_of(tmp_path)) == {3}
    sink.close()


def killed_at_random(run, kills, seed):
    """Kill writers of one run, each going on where what it had acknowledged ends; check what can be read."""
    random.seed(seed)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.monitored", "pandas"])
    last = -1
    for _ in range(kills):
        ours, theirs = context.Pipe()
        part_bytes = random.choice([30_000, 300_000, 3_000_000])
        writer = context.Process(target=write_until_killed, args=(str(run), last + 1, theirs, part_bytes))
        writer.start()
        theirs.close()
        ours.recv()  # it has the lock
        time.sleep(random.uniform(0, 0.15))
        while_written = sorted(set(steps_of(run)))
        assert while_written == list(range(len(while_written)))
        writer.kill()
        writer.join()
        acknowledged = last
        try:
            while True:
                acknowledged = ours.recv()
        except EOFError:
            pass
        table = read_run(run, ["step", "name", "stable_rank", "svdvals"])
        steps = table["step"].to_pylist()
        # Each once and in order; at most one more, written when the answer was not yet sent.
        written = len(steps) // len(SMALL) - 1
        assert acknowledged <= written <= acknowledged + 1
        assert steps == [step for step in range(written + 1) for _ in SMALL]
        assert table["name"].to_pylist() == [about[0] for about in SMALL] * (written + 1)
        assert table["stable_rank"].to_pylist() == [
            s + 0.5 * i for s in range(written + 1) for i in range(len(SMALL))
        ]
        assert table["svdvals"].combine_chunks().flatten().to_pylist() == [s for s in steps for _ in range(8)]
        last = acknowledged
    assert last > 10 * kills  # that many looks were really written
    ParquetSink(run).close()
    assert steps_of(run) == steps
    assert len(pd.read_parquet(run)) >= len(steps)


def test_every_acknowledged_look_survives_kill_9(tmp_path):
    killed_at_random(tmp_path / "run", kills=10, seed=1)


@pytest.mark.slow
def test_every_acknowledged_look_survives_kill_9_often(tmp_path):
    killed_at_random(tmp_path / "run", kills=50, seed=2)


def test_a_run_that_died_between_sealing_and_removing_the_journal_has_each_look_once(tmp_path):
    sink = ParquetSink(tmp_path)
    for step in range(3):
        sink(quick_look(step))
    journal = (tmp_path / "_journal-000000").read_bytes()
    sink.close()
    (tmp_path / "_journal-000000").write_bytes(journal)
    (tmp_path / ".part-000001.parquet").write_bytes(b"PAR1 killed while")
    expected = [step for step in range(3) for _ in SMALL]
    assert steps_of(tmp_path) == expected
    ParquetSink(tmp_path).close()
    assert steps_of(tmp_path) == expected
    assert sorted(os.listdir(tmp_path)) == ["_lock", "part-000000.parquet"]


def test_a_journal_cut_anywhere_keeps_the_looks_before_the_cut(tmp_path):
    batches = [pa.record_batch({"step": [step] * 3, "x": [0.5] * 3}) for step in range(4)]
    journal = Journal(tmp_path / "whole", batches[0].schema)
    ends = [journal.size]
    for batch in batches:
        journal.append(batch)
        ends.append(journal.size)
    journal.close()
    content = (tmp_path / "whole").read_bytes()
    assert len(content) == ends[-1]
    cut = tmp_path / "cut"
    for length in sorted({*range(0, len(content), 7), *ends, *(end - 1 for end in ends)}):
        cut.write_bytes(content[:length])
        whole = sum(end <= length for end in ends)
        read = read_journal(cut)
        if whole == 0:
            assert read is None
        else:
            assert [batch["step"][0].as_py() for batch in read] == list(range(whole - 1))
    for position in range(ends[2], ends[3], 7):  # a block that was never written: not taken for values
        cut.write_bytes(content[:position] + bytes(64) + content[position + 64 :])
        assert len(read_journal(cut)) == 2


def test_a_journal_without_a_whole_look_is_gone_on_with(tmp_path):
    (tmp_path / "_lock").touch()
    (tmp_path / "_journal-000000").write_bytes(b"SFJ1\x00")
    assert len(read_run(tmp_path)) == 0
    assert read_run(tmp_path).schema.equals(schema())
    sink = ParquetSink(tmp_path)
    sink(quick_look(0))
    sink.close()
    assert set(steps_of(tmp_path)) == {0}


def test_a_full_disk_loses_nothing_and_the_look_can_be_given_again(tmp_path):
    sink = ParquetSink(tmp_path)
    sink(quick_look(0))
    before = (tmp_path / "_journal-000000").stat().st_size
    for room in (0, 1, 700, 2000):  # the frame is longer than all of them
        with largest_file(before + room), pytest.raises(OSError, match="File too large"):
            sink(quick_look(1))
        assert (tmp_path / "_journal-000000").stat().st_size == before
        assert steps_of(tmp_path) == [0] * len(SMALL)
    sink(quick_look(2))
    sink(quick_look(1))  # again, later: sorted in
    assert steps_of(tmp_path) == [step for step in range(3) for _ in SMALL]
    sink.close()
    assert steps_of(tmp_path) == [step for step in range(3) for _ in SMALL]


def test_a_disk_too_full_to_begin_a_journal(tmp_path):
    sink = ParquetSink(tmp_path)
    with largest_file(100), pytest.raises(OSError, match="File too large"):
        sink(quick_look(0))
    assert not list(tmp_path.glob("_journal*"))
    sink(quick_look(0))
    assert steps_of(tmp_path) == [0] * len(SMALL)
    sink.close()


def test_a_disk_too_full_to_seal_leaves_the_look_to_be_given_again(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "_PART_BYTES", 1)
    sink = ParquetSink(tmp_path)
    sink(quick_look(0))
    for _ in range(2):
        with largest_file(100), pytest.raises(OSError, match="File too large"):
            sink(quick_look(1))
        assert not list(tmp_path.glob("*part*"))
        assert steps_of(tmp_path) == [0] * len(SMALL)
    sink(quick_look(1))
    with largest_file(100), pytest.raises(OSError, match="File too large"):
        sink.close()
    assert steps_of(tmp_path) == [step for step in range(2) for _ in SMALL]
    ParquetSink(tmp_path).close()  # the lock is free, and what was left is sealed
    assert len(list(tmp_path.glob("part-*"))) == 2
    assert steps_of(tmp_path) == [step for step in range(2) for _ in SMALL]


def test_a_resumed_run_goes_on_from_its_first_step(tmp_path):
    def attempt(steps, value):
        sink = ParquetSink(tmp_path)
        for step in steps:
            sink(Look(step, "exact", 0.0, 0.0, 0.0, 1, 1, [matrix_look(statistics={"alpha": value})]))
        sink.close()

    def rows():
        table = read_run(tmp_path, ["step", "alpha"])
        return list(zip(table["step"].to_pylist(), table["alpha"].to_pylist(), strict=True))

    attempt(range(10), 1.0)
    attempt([5, 7], 2.0)  # another interval: 6, 8 and 9 were not made again, and belong to a past given up
    first = [(step, 1.0) for step in range(5)]
    assert rows() == [*first, (5, 2.0), (7, 2.0)]
    attempt([9], 3.0)
    assert rows() == [*first, (5, 2.0), (7, 2.0), (9, 3.0)]
    attempt([], 4.0)
    assert rows() == [*first, (5, 2.0), (7, 2.0), (9, 3.0)]
    attempt([6], 5.0)
    assert rows() == [*first, (5, 2.0), (6, 5.0)]
    assert len(pq.ParquetDataset(tmp_path).read()) == 14  # nothing was deleted


def test_a_resumed_run_leaves_nothing_of_the_past_at_its_first_step(tmp_path):
    """The first look after resuming is exact where the past had a tracked one."""
    for value, kind in ((1.0, "tracked"), (2.0, "exact")):
        sink = ParquetSink(tmp_path)
        for step in (3, 4):
            one = matrix_look(kind=kind, statistics={"alpha": value})
            sink(Look(step, kind, 0.0, 0.0, 0.0, 1, 1, [one]))
        sink.close()
    table = read_run(tmp_path, ["step", "alpha"])
    assert table["alpha"].to_pylist() == [2.0, 2.0]


def test_an_exact_look_stands_beside_a_tracked_one_of_the_same_step(tmp_path):
    sink = ParquetSink(tmp_path)
    for value, kind in ((1.0, "tracked"), (2.0, "exact"), (3.0, "exact")):
        sink(
            Look(
                4,
                kind,
                0.0,
                0.0,
                0.0,
                1,
                1,
                [matrix_look("a", kind, {"alpha": value}), matrix_look("b", kind)],
            )
        )
    expected = [("tracked", 1.0), ("tracked", None), ("exact", 3.0), ("exact", None)]
    for _ in range(2):
        table = read_run(tmp_path, ["kind", "alpha"])
        assert list(zip(table["kind"].to_pylist(), table["alpha"].to_pylist(), strict=True)) == expected
        sink.close()
    assert len(pd.read_parquet(tmp_path)) == 4


def test_a_second_writer_is_refused(tmp_path):
    sink = ParquetSink(tmp_path)
    sink(quick_look(0))
    with pytest.raises(RunError, match=rf"process {os.getpid()} writes to this run; end it"):
        ParquetSink(tmp_path)
    sink.close()
    sink.close()
    with pytest.raises(ValueError, match="is closed"):
        sink(quick_look(1))
    ParquetSink(tmp_path).close()


def test_a_forked_worker_does_not_keep_the_lock(tmp_path):
    sink = ParquetSink(tmp_path)
    sink(quick_look(0))
    read, write = os.pipe()
    worker = os.fork()
    if worker == 0:
        try:
            sink(quick_look(1))
            os.write(write, b"written")
        except ValueError:
            sink.close()  # nor may it seal the parent's journal
            os.write(write, b"refused")
        signal.pause()
    try:
        assert os.read(read, 7) == b"refused"
        sink(quick_look(2))
        sink.close()
        ParquetSink(tmp_path).close()  # the worker still lives
        assert set(steps_of(tmp_path)) == {0, 2}
    finally:
        os.kill(worker, 9)
        os.waitpid(worker, 0)
        os.close(read)
        os.close(write)


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(RunError, match="is no directory; give the one"):
        read_run(tmp_path / "missing")
    with pytest.raises(RunError, match="is no run; give the directory"):
        read_run(tmp_path)
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(RunError, match=r"holds other files, such as model\.safetensors"):
        ParquetSink(tmp_path)
    with pytest.raises(FileExistsError):
        ParquetSink(tmp_path / "model.safetensors")


def test_a_newer_schema_is_refused_and_an_older_one_read(tmp_path):
    write_run(tmp_path / "run", {0: "exact", 1: "exact"})
    part = tmp_path / "run/part-000000.parquet"
    table = pq.read_table(part)
    about = json.loads(table.schema.metadata[b"spectral_fast"])
    assert about == {"schema_version": 1, "attempt": 0}
    pq.write_table(table.drop_columns(["mp_edge"]), part)
    sink = ParquetSink(tmp_path / "run")
    sink(look(2))
    sink.close()
    read = read_run(tmp_path / "run", ["mp_edge"])["mp_edge"].to_pylist()
    assert read[: 2 * len(SMALL)] == [None] * (2 * len(SMALL))
    assert all(edge > 0 for edge in read[2 * len(SMALL) :])
    newer = {b"spectral_fast": json.dumps(about | {"schema_version": 2}).encode()}
    pq.write_table(table.replace_schema_metadata(newer), part)
    with pytest.raises(RunError, match="version 2 of its schema, this package knows 1"):
        read_run(tmp_path / "run")
    pq.write_table(table.replace_schema_metadata({}), part)
    with pytest.raises(RunError, match="no ParquetSink wrote"):
        read_run(tmp_path / "run")


def test_without_pyarrow_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.delitem(sys.modules, "spectral_fast.monitor.parquet")
    with pytest.raises(ImportError, match=r"pip install 'spectral_fast\[parquet\]'"):
        import spectral_fast.monitor.parquet  # noqa: F401
