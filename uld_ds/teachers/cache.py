"""The output cache of a run: teacher outputs on disk, which later epochs and restarts read instead of computing again.

A folder on storage that all ranks share. Each process appends to one file of its own, a record per optimizer step,
and reads everybody's. Nothing is ever overwritten, so a record is there whole or, torn by a crash, not at all.

Layout of a file, little-endian::

    magic "ULDJ", version u8, length u16 of the identity, the identity (UTF-8), crc32 u32 of all before
    then records, one per step:
        magic "STEP", step i64, number of examples u32, crc32 u32 of step, number and table
        table, per example: number i64, length u32 of its bytes, crc32 u32 of them
        the examples' bytes (uld_ds.teachers.outputs_codec), one after the other
"""

from __future__ import annotations

import os
import re
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from uld_ds.errors import FinalError, UserError
from uld_ds.spectrum.precision import Precision
from uld_ds.teacher_outputs import TeacherTokens
from uld_ds.teachers.outputs_codec import decode_many, encode_many

# Journals with compact top-k tokens or truncated spectra are of another version: earlier releases cannot read those.
_PLAIN_VERSION, _VERSION = 1, 2
_FILE = struct.Struct("<4sBH")
_RECORD = struct.Struct("<4sqII")
_CRC = struct.Struct("<I")
_FILE_MAGIC, _RECORD_MAGIC = b"ULDJ", b"STEP"
_TABLE = np.dtype([("example", "<i8"), ("length", "<u4"), ("crc", "<u4")])
# Where an example's bytes are; step -1: not cached.
_PLACE = np.dtype([("step", "<i8"), ("file", "<i4"), ("offset", "<i8"), ("length", "<u4"), ("crc", "<u4")])
_NAME = re.compile(r"\d{5}-\d{4}\.journal")


class OutputCache:
    """An append-only journal of ``TeacherTokens`` by example number.

    Args:
        folder: Folder on storage that all ranks share; made if missing.
        identity: Digest of all that decides the teacher's outputs: teacher, data, template, temperature.
        rank: Rank of this process; names the file it appends to.
        precision: Precision of the codec.
        vocab_size: Tokens of the teacher's vocabulary, where all that is known of its distributions are their top-k
            tokens (``uld_ds.teachers.outputs_codec.encode_many``).
        key: Recipe key to name in an error.

    Raises:
        UserError: the folder holds outputs of another identity.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        identity: str,
        *,
        rank: int,
        precision: Precision | None = None,
        vocab_size: int | None = None,
        key: str = "teacher.memory",
    ) -> None:
        self._folder = Path(folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._identity = identity
        self._rank = rank
        self._precision = precision
        self._vocab_size = vocab_size
        self._key = key
        self._files: dict[str, _Journal] = {}
        self._by_number: list[_Journal] = []
        self._places = np.zeros(0, _PLACE)
        self._count = 0
        self._own: BinaryIO | None = None
        self.refresh()

    def __len__(self) -> int:
        """Count the examples whose teacher outputs are cached."""
        return self._count

    def __contains__(self, example: object) -> bool:
        if not isinstance(example, int | np.integer) or not 0 <= example < len(self._places):
            return False
        return bool(self._places["step"][int(example)] >= 0)

    def complete(self, num_examples: int, judged: np.ndarray | None = None) -> bool:
        """Tell whether the outputs of all examples from 0 up to, not including, ``num_examples`` are cached.

        Args:
            num_examples: Number of the examples.
            judged: Numbers of those among them that count; by default all of them.
        """
        if judged is not None and len(judged) < num_examples:
            known = judged[judged < len(self._places)]
            return len(known) == len(judged) and bool((self._places["step"][known] >= 0).all())
        return len(self._places) >= num_examples and bool((self._places["step"][:num_examples] >= 0).all())

    def append(self, step: int, examples: Mapping[int, TeacherTokens]) -> dict[int, TeacherTokens]:
        """Cache the teacher outputs computed for optimizer step ``step``: all of them, or after a crash none.

        Returns what ``read`` will give from now on, on any rank and after any restart; on the CPU. Of an example
        that was in the cache already, these are the outputs that were there.
        """
        new = {number: tokens for number, tokens in examples.items() if number not in self}
        if new:
            plain = all(tokens.top is None and tokens.spectrum.unknown_mass is None for tokens in new.values())
            self._write(step, list(new), self._encoded(list(new.values())), _PLAIN_VERSION if plain else _VERSION)
        return dict(zip(examples, self.read(list(examples)), strict=True))

    def read(self, examples: Sequence[int]) -> list[TeacherTokens]:
        """Read the cached teacher outputs of these examples, in this order, on the CPU.

        Raises:
            KeyError: an example is not cached (``in`` tells).
            FinalError: a file is damaged (names it).
        """
        blobs: list[bytes] = [b""] * len(examples)
        by_file: dict[int, list[tuple[int, int]]] = {}
        for place, example in enumerate(examples):
            if example not in self:
                raise KeyError(example)
            where = self._places[example]
            by_file.setdefault(int(where["file"]), []).append((int(where["offset"]), place))
        for number, wanted in by_file.items():
            journal = self._by_number[number]
            with journal.path.open("rb") as file:
                for offset, place in sorted(wanted):
                    where = self._places[examples[place]]
                    file.seek(offset)
                    blobs[place] = file.read(int(where["length"]))
                    if zlib.crc32(blobs[place]) != where["crc"]:
                        raise FinalError(f"{journal.path} is damaged (example {examples[place]}); remove this file")
        return decode_many(blobs)

    def as_read(self, said: Sequence[TeacherTokens]) -> list[TeacherTokens]:
        """Return teacher outputs as they would be read from here, on the CPU, without caching them."""
        return decode_many(self._encoded(said)) if said else []

    def _encoded(self, said: Sequence[TeacherTokens]) -> list[bytes]:
        return encode_many(said, self._precision, vocab_size=self._vocab_size)

    def refresh(self) -> None:
        """Pick up the outputs that other ranks have appended; only what is new is read.

        Raises:
            UserError: a file was written under another identity.
        """
        for path in sorted(self._folder.iterdir()):
            if _NAME.fullmatch(path.name) and path.name not in self._files:
                journal = _Journal(path, len(self._by_number))
                self._files[path.name] = journal
                self._by_number.append(journal)
        for journal in self._by_number:
            for step, table, offset in journal.new_records(self._identity, self._key):
                self._learn(journal.number, step, table, offset)

    def close(self) -> None:
        """Close this process's file; the next ``append`` begins another."""
        if self._own is not None:
            self._own.close()
            self._own = None

    def _write(self, step: int, examples: list[int], blobs: list[bytes], version: int = _PLAIN_VERSION) -> None:
        table = np.zeros(len(examples), _TABLE)
        table["example"] = examples
        table["length"] = [len(blob) for blob in blobs]
        table["crc"] = [zlib.crc32(blob) for blob in blobs]
        file = self._own or self._new_file(version)
        self._own = file
        try:
            file.write(_record_head(step, table) + b"".join(blobs))
            file.flush()
            os.fsync(file.fileno())
        except OSError:
            # Whatever follows half a record is never read: what is written next goes into another file.
            self._own = None
            raise
        self.refresh()

    def _new_file(self, version: int) -> BinaryIO:
        # A file of its own for every process that ever ran: no torn end of an earlier one has to be repaired, and
        # one that was thought dead cannot write into this one's.
        for attempt in range(10_000):
            try:
                file = (self._folder / f"{self._rank:05d}-{attempt:04d}.journal").open("xb")
            except FileExistsError:
                continue
            file.write(_file_head(self._identity, version))
            return file
        raise FinalError(f"{self._folder} has 10,000 files of rank {self._rank}; remove the folder")

    def _learn(self, file: int, step: int, table: np.ndarray, offset: int) -> None:
        if len(table) == 0:
            return
        examples = table["example"]
        needed = int(examples.max()) + 1
        if needed > len(self._places):
            grown = np.zeros(max(needed, 2 * len(self._places)), _PLACE)
            grown["step"] = -1
            grown[: len(self._places)] = self._places
            self._places = grown
        found = np.zeros(len(table), _PLACE)
        lengths = table["length"].astype(np.int64)
        found["step"], found["file"] = step, file
        found["offset"] = offset + np.cumsum(lengths) - lengths
        found["length"], found["crc"] = table["length"], table["crc"]
        known = self._places[examples]
        absent = known["step"] < 0
        # Of two records of an example every rank must choose the same one, whatever it saw first.
        better = absent | (step < known["step"])
        same_step = ~absent & (known["step"] == step)
        for row in np.flatnonzero(same_step):
            ours = self._by_number[int(known[row]["file"])].path.name
            better[row] = self._by_number[file].path.name < ours
        self._count += int(absent.sum())
        self._places[examples[better]] = found[better]


class _Journal:
    """One journal file, and how far it was read."""

    def __init__(self, path: Path, number: int) -> None:
        self.path = path
        self.number = number
        self._end = 0

    def new_records(self, identity: str, key: str) -> Iterable[tuple[int, np.ndarray, int]]:
        """Yield step, table and offset of the first blob of every whole record since the last call."""
        size = self.path.stat().st_size
        if size <= self._end:
            return
        with self.path.open("rb") as file:
            if self._end == 0 and not self._skip_head(file, identity, key):
                return
            while (record := self._next_record(file, size)) is not None:
                yield record

    def _skip_head(self, file: BinaryIO, identity: str, key: str) -> bool:
        head = file.read(_FILE.size)
        if len(head) < _FILE.size:
            return False
        magic, version, length = _FILE.unpack(head)
        rest = file.read(length + _CRC.size)
        if len(rest) < length + _CRC.size:
            return False
        if (
            magic != _FILE_MAGIC
            or version not in (_PLAIN_VERSION, _VERSION)
            or _CRC.unpack(rest[length:])[0] != zlib.crc32(head + rest[:length])
        ):
            raise UserError(key, f"{self.path} is no journal of this release", "remove it")
        there = rest[:length].decode()
        if there != identity:
            problem = (
                f"{self.path.parent} is of another teacher, data or template "
                f"(identity {there[:16]} there, {identity[:16]} here)"
            )
            raise UserError(key, problem, "remove the folder, or give the run another name")
        self._end = file.tell()
        return True

    def _next_record(self, file: BinaryIO, size: int) -> tuple[int, np.ndarray, int] | None:
        file.seek(self._end)
        head = file.read(_RECORD.size)
        if len(head) < _RECORD.size:
            return None
        magic, step, count, crc = _RECORD.unpack(head)
        table_size = count * _TABLE.itemsize
        if magic != _RECORD_MAGIC or self._end + _RECORD.size + table_size > size:
            return None
        table = np.frombuffer(file.read(table_size), _TABLE)
        if crc != _table_crc(step, table):
            return None
        offset = self._end + _RECORD.size + table_size
        end = offset + int(table["length"].sum(dtype=np.int64))
        if end > size:
            return None
        self._end = end
        return step, table, offset


def _file_head(identity: str, version: int) -> bytes:
    name = identity.encode()
    head = _FILE.pack(_FILE_MAGIC, version, len(name)) + name
    return head + _CRC.pack(zlib.crc32(head))


def _record_head(step: int, table: np.ndarray) -> bytes:
    return _RECORD.pack(_RECORD_MAGIC, step, len(table), _table_crc(step, table)) + table.tobytes()


def _table_crc(step: int, table: Any) -> int:
    return zlib.crc32(struct.pack("<qI", step, len(table)) + table.tobytes())
