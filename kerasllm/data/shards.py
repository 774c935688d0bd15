"""Token shards: a text's token ids on disk, memory-mapped, with a manifest that says what they are.

A directory of shards holds

- `shard-00000.bin`, …: token ids, little-endian uint16 (or uint32 for vocabularies above 65,536);
- `shard-00000.idx`, …: where documents start in that shard, little-endian uint64;
- `manifest.json`: format version, dtype, counts, the SHA-256 of every file, and the fingerprints of the
  tokenizer and of the source.
"""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from kerasllm.data.sources import Source, read_pieces, source_fingerprint
from kerasllm.tokenizers import Tokenizer

FORMAT, VERSION = "kerasllm-shards", 1
SHARD_TOKENS = 1 << 28
# Characters that are encoded in one call: enough for the tokenizer's threads, a few hundred MB at most.
ENCODE_CHARACTERS = 1 << 21


class TokenShards:
    """The token ids of a text as one long sequence, held in one or more arrays, in memory or mapped from
    disk.

    Args:
        arrays: 1-D integer arrays that follow one another.
        document_offsets: int64 array: where each document starts, ascending from 0.
        bytes_per_token: UTF-8 bytes of the text for each token, which turns loss per token into bits per
            byte.
        tokenizer_fingerprint: of the tokenizer that made the ids.

    Example:

    ```python
    shards = TokenShards.from_arrays([[5, 6, 7], [8, 9]])
    tokens = shards.read(1, 4)
    ```
    """

    def __init__(
        self,
        arrays: Sequence[np.ndarray],
        document_offsets: np.ndarray,
        bytes_per_token: float | None = None,
        tokenizer_fingerprint: str | None = None,
    ):
        self._arrays = list(arrays)
        self._id_range: tuple[int, int] | None = None
        self._ends = np.cumsum([len(array) for array in self._arrays])
        self.document_offsets = document_offsets
        self.bytes_per_token = bytes_per_token
        self.tokenizer_fingerprint = tokenizer_fingerprint

    @classmethod
    def from_arrays(cls, documents: Sequence[Sequence[int]], **kwargs) -> "TokenShards":
        """Shards in memory from the token ids of each document; keywords as for `TokenShards`."""
        arrays = [np.asarray(document) for document in documents if len(document)]
        lengths = np.array([0, *map(len, arrays)], dtype=np.int64)
        tokens = np.concatenate(arrays) if arrays else np.zeros(0, np.int64)
        return cls([tokens], np.cumsum(lengths)[:-1], **kwargs)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def read(self, start: int, stop: int) -> np.ndarray:
        """Token ids in [start, stop), int32 (stop - start,).

        Raises:
            IndexError: the range lies outside the tokens.
        """
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"Expected a range within [0, {len(self)}). Received: start={start}, stop={stop}")
        parts = [array[first:last] for array, first, last in self._overlaps(start, stop)]
        return np.concatenate([np.zeros(0, np.int32), *parts], dtype=np.int32, casting="unsafe")

    def id_range(self) -> tuple[int, int]:
        """The smallest and the largest token id; found once, by reading everything."""
        if self._id_range is None:
            low, high = zip(*((int(a.min()), int(a.max())) for a in self._arrays if len(a)))
            self._id_range = min(low), max(high)
        return self._id_range

    def slice(self, start: int, stop: int) -> "TokenShards":
        """The tokens in [start, stop) as shards of their own, without a copy."""
        first, last = np.searchsorted(self.document_offsets, [start, stop])
        offsets = np.asarray(self.document_offsets[first:last]) - start
        if stop > start and (not len(offsets) or offsets[0] > 0):
            offsets = np.concatenate([[0], offsets])
        arrays = [array[a:b] for array, a, b in self._overlaps(start, stop)]
        return TokenShards(arrays, offsets, self.bytes_per_token, self.tokenizer_fingerprint)

    def _overlaps(self, start: int, stop: int) -> Iterator[tuple[np.ndarray, int, int]]:
        index = int(np.searchsorted(self._ends, start, side="right"))
        while start < stop:
            begin = int(self._ends[index]) - len(self._arrays[index])
            end = min(stop, int(self._ends[index]))
            yield self._arrays[index], start - begin, end - begin
            start, index = end, index + 1


def tokenize(source: Source, tokenizer: Tokenizer, column: str | None = None) -> TokenShards:
    """A source's tokens in memory, for small texts; see `build_shards` for large ones.

    Example:

    ```python
    shards = tokenize(["first document", "second document"], tokenizer)
    ```
    """
    dtype, arrays, offsets, length, num_bytes = _dtype(tokenizer), [], [], 0, 0
    for ids, starts_document, size in _token_stream(source, tokenizer, column):
        if starts_document:
            offsets.append(length)
        arrays.append(np.asarray(ids, dtype))
        length += len(ids)
        num_bytes += size
    tokens = np.concatenate(arrays) if arrays else np.zeros(0, dtype)
    bytes_per_token = num_bytes / max(length, 1)
    return TokenShards([tokens], np.array(offsets, np.int64), bytes_per_token, tokenizer.fingerprint)


def build_shards(
    source: Source,
    tokenizer: Tokenizer,
    directory: str | os.PathLike,
    *,
    column: str | None = None,
    shard_tokens: int = SHARD_TOKENS,
) -> TokenShards:
    """Tokenizes a source into a directory of shards, or opens them if they are there already.

    Documents are followed by the tokenizer's end token, if it has one. Text that spells a special token is
    encoded as plain text. The text is streamed: memory does not grow with it. The directory is built aside
    and renamed, so it is either whole or as it was before.

    Args:
        source, column: see `read_texts`. What is there is used again if the source's paths, sizes and times
            have not changed (an iterator cannot be compared: it is always read).
        tokenizer: a `Tokenizer`.
        directory: where to put the shards. It may be there only if it holds shards, which are replaced.
        shard_tokens: tokens in a file.

    Returns:
        The shards, opened and verified.

    Raises:
        ValueError: the source has no text, or the directory holds other files.
        OSError: the disk is full or cannot be written. Nothing half-written is left.

    Example:

    ```python
    shards = build_shards("books/", tokenizer, "books-tokens")
    ```
    """
    directory = Path(directory)
    identity = {"tokenizer": tokenizer.fingerprint, "end_token_id": tokenizer.end_token_id}
    if tokenizer.text_start_ids:  # Shards made before it was written have none, and stay as they are.
        identity["start_token_id"] = tokenizer.text_start_ids[0]
    identity["source"] = source_fingerprint(source, column)
    if directory.exists():
        if not (directory / "manifest.json").is_file() and any(directory.iterdir()):
            raise ValueError(f"{directory} holds other files than token shards. Choose an empty or new directory.")
        if _holds(directory, identity):
            return open_shards(directory, tokenizer=tokenizer)
    directory.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", suffix=".partial", dir=directory.parent))
    try:
        with _Writer(partial, _dtype(tokenizer), shard_tokens) as writer:
            for ids, starts_document, size in _token_stream(source, tokenizer, column):
                writer.write(ids, starts_document, size)
            writer.finish(identity)
        _replace_directory(partial, directory, identity)
    except OSError as error:
        free = shutil.disk_usage(directory.parent).free
        raise OSError(
            error.errno,
            f"Could not build token shards in {directory}: {error.strerror or error} "
            f"({free / 1e6:.0f} MB free on that disk). Nothing was left behind.",
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return open_shards(directory, verify=False, tokenizer=tokenizer)


def open_shards(directory: str | os.PathLike, verify: bool = True, tokenizer: Tokenizer | None = None) -> TokenShards:
    """Maps a directory of shards into memory.

    Args:
        directory: what `build_shards` wrote.
        verify: compare every file's SHA-256 with the manifest (about a second a gigabyte). Sizes always are.
        tokenizer: if given, the shards must be this tokenizer's.

    Raises:
        FileNotFoundError: there is no manifest, or a file that it names is missing.
        ValueError: a damaged manifest, a file whose size or hash differs (it is named), or another tokenizer.

    Example:

    ```python
    shards = open_shards("books-tokens", tokenizer=tokenizer)
    ```
    """
    directory = Path(directory)
    manifest = _read_manifest(directory)
    if tokenizer is not None and manifest["tokenizer"] != tokenizer.fingerprint:
        raise ValueError(
            f"The shards in {directory} were made by another tokenizer: its fingerprint is "
            f"{manifest['tokenizer'][:12]}…, this one's is {tokenizer.fingerprint[:12]}…. Build them again "
            "with this tokenizer, in another directory."
        )
    for name, expected in manifest["files"].items():
        _check_file(directory / name, expected, verify)
    arrays, offsets, length = [], [], 0
    for index in range(len(manifest["files"]) // 2):
        arrays.append(np.memmap(directory / f"shard-{index:05d}.bin", dtype=manifest["dtype"], mode="r"))
        starts = np.fromfile(directory / f"shard-{index:05d}.idx", dtype="<u8").astype(np.int64)
        offsets.append(starts + length)
        length += len(arrays[-1])
    return TokenShards(arrays, np.concatenate(offsets), manifest["bytes"] / max(length, 1), manifest["tokenizer"])


class _Writer:
    """Writes shards as the tokens come, hashing on the way."""

    def __init__(self, directory: Path, dtype: str, shard_tokens: int):
        self.directory, self.dtype, self.shard_tokens = directory, dtype, shard_tokens
        self.files: dict[str, dict] = {}
        self.tokens = self.documents = self.bytes = 0
        self.starts: list[int] = []
        self.file = None

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(self, *exception) -> None:
        if self.file is not None:
            with contextlib.suppress(OSError):  # closing writes what is buffered, and the disk may be full
                self.file.close()

    def write(self, ids: list[int], starts_document: bool, num_bytes: int) -> None:
        self.bytes += num_bytes
        self.documents += starts_document
        ids = np.asarray(ids, self.dtype)
        while len(ids):
            if self.file is None:
                self._open()
            if starts_document:
                self.starts.append(self.used)
                starts_document = False
            part, ids = np.split(ids, [self.shard_tokens - self.used])
            self.file.write(part.data)
            self.hash.update(part.data)
            self.used += len(part)
            self.tokens += len(part)
            if self.used == self.shard_tokens:
                self._close()

    def finish(self, identity: dict) -> None:
        if self.file is not None:
            self._close()
        counts = {"tokens": self.tokens, "documents": self.documents, "bytes": self.bytes}
        manifest = {"format": FORMAT, "version": VERSION, "dtype": self.dtype, **counts, **identity}
        text = json.dumps({**manifest, "files": self.files}, indent=2) + "\n"
        with open(self.directory / "manifest.json", "w", encoding="utf-8") as file:
            file.write(text)
            _flush(file)

    def _open(self) -> None:
        self.name = f"shard-{len(self.files) // 2:05d}"
        self.file = open(self.directory / f"{self.name}.bin", "wb")  # noqa: SIM115 (_close closes it)
        self.hash, self.used, self.starts = hashlib.sha256(), 0, []

    def _close(self) -> None:
        with self.file:
            _flush(self.file)
        starts = np.array(self.starts, "<u8").tobytes()
        with open(self.directory / f"{self.name}.idx", "wb") as file:
            file.write(starts)
            _flush(file)
        size = self.used * np.dtype(self.dtype).itemsize
        self.files[f"{self.name}.bin"] = {"size": size, "sha256": self.hash.hexdigest()}
        self.files[f"{self.name}.idx"] = {"size": len(starts), "sha256": hashlib.sha256(starts).hexdigest()}
        self.file = None


def _token_stream(source: Source, tokenizer: Tokenizer, column: str | None) -> Iterator[tuple[list[int], bool, int]]:
    """For each piece of text: its ids, whether they start a document, and its UTF-8 bytes."""
    started = any_tokens = False
    for pieces in _batches(read_pieces(source, column)):
        # parse_special=False: a document must not be able to end itself by spelling the end token.
        encoded = tokenizer.encode([piece.text for piece in pieces], parse_special=False)
        for piece, ids in zip(pieces, encoded, strict=True):
            starts_document = bool(ids) and not started
            if starts_document:
                ids = tokenizer.text_start_ids + ids
            started = started or starts_document
            any_tokens = any_tokens or started
            if piece.ends_document:
                if started and tokenizer.end_token_id is not None:
                    ids.append(tokenizer.end_token_id)
                started = False
            yield ids, starts_document, len(piece.text.encode())
    if not any_tokens:
        raise ValueError("The source's text gives no tokens: it is only white space.")


def _batches(pieces: Iterator) -> Iterator[list]:
    batch, characters = [], 0
    for piece in pieces:
        batch.append(piece)
        characters += len(piece.text)
        if characters >= ENCODE_CHARACTERS or len(batch) >= 4096:
            yield batch
            batch, characters = [], 0
    yield batch


def _dtype(tokenizer: Tokenizer) -> str:
    return "<u2" if tokenizer.vocabulary_size <= 1 << 16 else "<u4"


def _read_manifest(directory: Path, default: dict | None = None) -> dict:
    path = directory / "manifest.json"
    if not path.is_file():
        if default is not None:
            return default
        raise FileNotFoundError(f"There are no token shards in {directory}: manifest.json is missing.")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        names = [f"shard-{i:05d}.{end}" for i in range(len(manifest["files"]) // 2) for end in ("bin", "idx")]
        good = (
            manifest["format"] == FORMAT
            and manifest["dtype"] in ("<u2", "<u4")
            and list(manifest["files"]) == names
            and all({"size", "sha256"} <= file.keys() for file in manifest["files"].values())
            and all(isinstance(manifest[key], int) for key in ("tokens", "documents", "bytes"))
            and {"tokenizer", "source"} <= manifest.keys()
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged: {error!r}. Delete the directory to build it again.") from error
    if not good:
        raise ValueError(f"{path} is damaged or is not a manifest of token shards. Delete it to build again.")
    if manifest["version"] != VERSION:
        raise ValueError(f"{path}: this release reads version {VERSION}. Received: {manifest['version']!r}")
    return manifest


def _check_file(path: Path, expected: dict, verify: bool) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing, though the manifest names it. Build the shards again.")
    if path.stat().st_size != expected["size"]:
        raise ValueError(
            f"{path} has {path.stat().st_size} bytes where the manifest says {expected['size']}: it was "
            "changed or cut short. Build the shards again."
        )
    if verify:
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != expected["sha256"]:
            raise ValueError(
                f"{path} was changed: its SHA-256 is {digest[:12]}…, the manifest says "
                f"{str(expected['sha256'])[:12]}…. Build the shards again."
            )


def _replace_directory(new: Path, directory: Path, identity: dict) -> None:
    os.chmod(new, 0o755)  # mkdtemp's directories are private
    while True:
        try:
            os.rename(new, directory)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        if _holds(directory, identity):
            return  # Another process has built the same meanwhile.
        with contextlib.suppress(FileNotFoundError):
            os.rename(directory, new.with_suffix(".old"))
        shutil.rmtree(new.with_suffix(".old"), ignore_errors=True)


def _holds(directory: Path, identity: dict) -> bool:
    """Whether the shards that are there are of this source, which an iterator never is, and tokenizer."""
    return bool(identity["source"]) and identity.items() <= _read_manifest(directory, {}).items()


def _flush(file) -> None:
    file.flush()
    os.fsync(file.fileno())
