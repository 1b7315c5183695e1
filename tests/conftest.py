"""Shared by all tests: real images where DATGAN_FAST_DATA names a folder of them, a cache folder, and the markers.

Tests that neither compile, train, start processes nor are slow otherwise are `quick`. Tests marked `gpu` are skipped without a
CUDA device, those marked `needs("name")` where the module or command is not installed; but what DATGAN_FAST_TESTS_REQUIRE lists
(with commas) must be there: then they fail.
"""

import importlib.util
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

os.environ.setdefault(
    "CUBLAS_WORKSPACE_CONFIG", ":4096:8"
)  # for the tests that are deterministic; read once in a process


# Tests that run side by side share the cores; their children do too.
if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
    threads = max(1, (os.cpu_count() or 1) // workers)
    torch.set_num_threads(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)


# As on a terminal. A shell's background job, and what it starts, ignores Ctrl-C, under nohup a hang-up, and so would the runs.
for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)


def pytest_collection_modifyitems(items):
    for item in items:
        if not any(item.get_closest_marker(name) for name in ("compiles", "process", "trains", "slow")):
            item.add_marker("quick")
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


def pytest_runtest_setup(item):
    required = os.environ.get("DATGAN_FAST_TESTS_REQUIRE", "").split(",")
    for name in (name for marker in item.iter_markers("needs") for name in marker.args):
        if importlib.util.find_spec(name) is None and shutil.which(name) is None:
            if name in required:
                pytest.fail(f"{name} is not installed, and DATGAN_FAST_TESTS_REQUIRE lists it", pytrace=False)
            pytest.skip(f"{name} is not installed")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """A folder with MNIST and CIFAR-10 in their official layouts."""
    folder = os.environ.get("DATGAN_FAST_DATA")
    if not folder:
        pytest.skip("DATGAN_FAST_DATA does not name a folder with MNIST and CIFAR-10")
    return Path(folder)


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory) -> Iterator[Path]:
    """Feature networks are cached in a folder of the session's own, never the user's."""
    folder = tmp_path_factory.getbasetemp()
    if workers:  # which share what one of them has trained
        folder = folder.parent
    folder /= "cache"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DATGAN_FAST_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def one_thread():
    """For modules of tiny tensors, where waking other threads costs more than all the arithmetic."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def poisoned_outputs():
    """torch.empty gives NaN, so that an element no kernel wrote shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def gpu_precision(monkeypatch):
    """bf16, a GPU's default, on every machine: a test that means float32 says so."""
    monkeypatch.setattr("datgan_fast.training.options.best_precision", lambda device: "bf16")


@pytest.fixture
def deterministic(monkeypatch):
    """The same numbers bit for bit, which a CPU always gives, and a GPU where it is asked to."""
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    torch.use_deterministic_algorithms(torch.cuda.is_available())
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(params=[False, True], ids=["apart", "merged"])
def merging(request, monkeypatch):
    """Whether real and generated images go through an independent discriminator as one batch, as on a GPU."""
    monkeypatch.setattr("datgan_fast.method.batches.merging_is_faster", lambda *x: request.param)
    return request.param
