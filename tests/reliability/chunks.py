"""Work in chunks, each with a file of its results: what is interrupted goes on where it was."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch

Work = Callable[[int, int], dict[str, Any]]  # (seed, chunk) -> its results


def run_chunks(work: Work, seed: int, chunks: int, folder: Path, jobs: int) -> list[dict[str, Any]]:
    """The results of all chunks, those that are in `folder` already included; `jobs` processes at a time."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = [chunk for chunk in range(chunks) if not _file(folder, seed, chunk).exists()]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, torch.set_num_threads, (1,)) as pool:
        tasks = [pool.submit(_one, work, seed, chunk, folder) for chunk in missing]
        for done, task in enumerate(as_completed(tasks), start=chunks - len(missing) + 1):
            print(f"chunk {task.result()}: {done} of {chunks} done", flush=True)
    return [json.loads(_file(folder, seed, chunk).read_text()) for chunk in range(chunks)]


def _file(folder: Path, seed: int, chunk: int) -> Path:
    return folder / f"{seed}-{chunk:05}.json"


def _one(work: Work, seed: int, chunk: int, folder: Path) -> int:
    file = _file(folder, seed, chunk)
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(work(seed, chunk)))
    os.replace(partial, file)
    return chunk
