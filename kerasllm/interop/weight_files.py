"""Tensors in safetensors files, one or several: found and checked without being read, and read one at a time."""

import dataclasses
import json
import math
import mmap
import struct
from collections.abc import Callable, Iterable
from pathlib import Path

import ml_dtypes
import numpy as np

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
MAX_INDEX_BYTES = 1 << 26  # An index has a line for each tensor.
DTYPES = {"F32": np.dtype("float32"), "F16": np.dtype("float16"), "F64": np.dtype("float64")}
DTYPES["BF16"] = np.dtype(ml_dtypes.bfloat16)
INTEGERS = {"I8": np.dtype("int8"), "U8": np.dtype("uint8")}  # of quantized weights


@dataclasses.dataclass(frozen=True)
class Tensor:
    """Where a tensor lies in a file.

    Args:
        path: of the file.
        dtype: as safetensors has it, such as "BF16".
        shape: sizes of its axes.
        offset: bytes before it.
    """

    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int

    def read(self) -> np.ndarray:
        """The tensor as a map of the file, which takes memory while it is looked at."""
        return np.memmap(self.path, (DTYPES | INTEGERS)[self.dtype], "r", self.offset, self.shape)


def find_tensors(directory: Path) -> dict[str, Tensor]:
    """All tensors of a directory by name: of its model.safetensors, else of the files that its index names.

    Raises:
        FileNotFoundError: there are no weights, or the index names a file that is not there.
        ValueError: a file is damaged, or the index and the files disagree.
    """
    if (directory / SINGLE).is_file():
        return tensors_of(directory / SINGLE)
    index = directory / INDEX
    if not index.is_file():
        raise FileNotFoundError(
            f"{str(directory)!r} has neither {SINGLE} nor {INDEX}. Pickled weights (.bin) are never read."
        )
    weight_map = read_json(index, MAX_INDEX_BYTES).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise ValueError(f"{str(index)!r} has no weight_map of tensors to files.")
    tensors = {}
    for file in dict.fromkeys(weight_map.values()):
        if any(mark in file for mark in "/\\:") or not file.endswith(".safetensors"):
            raise ValueError(f"{str(index)!r} names {file!r}, and may only name .safetensors files beside it.")
        if not (directory / file).is_file():
            raise FileNotFoundError(f"{str(directory)!r} lacks {file}, which {INDEX} names.")
        tensors |= {name: t for name, t in tensors_of(directory / file).items() if weight_map.get(name, file) == file}
    for name, file in weight_map.items():
        if name not in tensors or tensors[name].path.name != file:
            raise ValueError(f"{str(directory / file)!r} lacks {name}, which {INDEX} says it has.")
    return tensors


def fresh_copy(array: np.ndarray) -> np.ndarray:
    """A copy in C order in pages of its own.

    It is aligned as JAX and PyTorch need it to take it over without copying it again; and where it is not taken over,
    its pages go back at once, where freed heap of this size would stay with the process.
    """
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
    copy = np.frombuffer(mmap.mmap(-1, array.nbytes, **private), array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def write_tensors(directory: Path, sizes: dict[str, int], make: Callable[[str], np.ndarray], max_shard_bytes: int):
    """Writes tensors into one file, or into several with an index if they are larger than `max_shard_bytes`.

    Args:
        directory: where to; it exists.
        sizes: bytes of each tensor.
        make: name → the tensor; called for one file's tensors at a time.
        max_shard_bytes: of a file; a larger tensor has a file of its own.
    """
    import safetensors.numpy

    shards = _shards(sizes, max_shard_bytes)
    files = [SINGLE] if len(shards) == 1 else [_shard_file(i, len(shards)) for i in range(len(shards))]
    for file, names in zip(files, shards):
        weights = {name: np.asarray(make(name), order="C") for name in names}
        safetensors.numpy.save_file(weights, directory / file, metadata={"format": "pt"})
    if len(shards) > 1:
        weight_map = {name: file for file, names in zip(files, shards) for name in names}
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
        (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def stale_files(directory: Path, written: Iterable[str]) -> list[Path]:
    """Files of weights, or of sentence-transformers, in a directory that are not among those just written to it."""
    found = [
        directory / SINGLE,
        directory / INDEX,
        directory / "modules.json",
        *directory.glob("model-?????-of-?????.safetensors"),
    ]
    return [path for path in found if path.name not in set(written) and path.is_file()]


def read_json(path: Path, max_bytes: int, kind: type = dict):
    """A JSON object, or array, from a file that nobody vouches for."""
    if not path.is_file():
        raise FileNotFoundError(f"{str(path)!r} is missing.")
    if path.stat().st_size > max_bytes:
        raise ValueError(f"{str(path)!r} is larger than {max_bytes} bytes, which none of its kind is.")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{str(path)!r} is not valid JSON: {error}") from None
    if not isinstance(values, kind):
        raise ValueError(f"{str(path)!r} holds no JSON {'object' if kind is dict else 'array'}.")
    return values


def tensors_of(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file by name, none of them read yet; raises a ValueError if it is damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy"):
            pass  # It has checked the header: its length, and that the tensors fill the file without a gap.
    except SafetensorError as error:
        raise ValueError(f"{str(path)!r} is damaged or not a safetensors file: {error}") from None
    with open(path, "rb") as file:
        length = struct.unpack("<Q", file.read(8))[0]
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        dtype, shape, (start, stop) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        known = (DTYPES | INTEGERS).get(dtype)
        fills = known is None or stop - start == math.prod(shape) * known.itemsize
        if not fills or 8 + length + stop > path.stat().st_size:
            raise ValueError(f"{str(path)!r} is damaged: {name!r} does not fill its place.")
        tensors[name] = Tensor(path, dtype, shape, 8 + length + start)
    return tensors


def _shards(sizes: dict[str, int], max_bytes: int) -> list[list[str]]:
    shards, filled = [[]], 0
    for name, size in sizes.items():
        if shards[-1] and filled + size > max_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


def _shard_file(i: int, count: int) -> str:
    return f"model-{i + 1:05}-of-{count:05}.safetensors"
