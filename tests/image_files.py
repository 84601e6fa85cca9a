"""Small image sets of our own, in the formats of the real ones."""

import gzip
import hashlib
import io
import struct
import tarfile
from functools import cache

import numpy as np
import torch


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def idx(array):
    head = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    return gzip.compress(head + array.tobytes(), mtime=0)


def tar(members):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, body in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(body)
            archive.addfile(info, io.BytesIO(body))
    return gzip.compress(buffer.getvalue(), mtime=0)


def npz(**arrays):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def numbers(seed, *shape, high=256):
    return np.random.default_rng(seed).integers(high, size=shape, dtype=np.uint8)


IDX_ARRAYS = {
    "small/train-images.gz": numbers(0, 30, 28, 28),
    "small/train-labels.gz": numbers(1, 30, high=10),
    "small/t10k-images.gz": numbers(2, 12, 28, 28),
    "small/t10k-labels.gz": numbers(3, 12, high=10),
}


IDX_ARRAYS = {
    "small/train-images.gz": numbers(0, 30, 28, 28),
    "small/train-labels.gz": numbers(1, 30, high=10),
    "small/t10k-images.gz": numbers(2, 12, 28, 28),
    "small/t10k-labels.gz": numbers(3, 12, high=10),
}
IDX_FILES = {name: idx(array) for name, array in IDX_ARRAYS.items()}


def unpacked(name):
    return gzip.decompress(IDX_FILES[name])


def cifar_arrays(n_classes):
    x, y = numbers(4, 60, 3, 32, 32), numbers(5, 60, high=n_classes)
    return x, np.concatenate([np.arange(10, dtype=np.uint8), y[10:]])


@cache
def cifar_archive(n_classes):
    """Fifty training images, five batches of ten, and ten test images in the binary format."""
    x, y = cifar_arrays(n_classes)
    labels = y[:, None] if n_classes == 10 else np.stack([y // 5, y], axis=1)
    rows = np.concatenate([labels, x.reshape(60, -1)], axis=1)
    if n_classes == 100:
        members = {"train.bin": rows[:50], "test.bin": rows[50:], "fine_label_names.txt": rows[:0]}
        return tar({f"cifar-100-binary/{k}": v.tobytes() for k, v in members.items()})
    members = {f"data_batch_{i + 1}.bin": rows[10 * i : 10 * i + 10] for i in (4, 2, 0, 1, 3)}
    members = {"batches.meta.txt": rows[:0], "test_batch.bin": rows[50:], **members}
    return tar({f"cifar-10-batches-bin/{k}": v.tobytes() for k, v in members.items()})


def prepared_part(**changes):
    x, y = cifar_arrays(10)
    x = x.transpose(0, 2, 3, 1)
    arrays = {"x_train": x[:20], "y_train": y[:20], "x_test": x[50:55], "y_test": y[50:55]}
    return npz(**{key: value for key, value in (arrays | changes).items() if value is not None})


EVERYTHING = IDX_FILES | {
    "cifar-10.tar.gz": cifar_archive(10),
    "cifar-100.tar.gz": cifar_archive(100),
}


def with_sums(files):
    lines = [f"{hashlib.sha256(files[name]).hexdigest()}  {name}\n" for name in sorted(files)]
    return files | {"SHA256SUMS": "".join(lines).encode()}


def files_under(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def write(folder, files):
    for name, body in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(body)
    return folder


def assert_is_idx(dataset):
    x_train, y_train, x_test, y_test = IDX_ARRAYS.values()
    assert dataset.x_train.dtype == torch.float32
    assert dataset.y_train.dtype == torch.int64
    assert np.array_equal((dataset.x_train * 255).round().numpy(), x_train[:, None])
    assert np.array_equal((dataset.x_test * 255).round().numpy(), x_test[:, None])
    assert np.array_equal(dataset.y_train.numpy(), y_train)
    assert np.array_equal(dataset.y_test.numpy(), y_test)
