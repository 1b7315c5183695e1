"""Small data sets written to disk in their official layouts."""

import numpy as np


def write_mnist(folder, train, test, seed=0):
    """A folder with MNIST's four idx files, of random images and labels; returns it."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    for name, count in (("train", train), ("t10k", test)):
        images, labels = random.integers(0, 256, (count, 28, 28)), random.integers(0, 10, count)
        for kind, array in (("images-idx3-ubyte", images), ("labels-idx1-ubyte", labels)):
            header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
            (folder / f"{name}-{kind}").write_bytes(header + array.astype(np.uint8).tobytes())
    return folder
