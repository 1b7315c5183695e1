"""ImageSampler: which images it draws, and how those beyond the device's memory are streamed."""

import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from image_files import random_bytes

from datgan_fast.data import ImageSampler

IMAGES = torch.from_numpy(random_bytes(6, 3, 5, 4))
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
LIMITS = [None, 0]  # resident and streaming
MANY = torch.from_numpy(random_bytes(500, 2, 3, 4))
SIZES = {"batch_size": 7, "batches": 3, "seed": 11}


def which_images(batch: torch.Tensor, images: torch.Tensor = IMAGES) -> list[int]:
    """The index of each image of a batch, by exact comparison of the recovered bytes."""
    codes = ((batch.cpu() + 1) * 127.5).round().to(torch.uint8)
    matches = [[torch.equal(code, image) for image in images] for code in codes]
    assert all(sum(match) == 1 for match in matches)
    return [match.index(True) for match in matches]


def one_batch(images: torch.Tensor, device: str, size: int, **options: object) -> torch.Tensor:
    sampler = ImageSampler(images, device, batch_size=size, **options)
    sampler.prepare(1)
    return sampler.sample()


def streaming(images: torch.Tensor = MANY, device: str = "cpu", **options: object) -> ImageSampler:
    return ImageSampler(images, device, max_device_bytes=0, **{**SIZES, **options})


def iteration(sampler: ImageSampler, step: int) -> np.ndarray:
    sampler.prepare(step)
    return torch.stack([sampler.sample() for _ in range(sampler.batches)]).cpu().numpy()


def expected_iteration(step: int, images: torch.Tensor = MANY, seed: int = 11) -> np.ndarray:
    index = np.random.default_rng([seed, step]).integers(len(images), size=3 * 7)
    batches = images.numpy().astype(np.float32)[index] / np.float32(127.5) - np.float32(1)
    return batches.reshape(3, 7, *images.shape[1:])


def worker_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("datgan-fast-images")}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("limit", LIMITS)
def test_sample_shape_range_and_residence(device, limit):
    images = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 4, 4).contiguous()
    sampler = ImageSampler(images, device, batch_size=64, max_device_bytes=limit)
    assert sampler.resident == (limit is None)
    sampler.prepare(1)
    batch = sampler.sample()
    assert batch.shape == (64, 3, 4, 4) and batch.dtype == torch.float32 and batch.device.type == device
    assert batch.unique().tolist() == [-1.0, 1.0]


def test_resident_samples_are_the_scaled_images_at_the_default_generators_indices():
    sampler = ImageSampler(IMAGES, "cpu", batch_size=20)
    torch.manual_seed(3)
    index = torch.randint(6, (20,))
    torch.manual_seed(3)
    sampler.prepare(1)
    expected = IMAGES.numpy().astype(np.float32)[index.numpy()] / np.float32(127.5) - np.float32(1)
    assert np.array_equal(sampler.sample().numpy(), expected)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("limit", LIMITS)
def test_indices_are_uniform_with_replacement(device, limit):
    torch.manual_seed(0)
    images = torch.arange(10, dtype=torch.uint8).view(10, 1, 1, 1)
    batch = one_batch(images, device, 20000, max_device_bytes=limit)
    counts = torch.tensor(which_images(batch, images)).bincount(minlength=10)
    assert ((counts - 2000).double().square() / 2000).sum() < 27.9  # chi-square, 9 degrees of freedom, p = 0.001


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("limit", LIMITS)
def test_restoring_the_random_state_repeats_the_batches(device, limit, flip):
    sampler = ImageSampler(IMAGES, device, batch_size=8, max_device_bytes=limit, flip=flip)
    iteration(sampler, 1)
    state = torch.get_rng_state()
    cuda_state = torch.cuda.get_rng_state() if device == "cuda" else None
    first, second = iteration(sampler, 2), iteration(sampler, 3)
    assert not np.array_equal(first, second)
    torch.set_rng_state(state)
    if cuda_state is not None:
        torch.cuda.set_rng_state(cuda_state)
    assert np.array_equal(iteration(sampler, 2), first) and np.array_equal(iteration(sampler, 3), second)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("limit", LIMITS)
def test_flip_mirrors_about_half_of_the_images_left_to_right(device, limit):
    torch.manual_seed(0)
    candidates = torch.cat([IMAGES, IMAGES.flip(-1)])
    index = which_images(one_batch(IMAGES, device, 2000, max_device_bytes=limit, flip=True), candidates)
    assert set(index) == set(range(12))
    assert 900 < sum(i >= 6 for i in index) < 1100


@pytest.mark.parametrize("limit", LIMITS)
def test_without_flip_nothing_is_mirrored(limit):
    assert set(which_images(one_batch(IMAGES, "cpu", 200, max_device_bytes=limit))) == set(range(6))


@pytest.mark.parametrize("limit", LIMITS)
def test_cpu_images_are_shared_and_left_unchanged(limit):
    images = IMAGES.clone()
    sampler = ImageSampler(images, "cpu", batch_size=50, max_device_bytes=limit, flip=True)
    assert sampler.images.data_ptr() == images.data_ptr()
    iteration(sampler, 1)
    assert torch.equal(images, IMAGES)


def test_images_that_just_fit_are_resident():
    size = IMAGES.numel()
    assert ImageSampler(IMAGES, "cpu", batch_size=1, max_device_bytes=size).resident
    assert not ImageSampler(IMAGES, "cpu", batch_size=1, max_device_bytes=size - 1).resident


@pytest.mark.parametrize("images", [IMAGES.float(), IMAGES[0], IMAGES[:0]])
def test_sampler_rejects_other_tensors(images):
    with pytest.raises(ValueError, match=r"should be uint8 \[N, C, H, W\]"):
        ImageSampler(images, "cpu", batch_size=1)


@pytest.mark.parametrize(("name", "value"), [("batch_size", 0), ("batches", 0), ("seed", -1)])
def test_sampler_rejects_other_sizes(name, value):
    with pytest.raises(ValueError, match=f"{name}: {value} should be at least"):
        ImageSampler(IMAGES, "cpu", **{"batch_size": 1, name: value})


def test_resident_sampling_starts_no_thread():
    before = worker_threads()
    one_batch(IMAGES, "cpu", 4)
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

    def after_the_iteration(images, dim, index, out):
        if fetches:
            assert drawn.wait(60)
        fetches.append(threading.current_thread())
        return select(images, dim, index, out=out)

    fetches = []
    monkeypatch.setattr(torch, "index_select", after_the_iteration)
    sampler = streaming()
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
from datgan_fast.data import ImageSampler
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


@pytest.mark.parametrize("how", ["at the end", "interrupted"])
def test_a_streaming_process_ends(how):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, how], env=environment, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == (["interrupted"] if how == "interrupted" else [])


@pytest.mark.gpu
def test_resident_sampling_never_synchronises_and_can_be_captured():
    sampler = ImageSampler(IMAGES, "cuda", batch_size=64, flip=True)
    sampler.sample()
    torch.cuda.set_sync_debug_mode("error")
    try:
        sampler.prepare(1)
        sampler.sample()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        batch = sampler.sample()
    replays = []
    for _ in range(2):
        graph.replay()
        replays.append(batch.clone())
    assert not torch.equal(*replays)
    candidates = torch.cat([IMAGES, IMAGES.flip(-1)])
    assert set(which_images(torch.cat(replays), candidates)) == set(range(12))


@pytest.mark.gpu
def test_streamed_images_come_through_pinned_memory():
    assert streaming(device="cuda")._stream._host.is_pinned()


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
