"""Manifests as people have them: text files that say where each recording is and what is said in it.

* CSV and TSV with a header (Mozilla Common Voice: `train.tsv` beside a folder `clips`);
* JSON lines (NeMo: `audio_filepath`, `offset`, `duration`, `text`), or one JSON list of objects;
* `metadata.csv`, `.tsv` or `.jsonl` beside the recordings, with a column `file_name`;
* Kaldi's `wav.scp`, `text`, `segments` and `utt2spk` in a folder.

`datasets` reads some of these, but guesses types (`007` becomes 7, `null` no text) and ends at the first bad row. Here
every value of a CSV or TSV is text, and a bad row is one bad row.
"""

import csv
import io
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .decoding import open_regular
from .row_paths import is_url

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json")
# What the column of paths is called, the likeliest first.
AUDIO_COLUMNS = ("audio", "audio_filepath", "audio_file", "audio_path", "file_name", "filename", "path", "file", "wav")
# Names of a split that mean the same.
_SPLITS = (("train", "training"), ("validation", "valid", "val", "dev"), ("test", "testing", "eval", "evaluation"))
_ROWS_TO_KNOW_COLUMNS = 1000
# As many parts as can be dealt to processes, or be open at once, without reading rows that are not wanted.
_SHARDS = 64


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be read, and why."""

    reason: str


class Manifest:
    """The rows of one or more text files, parsed one by one when they are read.

    Attributes:
        audio_columns: Those that are known to be audio by more than their names: none are.
        class_names: Of columns of numbers that stand for names: none are known.
        columns: Their names.
        bases: Folders that relative paths in the rows start from.
        num_shards: Parts of about equal size, in order.
        offset_is_optional: Whether `duration` alone says which part of a file a row is (NeMo).
    """

    def __init__(
        self, rows: list[str | BadRow], places: list[str], bases: list[str], columns: list[str] | None = None
    ):
        self._rows, self._places, self.bases = rows, places, bases
        if columns is None:
            columns = sorted({name for row in self._first_rows() for name in row})
        self.columns = columns
        self.audio_columns: list[str] = []
        self.class_names: dict[str, list[str]] = {}
        self.num_shards = min(_SHARDS, len(rows)) or 1
        self.offset_is_optional = "audio_filepath" in columns

    def _first_rows(self) -> Iterator[dict[str, Any]]:
        for row in self._rows[:_ROWS_TO_KNOW_COLUMNS]:
            if isinstance(values := _parsed(row), dict):
                yield values

    def __len__(self) -> int:
        return len(self._rows)

    def bounds(self, shard: int) -> range:
        """The rows of a shard."""
        return range(len(self) * shard // self.num_shards, len(self) * (shard + 1) // self.num_shards)

    def place(self, shard: int, row: int) -> str:
        """What a person would call a row: its file and line."""
        return self._places[self.bounds(shard)[row]]

    def open_shard(self, shard: int, position: dict[str, Any] | None) -> "_Rows":
        return _Rows(self, self.bounds(shard), 0 if position is None else position["row"])

    def row(self, number: int) -> dict[str, Any] | BadRow:
        return _parsed(self._rows[number])

    def kept(self, wanted: Iterable[bool]) -> "Manifest":
        """The same with some of the rows."""
        numbers = [number for number, keep in enumerate(wanted) if keep]
        rows, places = [self._rows[number] for number in numbers], [self._places[number] for number in numbers]
        return Manifest(rows, places, self.bases, self.columns)


class _Rows:
    """Iterates over a shard as a stream of `datasets` does."""

    def __init__(self, manifest: Manifest, bounds: range, row: int):
        self._manifest, self._bounds, self._row = manifest, bounds, row

    def state_dict(self) -> dict[str, Any]:
        return {"row": self._row}

    def __iter__(self) -> Iterator[dict[str, Any] | BadRow]:
        while self._row < len(self._bounds):
            self._row += 1
            yield self._manifest.row(self._bounds[self._row - 1])


def _parsed(row: str | BadRow) -> dict[str, Any] | BadRow:
    if isinstance(row, BadRow):
        return row
    try:
        values = json.loads(row)
    except (ValueError, RecursionError) as error:
        return BadRow(f"it is no JSON ({' '.join(str(error).split())})")
    return values if isinstance(values, dict) else BadRow("it is no JSON object")


def read_manifests(files: list[str], root: str | None = None) -> Manifest:
    """Read manifest files, local ones or URLs.

    Args:
        files: Paths or URLs.
        root: Where relative paths may start, too (after the folder of each file and the `clips` in it).

    Raises:
        ValueError: A file is no manifest; the message names it.
        OSError: It cannot be read.
    """
    rows, places, bases = [], [], []
    for file in files:
        folder = file.rpartition("/")[0] if is_url(file) else os.path.dirname(os.path.abspath(file))
        bases += [base for base in (folder, f"{folder}/clips") if base not in bases]
        for place, row in manifest_rows(file):
            rows.append(row)
            places.append(f"{file}, {place}")
    if not rows:
        raise ValueError(f"{', '.join(files)} holds no rows")
    return Manifest(rows, places, bases + ([root] if root else []))


def manifest_rows(file: str) -> Iterator[tuple[str, str | BadRow]]:
    """Where each row of a manifest file is, and the row, as JSON."""
    suffix, text = manifest_suffix(file) or "", _read_text(file)
    return _json_rows(text) if "json" in suffix else _table_rows(text, file, tabs=suffix == ".tsv")


def manifest_suffix(file: str) -> str | None:
    """What kind of manifest a file is by its name; `None`: none."""
    suffix = Path(file.split("?")[0] if is_url(file) else file).suffix.lower()
    return suffix if suffix in SUFFIXES else None


def find_manifest(folder: str, split: str, audio_column: str | None) -> Manifest | None:
    """The manifest of a split in a folder: `SPLIT.tsv`, `SPLIT_manifest.json`, `SPLIT/metadata.csv`, `metadata.csv`,
    `wav.scp` or the like; `None` if there is none that names audio."""
    for place in (os.path.join(folder, split), folder):
        if os.path.isfile(os.path.join(place, "wav.scp")):
            return _read_kaldi(Path(place))
    stems = [os.path.join(folder, stem) for stem in (split, f"{split}_manifest", f"manifest_{split}")]
    stems += [os.path.join(folder, name, "metadata") for name in _names_of(split)]
    for file in (f"{stem}{suffix}" for stem in stems for suffix in SUFFIXES):
        if os.path.isfile(file) and (manifest := _naming_audio(file, folder, audio_column)) is not None:
            return manifest
    for file in (os.path.join(folder, f"metadata{suffix}") for suffix in SUFFIXES):
        if os.path.isfile(file) and (manifest := _naming_audio(file, folder, audio_column)) is not None:
            return _of_split(manifest, folder, split, audio_column)
    return None


def find_audio_column(columns: list[str]) -> str | None:
    """The column that manifests call so, if one is there."""
    return next((name for name in AUDIO_COLUMNS if name in columns), None)


def _names_of(split: str) -> tuple[str, ...]:
    return next((names for names in _SPLITS if split in names), (split,))


def _naming_audio(file: str, folder: str, audio_column: str | None) -> Manifest | None:
    manifest = read_manifests([file], root=folder)
    known = find_audio_column(manifest.columns) if audio_column is None else audio_column
    return manifest if known is not None and known.partition(".")[0] in manifest.columns else None


def _of_split(manifest: Manifest, folder: str, split: str, audio_column: str | None) -> Manifest:
    """The rows of a split, where all are in one file: those in the folder that is called so."""
    column = audio_column or find_audio_column(manifest.columns)
    folders = []
    for number in range(len(manifest)):
        row = manifest.row(number)
        path = row.get(column) if isinstance(row, dict) else None
        folders.append(path.replace(os.sep, "/").removeprefix("./").partition("/")[0] if isinstance(path, str) else "")
    every = {name for names in _SPLITS for name in names} | {split}
    if not every & set(folders) - {""}:
        if split == "train":
            return manifest
        found = ["train"]
    else:
        wanted = [name in _names_of(split) for name in folders]
        if any(wanted):
            return manifest.kept(wanted)
        found = sorted(every & set(folders))
    raise ValueError(f"{folder!r} cannot be opened: Bad split: {split}. Available splits: {found}")


def _read_text(file: str) -> str:
    """The file as UTF-8, without a byte order mark; bytes that are none become lone surrogates, row by row."""
    if is_url(file):
        import fsspec

        with fsspec.open(file, "rb") as opened:
            data = opened.read()
    else:
        with open_regular(file) as opened:
            data = opened.read()
    if data[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in data[:1000]:
        raise ValueError(f"{file} is no UTF-8 text (it looks like UTF-16 or binary data); save it as UTF-8")
    return data.decode("utf-8-sig", errors="surrogateescape")


def _checked(row: str) -> str | BadRow:
    try:
        row.encode("utf-8")
    except UnicodeEncodeError:
        return BadRow("it is not UTF-8")
    return row


def _json_rows(text: str) -> Iterator[tuple[str, str | BadRow]]:
    if text.lstrip().startswith("["):
        try:
            rows = json.loads(text)
        except (ValueError, RecursionError) as error:
            rows = []
            yield "all of it", BadRow(f"it is no JSON ({error})")
        for number, row in enumerate(rows, 1):
            yield f"entry {number}", _checked(json.dumps(row, ensure_ascii=False))
        return
    for number, line in enumerate(io.StringIO(text, newline=None), 1):
        if line.strip():
            yield f"line {number}", _checked(line)


def _table_rows(text: str, file: str, *, tabs: bool) -> Iterator[tuple[str, str | BadRow]]:
    """Rows of a table with a header, as JSON. In a TSV quotes are characters as any other, as in Common Voice."""
    first_line = text.lstrip("\r\n").partition("\n")[0]
    delimiter = "\t" if tabs else max(",;\t|", key=first_line.count)
    quoting = csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, quoting=quoting, strict=not tabs)
    header = None
    while True:
        start = reader.line_num + 1
        try:
            fields = next(reader, None)
        except csv.Error as error:
            yield f"line {start}", BadRow(str(error))
            continue
        if fields is None:
            return
        if not any(fields):
            continue
        if header is None:
            header = [name.strip() for name in fields]
            if repeated := [name for name in header if header.count(name) > 1]:
                raise ValueError(f"{file} has several columns called {repeated[0]!r}; rename all but one")
        elif len(fields) != len(header):
            yield f"line {start}", BadRow(f"it has {len(fields)} fields and the header {len(header)}")
        else:
            yield f"line {start}", _checked(json.dumps(dict(zip(header, fields, strict=True)), ensure_ascii=False))


def _read_kaldi(folder: Path) -> Manifest:
    """`wav.scp` with `segments`, `text` and `utt2spk`, if they are there."""
    table = {name: dict(_pairs(folder / name)) for name in ("wav.scp", "segments", "text", "utt2spk")}
    recordings = table["wav.scp"]
    columns = ["id", "audio", *(["text"] if table["text"] else [])]
    parts = {name: part.split() for name, part in table["segments"].items()}
    rows: list[str | BadRow] = []
    for name in parts or recordings:
        row = {"id": name, "audio": None, "text": table["text"].get(name), "speaker": table["utt2spk"].get(name)}
        recording = name
        if parts:
            try:
                recording, start, end = parts[name]
                row |= {"offset": float(start), "duration": float(end) - float(start)}
            except ValueError:
                rows.append(BadRow("its line in segments is not 'ID RECORDING START END'"))
                continue
        row["audio"] = recordings.get(recording)
        if row["audio"] is None:
            rows.append(BadRow(f"wav.scp does not name the recording {recording!r}"))
        elif row["audio"].endswith("|"):
            rows.append(BadRow("wav.scp gives a command for it, and no commands are run; store its output as a file"))
        else:
            rows.append(_checked(json.dumps(row, ensure_ascii=False)))
    columns += (["speaker"] if table["utt2spk"] else []) + (["offset", "duration"] if parts else [])
    return Manifest(rows, [f"{folder}, {name}" for name in parts or recordings], [str(folder)], columns)


def _pairs(file: Path) -> Iterator[tuple[str, str]]:
    """`ID REST` of every line."""
    if not file.is_file():
        return
    for line in io.StringIO(_read_text(str(file)), newline=None):
        if line.strip():
            name, *rest = line.strip().split(maxsplit=1)
            yield name, rest[0] if rest else ""
