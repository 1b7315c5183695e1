"""Every reader of files with a sound file of its kind, and ways to damage one."""

import gzip
import io
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from datgan_fast import TrainConfig, archives, files
from datgan_fast.data.datasets import load_images, load_labels
from datgan_fast.errors import ConfigError, DataError
from datgan_fast.metrics import feature_network, inception
from datgan_fast.paper import records
from datgan_fast.training.checkpoints import open_checkpoint, read_generator, save_generator
from datgan_fast.training.config_file import read_config_file
from datgan_fast.training.networks import build_discriminator, build_generator
from datgan_fast.training.run_folder import RunFolder
from image_files import idx_bytes, random_bytes, write_cifar

CONFIG = TrainConfig(width=2, z_dim=4, image_size=8, batch_size=4, device="cpu").resolved()
SHAPE = {"image_size": 8, "channels": 1, "width": 2}


class Reader(NamedTuple):
    """name        of the file, below a folder
    sound       makes its bytes
    read        of the file's path; raises `error` for what is no such file
    right       whether a result may be what is read of damaged bytes, of the result and the sound file's
    """

    name: str
    sound: Callable[[Path], bytes]
    read: Callable[[Path], Any]
    error: type[Exception]
    right: Callable[[Any, Any], bool]


def read(reader: Reader, path: Path) -> Any:
    """The result, or the documented error; what it warns of is nothing here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return reader.read(path)
        except reader.error as error:
            return error


def _written(path: Path, write: Callable[[Path], Any]) -> bytes:
    write(path)
    data = path.read_bytes()
    path.unlink()
    return data


def _idx(folder: Path) -> bytes:
    return idx_bytes(random_bytes(3, 28, 28))


def _zipped(folder: Path) -> bytes:
    return gzip.compress(_idx(folder), mtime=0)


def _cifar(folder: Path) -> bytes:
    return _written(folder / "x", lambda p: write_cifar(folder, "x", random_bytes(2, 3, 32, 32), np.array([3, 9])))


def _picture(kind: str, mode: str = "RGB") -> Callable[[Path], bytes]:
    def made(folder: Path) -> bytes:
        buffer = io.BytesIO()
        image = Image.fromarray(random_bytes(9, 12, 4 if mode == "RGBA" else 3))
        image.convert(mode).save(buffer, kind)
        return buffer.getvalue()

    return made


def generator() -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_generator("dcgan", z_dim=4, **SHAPE)


def state() -> dict[str, Any]:
    """A checkpoint as far as the commands read it."""
    network = generator().state_dict()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        discriminator = build_discriminator("dcgan", batch_norm=True, **SHAPE).state_dict()
    return {
        "step": 3,
        "config": CONFIG.typed(),
        "generator": network,
        "average": network,
        "discriminator": discriminator,
    }


def checkpoint(folder: Path) -> bytes:
    def write(path: Path) -> None:
        torch.save(state(), path)
        archives.seal(path)

    return _written(folder / "x.pt", write)


def _safetensors(folder: Path) -> bytes:
    return _written(folder / "x.safetensors", lambda path: save_generator(path, generator(), CONFIG, 3))


def classifier() -> feature_network.Classifier:
    return feature_network._untrained(16, 1, 2)


def _cache(folder: Path) -> bytes:
    return _written(folder / "x.safetensors", lambda path: feature_network._write(path, classifier(), 0.5))


def _records(folder: Path) -> bytes:
    lines = [{"step": i, "loss_d": i / 7, "images_per_second": None, "path": "shared"} for i in range(6)]
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def _inception(folder: Path) -> bytes:
    return _written(folder / "x.pth", lambda path: torch.save({"fc.weight": torch.zeros(10, 20)}, path))


def _yaml(folder: Path) -> bytes:
    return b"dat: false\neps: 0.5  # large\nsteps-attack: 2\nname: 'a name'\nbetas: &x [1, {a: 2}]\nlr: !!float 1e-3\n"


def _toml(folder: Path) -> bytes:
    return (
        b'eps = 0.5\nsteps_attack = 2\nname = "x"\ndat = false\n[more]\nwhen = 2020-01-01\nlist = [1, [2, {a = 3}]]\n'
    )


def open_all(path: Path) -> list[torch.Tensor]:
    """All that the commands take of a checkpoint."""
    opened = open_checkpoint(path, "SOURCE")
    networks = opened.generator("average").generator, opened.generator("raw").generator, opened.discriminator()
    return [t for network in networks for t in network.state_dict().values()]


def _equal(result: list[torch.Tensor], sound: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(result, sound, strict=True))


def _images(result: torch.Tensor, sound: torch.Tensor) -> bool:
    return result.dtype == torch.uint8 and result.shape[1:] == sound.shape[1:] and len(result) > 0


def _folder(path: Path) -> torch.Tensor:
    return load_images("folder", path.parent, image_size=8)


def _options(result: dict[str, Any], sound: object) -> bool:
    return all(isinstance(value, (bool, int, float, str, type(None))) for value in result.values())


def _no_weights(result: object, sound: object) -> bool:
    return False  # two tensors are no Inception, whatever becomes of them


_FOLDER = {
    "x.png": _picture("PNG"),
    "alpha.png": _picture("PNG", "RGBA"),
    "x.jpg": _picture("JPEG"),
    "x.gif": _picture("GIF"),
    "x.webp": _picture("WEBP"),
    "x.tif": _picture("TIFF"),
    "x.bmp": _picture("BMP"),
    "x.ppm": _picture("PPM"),
    "x.tga": _picture("TGA"),
    "x.ico": _picture("ICO"),
    "x.jp2": _picture("JPEG2000"),
}
READERS = (
    Reader("train-images-idx3-ubyte", _idx, lambda p: load_images("mnist", p.parent), DataError, _images),
    Reader("train-images-idx3-ubyte.gz", _zipped, lambda p: load_images("mnist", p.parent), DataError, _images),
    Reader(
        "train-labels-idx1-ubyte",
        lambda folder: idx_bytes(np.arange(5, dtype=np.uint8)),
        lambda p: load_labels("mnist", p.parent),
        DataError,
        lambda result, sound: result.dtype == torch.int64 and len(result) > 0,
    ),
    Reader("data_batch_1.bin", _cifar, lambda p: load_images("cifar10", p.parent), DataError, _images),
    *(Reader(name, sound, _folder, DataError, _images) for name, sound in _FOLDER.items()),
    Reader("options.yaml", _yaml, lambda p: read_config_file(str(p)), ConfigError, _options),
    Reader("options.toml", _toml, lambda p: read_config_file(str(p)), ConfigError, _options),
    Reader(
        "generator.safetensors",
        _safetensors,
        lambda p: read_generator(p).generator,
        ConfigError,
        lambda result, sound: sum(t.numel() for t in result.state_dict().values()) < 10_000,
    ),
    Reader("step-000003.pt", checkpoint, open_all, ConfigError, _equal),
    Reader(
        "stats.jsonl",
        _records,
        files.read_json_lines,
        NotImplementedError,  # none: what is no record is left out
        lambda result, sound: all(isinstance(record["step"], int) for record in result),
    ),
    Reader(
        "experiment.json",
        lambda folder: b'{"figure": "4", "setting": "wgan, n_dis 5", "variant": "DAT", "seed": 0}\n',
        records.place_of,
        ConfigError,
        lambda result, sound: list(map(type, result)) == list(map(type, sound)),
    ),
    Reader(
        "env.json",
        lambda folder: json.dumps({"torch": "2.13.0", "threads": 2, "gpu": [], "commit": None}).encode(),
        lambda p: RunFolder(p.parent).environment(),
        NotImplementedError,  # none: nothing depends on it
        lambda result, sound: isinstance(result, dict),
    ),
    Reader(
        "classifier.safetensors",
        _cache,
        lambda p: feature_network._read(p, classifier()),
        NotImplementedError,  # none: it would be trained again
        lambda result, sound: result is None or 0 <= result <= 1,
    ),
    Reader("weights.pth", _inception, lambda p: inception.find_weights(str(p)), ConfigError, _no_weights),
)


def damaged(data: bytes, kind: str, where: float, what: bytes) -> bytes:
    """where    from 0 to 1, in the file;  what    one byte or more"""
    place = int(where * len(data))
    if kind == "flip" and data:
        place = min(place, len(data) - 1)
        return data[:place] + bytes([data[place] ^ (1 << what[0] % 8)]) + data[place + 1 :]
    if kind == "cut" or not data:
        return data[:place]
    if kind == "insert":
        return data[:place] + what + data[place:]
    if kind == "overwrite":
        return data[:place] + what + data[place + len(what) :]
    assert kind == "repeat"
    return data[:place] + data[max(0, place - 40) : place] * (1 + what[0] % 50) + data[place:]


KINDS = ("flip", "cut", "insert", "overwrite", "repeat")


def sealed(path, content):
    torch.save(content, path)
    archives.seal(path)
    return path
