"""Training many runs: what is left of them, each in its folder, several at a time in processes of their own."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from .. import files
from ..errors import ConfigError, TrainingStopped
from ..training.config import Config
from ..training.run_folder import RunFolder
from ..training.stop_signals import StopSignals
from ..training.trainer import Trainer, load_checkpoint
from . import figure1, records
from .experiments import Experiment, attacked
from .records import PLACES, read_run
from .results import Result, score_name
from .theory import Recorder

_SAME_TRAINING = (*PLACES, "device", "seed")  # options that may differ among the runs of a setting

# One run


def remaining(todo: list[Experiment], outdir: Path) -> list[Experiment]:
    """The experiments that have no record yet. Raises ConfigError where runs of these settings have other options."""
    recorded = records.recorded(outdir)
    like = {(r.experiment.dataset, r.experiment.place): r.experiment for r in recorded.values()}
    left = []
    for e in todo:
        run = RunFolder(outdir / "runs" / e.name)
        if other := like.get((e.dataset, e.place)):
            _check_same(other.name, other.config, e, outdir)
        if e.name not in recorded:
            if (run.path / "config.yaml").is_file():
                _check_same(e.name, run.options("--outdir").recorded(), e, outdir)
            left.append(e)
    return left


def _check_same(name: str, was: Config, experiment: Experiment, outdir: Path) -> None:
    for f in dataclasses.fields(Config):
        a, b = getattr(was, f.name), getattr(experiment.config, f.name)
        if a != b and f.name not in _SAME_TRAINING:
            raise ConfigError(
                f"--outdir {outdir}: its run {name} has {f.name} {a} where this command asks for {b}; "
                "use the same options to go on, or another folder"
            )


def make(experiment: Experiment, folder: Path) -> None:
    """Trains one experiment in its folder, from its newest checkpoint if it was interrupted, and attacks it if figure 1 does.

    Raises ConfigError where the folder cannot be made whole.
    """
    path = folder / experiment.name
    train(experiment, path)
    if attacked(experiment):
        c = experiment.config
        subject = figure1.load_subject(path, n=figure1.ATTACKED, data_dir=c.data_dir, device=c.device)
        lines = [{"step": c.steps, **figure1.measure(subject, p).summary()} for p in figure1.PROTOCOLS]
        files.write_text(path / "attacks.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    if not read_run(experiment, path).finished:
        raise ConfigError(
            f"{path / 'stats.jsonl'} lacks the last step's line; remove the run's folder to make it again"
        )


def train(experiment: Experiment, path: Path) -> None:
    """To its end, its last evaluation included."""
    recorder = Recorder()
    trainer = recorder.trainer = Trainer(experiment.config, loggers=[recorder])
    if (path / "config.yaml").is_file():
        run = RunFolder(path)
        run.hold()  # before anything of it is taken back
        if checkpoints := run.checkpoints():
            trainer.load_state(load_checkpoint(checkpoints[-1], "--outdir"))
        run.rewind(trainer.step)
    else:
        path.mkdir(parents=True, exist_ok=True)
        place = {name: getattr(experiment, name) for name in ("figure", "setting", "variant", "seed")}
        files.write_text(path / "experiment.json", json.dumps(place) + "\n")
        run = RunFolder.begin(path, trainer.config)
    trainer.fit(run)
    for older in run.checkpoints()[:-1]:  # of many runs they would fill a disk
        older.unlink()


# Several runs


def run_all(todo: list[Experiment], outdir: Path, jobs: int, threads: int) -> dict[str, str]:
    """Makes them in `jobs` processes of so many threads, and records each; returns the runs that failed, by name, and why.

    Raises KeyboardInterrupt after Ctrl-C or SIGTERM, when every run in progress has saved a checkpoint.
    """
    folder = outdir / "runs"
    failures: dict[str, str] = {}
    waiting = deque(todo)
    running: dict[Future[None], tuple[Experiment, float]] = {}
    with StopSignals() as stop, _progress(len(todo)) as done, _processes(jobs, threads, outdir / "workers.log") as pool:
        while running or (waiting and not stop.requested):
            while waiting and len(running) < jobs and not stop.requested:
                experiment = waiting.popleft()
                running[pool.submit(make, experiment, folder)] = experiment, time.perf_counter()
            for future in wait(running, timeout=0.5, return_when=FIRST_COMPLETED).done:
                experiment, since = running.pop(future)
                seconds = time.perf_counter() - since
                error = future.exception()
                if stop.requested and isinstance(error, (TrainingStopped, BrokenProcessPool)):
                    continue
                _check_alive(error, experiment)
                if error:
                    said = failures[experiment.name] = str(error) or type(error).__name__
                else:
                    result = read_run(experiment, folder / experiment.name)
                    records.append(outdir, result)
                    said = f"{_summary(result)}{seconds:.0f} s"
                done(f"{experiment.name}: {said}")
            if stop.requested:
                _stop_processes()
    if stop.requested:
        print("stopping; the same command goes on from here", file=sys.stderr)
        raise KeyboardInterrupt
    return failures


def _check_alive(error: BaseException | None, experiment: Experiment) -> None:
    """Raises TrainingStopped if the run's process died, which takes the others with it."""
    if isinstance(error, BrokenProcessPool):
        raise TrainingStopped(
            f"a process died while it trained {experiment.name}, perhaps for want of memory; "
            "use a smaller --jobs; the same command goes on from here"
        )


def _processes(jobs: int, threads: int, log: Path) -> ProcessPoolExecutor:
    context = multiprocessing.get_context("spawn")  # a forked process cannot use CUDA
    return ProcessPoolExecutor(jobs, mp_context=context, initializer=_prepare_worker, initargs=(threads, str(log)))


def _stop_processes() -> None:
    """To be called until it has been heard: a run that is only beginning does not listen."""
    for process in multiprocessing.active_children():
        process.terminate()


def _prepare_worker(threads: int, log: str) -> None:
    """In a new process: its share of threads; what runs print goes to a file, where no two progress bars meet."""
    torch.set_num_threads(threads)
    sys.stdout = sys.stderr = open(log, "a", buffering=1, encoding="utf-8")  # noqa: SIM115  for the process's life
    # Between runs; while one trains, StopSignals listens, but not to what is SIG_IGN, which it takes for nohup's wish.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _nothing)
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _nothing(number: int, frame: object) -> None:
    """A signal's handler."""


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextlib.contextmanager
def _progress(total: int) -> Iterator[Any]:
    """Gives done(text), to be called as runs end: a bar on a terminal, numbered lines elsewhere."""
    on_terminal = sys.stderr.isatty()
    with tqdm(total=total, unit="run", disable=not on_terminal, dynamic_ncols=True) as bar:
        count = 0

        def done(text: str) -> None:
            nonlocal count
            count += 1
            if on_terminal:
                bar.write(text, file=sys.stderr)
                bar.update()
            else:
                print(f"{count}/{total} {text}", flush=True)

        yield done


def _summary(result: Result) -> str:
    missing = {m["step"] for m in result.metrics} - {t["step"] for t in result.theory}
    unmeasured = f"the theory is not measured at {len(missing)} evaluations, see workers.log, " if missing else ""
    name = score_name([result])
    return (f"{name} {result.metric(name)[1][-1]:.4g}, " if name else "") + unmeasured


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
