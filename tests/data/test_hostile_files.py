"""Files that are damaged, or made to do harm: every reader gives its documented result or one sentence, in bounded memory."""

import gzip
import io
import json
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from datgan_fast.data.datasets import load_images
from datgan_fast.errors import ConfigError, DataError
from datgan_fast.metrics import inception
from datgan_fast.training.checkpoints import load_checkpoint, open_checkpoint, read_generator
from datgan_fast.training.config_file import read_config_file
from datgan_fast.training.networks import build_generator
from hostile_files import (
    KINDS,
    READERS,
    Reader,
    damaged,
    generator,
    read,
    sealed,
    state,
)
from image_files import idx_bytes, random_bytes
from memory import at_most
from repeatable import repeatable

BY_NAME = {reader.name: reader for reader in READERS}
NEEDS = {"weights.pth": pytest.mark.needs("torch_fidelity")}
EVERY = [pytest.param(reader, id=reader.name, marks=NEEDS.get(reader.name, ())) for reader in READERS]


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """Of each reader: its file's folder, bytes, and what is read of them."""
    made = {}
    for reader in READERS:
        folder = tmp_path_factory.mktemp("sound")
        data = reader.sound(folder)
        (folder / reader.name).write_bytes(data)
        made[reader.name] = folder, data, read(reader, folder / reader.name)
    return made


@pytest.mark.parametrize("reader", EVERY)
def test_a_sound_file_is_read(sound, reader):
    result = sound[reader.name][2]
    refused = {"options.yaml", "options.toml", "weights.pth"}  # which have a bit of everything
    assert isinstance(result, reader.error) == (reader.name in refused)
    assert reader.name in refused or reader.right(result, result)


DAMAGE = st.lists(
    st.tuples(st.sampled_from(KINDS), st.floats(0, 1), st.binary(min_size=1, max_size=12)), min_size=1, max_size=3
)


def check(reader: Reader, folder: Path, data: bytes, expected: object) -> None:
    path = folder / reader.name
    path.write_bytes(data)
    result = read(reader, path)
    if isinstance(result, reader.error):
        assert "\n" not in str(result) and len(str(result)) < 1500
    else:
        assert reader.right(result, expected)


@pytest.mark.parametrize("reader", EVERY)
def test_damaged_files(sound, reader):
    folder, whole, expected = sound[reader.name]

    @repeatable(50)
    @given(DAMAGE)
    def holds(damage):
        data = whole
        for kind, where, what in damage:
            data = damaged(data, kind, where, what)
        check(reader, folder, data, expected)

    holds()


TEXTS = st.text("[]{}()&*!|>-:,'\"\\#%@?~<= \n\t.0123456789abcdtrue_eE\x00\x1b\u2028\ufeffé", max_size=60)


@pytest.mark.parametrize("reader", EVERY)
def test_any_bytes(sound, reader):
    folder, _, expected = sound[reader.name]

    @repeatable(20)
    @given(st.one_of(st.binary(max_size=200), TEXTS.map(lambda text: text.encode())))
    def holds(data):
        check(reader, folder, data, expected)

    holds()


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


@repeatable(50)
@given(
    st.sampled_from(["architecture", "image_size", "channels", "width", "z_dim", "classes", "network", "step"]), VALUES
)
def test_a_generator_file_may_say_anything_of_itself(key, value):
    described = {
        "network": {"architecture": "dcgan", "image_size": 8, "channels": 1, "width": 2, "z_dim": 4},
        "step": 3,
    }
    target = described if key in described else described["network"]
    same = key in target and target[key] == value and type(target[key]) is type(value)
    target[key] = value
    path = generator_file(json.dumps(described))
    if same or (key == "classes" and value in (None, 0) and not isinstance(value, (bool, float))):
        read_generator(path)
    elif key == "step" and isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        assert read_generator(path).step == value
    else:
        with pytest.raises(
            ConfigError, match=r"must be a generator\.safetensors|--architecture own|handed to"
        ) as error:
            read_generator(path)
        assert "\n" not in str(error.value)


FOLDER: list[Path] = []


@pytest.fixture(autouse=True, scope="module")
def folder(tmp_path_factory):
    FOLDER.append(tmp_path_factory.mktemp("made"))
    return FOLDER[-1]


def generator_file(metadata, tensors=None):
    path = FOLDER[-1] / "generator.safetensors"
    tensors = generator().state_dict() if tensors is None else tensors
    save_file({k: v.contiguous() for k, v in tensors.items()}, path, {"datgan_fast": metadata})
    return path


@pytest.mark.parametrize("metadata", ["[" * 100_000, '{"network": "abc", "step": 1}', "null", "{", '{"network": null}'])
def test_metadata_of_other_shapes(metadata):
    with pytest.raises(ConfigError, match=r"must be a generator\.safetensors"):
        read_generator(generator_file(metadata))


# What would take much memory


@pytest.mark.parametrize("architecture", ["dcgan", "resnet", "mlp"])
def test_a_small_file_makes_no_large_network(architecture):
    size = 0 if architecture == "mlp" else 1024
    network = {"architecture": architecture, "image_size": size, "channels": 3, "width": 65536, "z_dim": 65536}
    path = generator_file(json.dumps({"network": network, "step": 1}), {"x": torch.zeros(1)})
    with at_most(50), pytest.raises(ConfigError, match=r"must be a generator\.safetensors"):
        read_generator(path)


def test_a_small_checkpoint_makes_no_large_network(tmp_path):
    wide = state()
    wide["config"] |= {"width": 4096}
    opened = open_checkpoint(sealed(tmp_path / "a.pt", wide), "SOURCE")
    for part in (lambda: opened.generator("raw"), lambda: opened.generator("average"), opened.discriminator):
        with at_most(50), pytest.raises(ConfigError, match="must be a checkpoint"):
            part()
    # One number, said to be as many as the network has.
    network = build_generator("dcgan", z_dim=4, image_size=8, channels=1, width=4096, device="meta")
    wide["average"] = {n: torch.zeros((), dtype=t.dtype).expand(t.shape) for n, t in network.state_dict().items()}
    opened = open_checkpoint(sealed(tmp_path / "b.pt", wide), "SOURCE")
    with at_most(50), pytest.raises(ConfigError, match="must be a checkpoint"):
        opened.generator("average")


def packed(path):
    """The same archive with its members compressed, and one more of zeros."""
    whole = zipfile.ZipFile(io.BytesIO(path.read_bytes()))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in whole.namelist():
            archive.writestr(name, whole.read(name))
        archive.writestr("archive/data/99", bytes(300_000_000))
    return path


@pytest.mark.needs("torch_fidelity")
def test_archives_do_not_unpack_to_more_than_they_are(tmp_path):
    torch.save(state(), tmp_path / "a.pt")
    path = packed(tmp_path / "a.pt")
    assert path.stat().st_size < 1e6
    with at_most(50), pytest.raises(ConfigError, match="would unpack to more than it is"):
        load_checkpoint(path, "--resume")
    with at_most(50), pytest.raises(ConfigError, match="--inception-weights"):
        inception.find_weights(str(path))


@pytest.mark.parametrize("count", [1 << 20, 2**32 - 1])
def test_a_packed_data_set_is_no_bomb(tmp_path, count):
    """Zeros pack to a thousandth, images to a fifth; and a header may say anything."""
    packer, path = zlib_gzip(), tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(packer(struct.pack(">BBBBIII", 0, 0, 8, 3, count, 28, 28), 400 << 20))
    with (
        at_most(50),
        pytest.raises(DataError, match=r"-ubyte\.gz has .* bytes but shape .* needs .*; unpack it"),
    ):
        load_images("mnist", tmp_path)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(struct.pack(">BBBBIII", 0, 0, 8, 3, count, 28, 28) + bytes(99))
    with pytest.raises(DataError, match="holds 115 bytes but shape"):
        load_images("mnist", tmp_path)


def zlib_gzip():
    import zlib

    def pack(start, zeros):
        packer = zlib.compressobj(9, wbits=31)
        parts = [packer.compress(start)] + [packer.compress(bytes(1 << 20)) for _ in range(zeros >> 20)]
        return b"".join(parts) + packer.flush()

    return pack


def test_small_packed_files_may_be_anything(tmp_path):
    """Even zeros, a thousand times as many; and more than the header says is no more read than needed."""
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(idx_bytes(np.zeros((2000, 28, 28), np.uint8))))
    assert load_images("mnist", tmp_path, image_size=28).shape == (2000, 1, 28, 28)
    path.write_bytes(zlib_gzip()(idx_bytes(random_bytes(2, 28, 28)), 400 << 20))
    with at_most(50), pytest.raises(DataError, match="holds more than 1584 bytes but shape"):
        load_images("mnist", tmp_path)


LAUGHS = "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 8)}]\n" for i in range(1, 12)
)
MERGES = "a0: &a0 {x0: 1}\n" + "".join(
    f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 8)}], x{i}: 1}}\n" for i in range(1, 12)
)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.yaml", LAUGHS, "aliases"),
        ("a.yaml", MERGES, "aliases"),
        ("a.yaml", "eps: " + "[" * 50_000, "not a valid YAML file"),
        ("a.yaml", "eps: " + "{a: " * 3_000, "not a valid YAML file"),
        ("a.yaml", "- " * 9_000, "not a valid YAML file"),
        ("a.toml", "eps = " + "[" * 50_000, "not a valid TOML file"),
        ("a.toml", "a." * 9_000 + "a = 1", "--config"),
        ("a.yaml", "eps: " + "[1, " * 40 + "1" + "]" * 40, "--eps"),
        ("a.yaml", "eps: [" + "1, " * 9_000 + "]", "--eps"),
        ("a.yaml", "eps: 2001-99-99", "not a valid YAML file"),
        ("a.yaml", "x" * 1_000 + ": 1", "unknown option"),
        ("a.yaml", "#" * 70_000, "more than 65536 characters"),
        ("a.yaml", "eps: " + "1" * 60_000, "--config"),
    ],
)
def test_trees_of_options(tmp_path, name, text, said):
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=said) as error:
        read_config_file(str(tmp_path / name))
    assert "\n" not in str(error.value) and len(str(error.value)) < 1000


# All of them

SWEEP = """
import random, sys, tempfile
from pathlib import Path
import torch
from hostile_files import KINDS, READERS, damaged, read
from memory import at_most
torch.set_num_threads(1)
random.seed(0)
files = []
for reader in READERS:
    path = Path(tempfile.mkdtemp(dir=sys.argv[1])) / reader.name
    whole = reader.sound(path.parent)
    path.write_bytes(whole)
    files.append((reader, path, whole, read(reader, path)))
count = 0
with at_most(500):
    for _ in range(-(-1000 // len(files))):
        for reader, path, whole, sound in files:
            data = whole
            for _ in range(random.randint(1, 4)):
                kind, what = random.choice(KINDS), random.randbytes(random.randint(1, 12))
                data = damaged(data, kind, random.random(), what)
            path.write_bytes(data)
            result = read(reader, path)
            assert isinstance(result, reader.error) or reader.right(result, sound), (reader.name, data)
            count += 1
print(count)
"""


@pytest.mark.process
@pytest.mark.needs("torch_fidelity")
def test_a_thousand_damaged_files_in_half_a_gigabyte(tmp_path):
    """Beside what torch and the sound files take."""
    tests = str(Path(__file__).resolve().parents[1])
    script = f"import sys; sys.path[:0] = [{tests!r}, {str(Path(tests).parent)!r}]\n{SWEEP}"
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout) >= 1000
