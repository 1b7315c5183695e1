"""ImageSampler: which images it draws, resident and streamed, and what it refuses."""

import numpy as np
import pytest
import torch

from datgan_fast.data.sampler import ImageSampler
from image_files import random_bytes

IMAGES = torch.from_numpy(random_bytes(6, 3, 5, 4))
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
LIMITS = [None, 0]  # resident and streaming


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


def iteration(sampler: ImageSampler, step: int) -> np.ndarray:
    sampler.prepare(step)
    return torch.stack([sampler.sample() for _ in range(sampler.batches)]).cpu().numpy()


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


@pytest.mark.parametrize("limit", [None, 0], ids=["resident", "streamed"])
@pytest.mark.parametrize("flip", [False, True])
def test_rows_are_the_whole_batchs(limit, flip):
    labels = torch.arange(len(IMAGES))

    def batches(rows):
        torch.manual_seed(3)
        options = {"batches": 2, "max_device_bytes": limit, "flip": flip, "labels": labels, "rows": rows, "seed": 5}
        sampler = ImageSampler(IMAGES, "cpu", batch_size=7, **options)
        sampler.prepare(4)
        return [sampler.sample_labelled() for _ in range(2)], torch.get_rng_state()

    whole, after = batches(None)
    for rows in (slice(0, 2), slice(2, 3), slice(3, 7)):
        found, state = batches(rows)
        assert torch.equal(state, after)
        for (own, own_labels), (every, every_label) in zip(found, whole, strict=True):
            assert torch.equal(own, every[rows]) and torch.equal(own_labels, every_label[rows])
