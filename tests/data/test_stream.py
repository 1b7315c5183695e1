"""Images beyond the device's memory are streamed: which, in what order, by which thread, and how that ends."""

import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from test_sampler import DEVICES, iteration

from datgan_fast.data.sampler import ImageSampler
from image_files import random_bytes

MANY = torch.from_numpy(random_bytes(500, 2, 3, 4))
SIZES = {"batch_size": 7, "batches": 3, "seed": 11}


def streaming(images: torch.Tensor = MANY, device: str = "cpu", **options: object) -> ImageSampler:
    return ImageSampler(images, device, max_device_bytes=0, **{**SIZES, **options})


def expected_iteration(step: int, images: torch.Tensor = MANY, seed: int = 11) -> np.ndarray:
    index = np.random.default_rng([seed, step]).integers(len(images), size=3 * 7)
    batches = images.numpy().astype(np.float32)[index] / np.float32(127.5) - np.float32(1)
    return batches.reshape(3, 7, *images.shape[1:])


def worker_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("datgan-fast-images")}


def test_resident_sampling_starts_no_thread():
    before = worker_threads()
    iteration(ImageSampler(MANY, "cpu", batch_size=4), 1)
    assert worker_threads() <= before


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("steps", [[1, 2, 3, 4], [4, 2, 3, 1], [7, 7, 8, 8], [1000, 1001, 3, 4]])
def test_streamed_images_follow_from_seed_and_step_in_any_order(device, steps):
    sampler = streaming(device=device)
    for step in steps:
        np.testing.assert_allclose(iteration(sampler, step), expected_iteration(step), rtol=0, atol=1e-6)
    np.testing.assert_allclose(iteration(streaming(device=device, seed=5), 1), expected_iteration(1, seed=5), atol=1e-6)


def test_prepare_begins_again_at_the_first_batch():
    sampler = streaming()
    sampler.prepare(2)
    sampler.sample()
    assert np.array_equal(iteration(sampler, 2), expected_iteration(2))
    # after `batches` calls the iteration's first batch comes again
    assert np.array_equal(sampler.sample().numpy(), expected_iteration(2)[0])


def test_a_resumed_run_continues_as_if_it_had_not_stopped():
    def train(sampler: ImageSampler, steps: range) -> list[np.ndarray]:
        return [iteration(sampler, step) for step in steps]

    torch.manual_seed(0)
    whole = train(streaming(flip=True), range(1, 7))
    torch.manual_seed(0)
    first = train(streaming(flip=True), range(1, 4))
    assert np.array_equal(first + train(streaming(flip=True), range(4, 7)), whole)


def test_the_next_steps_images_are_fetched_before_they_are_asked_for():
    images = MANY.clone()
    sampler = streaming(images)
    sampler.prepare(1)
    sampler.settle()
    images.zero_()  # too late for step 2
    assert np.array_equal(iteration(sampler, 1), expected_iteration(1))
    assert np.array_equal(iteration(sampler, 2), expected_iteration(2))
    assert (iteration(sampler, 4) == -1).all()


def test_fetching_goes_on_while_the_iteration_runs(monkeypatch):
    """The fetch of step 2 cannot end before prepare(1) has returned and the batches of step 1 have been drawn."""
    drawn, select = threading.Event(), torch.index_select
    sampler = streaming()
    host = sampler._stream._host[0]  # an earlier test's sampler, which nobody has closed, may be fetching still

    def after_the_iteration(images, dim, index, out):
        if out.data_ptr() != host.data_ptr():
            return select(images, dim, index, out=out)
        if fetches:
            assert drawn.wait(60)
        fetches.append(threading.current_thread())
        return select(images, dim, index, out=out)

    fetches = []
    monkeypatch.setattr(torch, "index_select", after_the_iteration)
    assert np.array_equal(iteration(sampler, 1), expected_iteration(1))
    drawn.set()
    assert np.array_equal(iteration(sampler, 2), expected_iteration(2))
    assert len(set(fetches)) == 1 and fetches[0] is not threading.current_thread()


def test_errors_of_the_thread_surface_in_prepare(monkeypatch):
    sampler = streaming()
    with monkeypatch.context() as patch:
        patch.setattr(torch, "index_select", lambda *args, **kwargs: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            sampler.prepare(1)
    sampler.prepare(1)
    sampler.settle()
    with monkeypatch.context() as patch:
        patch.setattr(torch, "index_select", lambda *args, **kwargs: 1 / 0)
        sampler.prepare(2)
        sampler.settle()  # the fetch of step 3 has failed, and says so when step 3 is asked for
        assert np.array_equal(iteration(sampler, 2), expected_iteration(2))
    with pytest.raises(ZeroDivisionError):
        sampler.prepare(3)
    assert np.array_equal(iteration(sampler, 3), expected_iteration(3))


def test_a_failed_fetch_that_is_not_needed_is_forgotten(monkeypatch):
    sampler = streaming()
    with monkeypatch.context() as patch:
        failing = threading.Event()
        select = torch.index_select
        patch.setattr(torch, "index_select", lambda *a, **k: 1 / 0 if failing.is_set() else select(*a, **k))
        sampler.prepare(1)
        sampler.settle()
        failing.set()
        sampler.prepare(2)
        sampler.settle()
    assert np.array_equal(iteration(sampler, 9), expected_iteration(9))


@pytest.mark.parametrize("device", DEVICES)
def test_the_buffer_that_a_graph_reads_never_moves(device):
    sampler = streaming(device=device)
    sampler.prepare(1)
    address = sampler._stream.buffer.data_ptr()
    assert sampler._stream.buffer.shape == (3, 7, 2, 3, 4) and sampler._stream.buffer.device.type == device
    for step in (2, 3, 9):
        sampler.prepare(step)
        assert sampler._stream.buffer.data_ptr() == address


def test_sampling_needs_preparation():
    with pytest.raises(RuntimeError, match=r"call prepare\(step\) first"):
        streaming().sample()


def test_closing_stops_the_thread():
    before = worker_threads()
    sampler = streaming()
    sampler.prepare(1)
    (thread,) = worker_threads() - before
    sampler.close()
    assert not thread.is_alive()
    sampler.settle()
    sampler.close()
    with pytest.raises(RuntimeError, match="shutdown"):
        sampler.prepare(2)


def test_a_forgotten_sampler_stops_its_thread():
    before = worker_threads()
    sampler = streaming()
    sampler.prepare(1)
    (thread,) = worker_threads() - before
    del sampler
    thread.join(60)
    assert not thread.is_alive()


PROGRAM = """
import os, signal, sys, threading
import torch
from datgan_fast.data.sampler import ImageSampler
sampler = ImageSampler(torch.zeros(9, 1, 2, 2, dtype=torch.uint8), "cpu", batch_size=4, max_device_bytes=0)
sampler.prepare(1)
if sys.argv[1] == "interrupted":
    interrupted = threading.Event()
    def handle(*_):
        interrupted.set()
        raise KeyboardInterrupt
    signal.signal(signal.SIGINT, handle)
    def interrupt(*args, **kwargs):
        # again, until it is handled: a signal may come just before the main thread begins to wait
        while not interrupted.wait(1):
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
    torch.index_select = interrupt
    try:
        sampler.prepare(5)
    except KeyboardInterrupt:
        print("interrupted")
"""


@pytest.mark.process
@pytest.mark.parametrize("how", ["at the end", "interrupted"])
def test_a_streaming_process_ends(how):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, how], env=environment, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == (["interrupted"] if how == "interrupted" else [])


@pytest.mark.gpu
def test_streamed_images_come_through_pinned_memory():
    assert streaming(device="cuda")._stream._host[0].is_pinned()


@pytest.mark.gpu
def test_streamed_batches_survive_later_ones():
    images = torch.from_numpy(random_bytes(40, 3, 64, 64))
    sampler = streaming(images, "cuda")
    kept = []
    for step in range(1, 21):
        sampler.prepare(step)
        torch.cuda._sleep(10_000_000)  # the device is still busy when the next images arrive
        kept.append(torch.stack([sampler.sample() for _ in range(3)]))
    for step, batches in enumerate(kept, 1):
        np.testing.assert_allclose(batches.cpu().numpy(), expected_iteration(step, images), rtol=0, atol=1e-6)


@pytest.mark.gpu
def test_streaming_feeds_a_captured_graph_without_synchronising():
    sampler = streaming(device="cuda")
    sampler.prepare(1)
    for _ in range(3):
        sampler.sample()
    sampler.prepare(1)
    sampler.settle()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        batches = torch.stack([sampler.sample() for _ in range(3)])
    kept = []
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in (1, 2, 3, 8, 9):
            sampler.prepare(step)
            graph.replay()
            kept.append((step, batches.clone()))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for step, batch in kept:
        np.testing.assert_allclose(batch.cpu().numpy(), expected_iteration(step), rtol=0, atol=1e-6)
