"""Metadata files of audio folders that `datasets` has found, on the Hub or here, read row by row.

Such a file, `metadata.csv`, `.jsonl` or `.parquet`, names the recordings beside it in a column `file_name`. `datasets`
reads them, too, but ends at the first row that cannot be read or that names a file elsewhere.
"""

import json
import os
from collections.abc import Iterator
from typing import Any

from .manifests import BadRow, Manifest, manifest_rows
from .row_paths import is_url

_NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
_FILE_NAME = "file_name"


def read_metadata(builder, split: str) -> "MetadataRows | None":
    """The rows of a split of an audio folder.

    Args:
        builder: What `datasets.load_dataset_builder` returned; it has found the files, at one commit if on the Hub.

    Returns:
        `None` if it is no audio folder, or one without metadata that names a recording in each row.
    """
    if builder.info.builder_name != "audiofolder" or split not in (builder.config.data_files or {}):
        return None
    files = sorted(file for file in map(str, builder.config.data_files[split]) if _last_name(file) in _NAMES)
    rows = MetadataRows(files, builder.info.features or {})
    return rows if len(rows) and rows.audio_columns else None


class MetadataRows(Manifest):
    """The rows of metadata files. The column `file_name` is called `audio`, and `x_file_name` is called `x`, as
    `datasets` calls them; they hold the place of the recording.

    Args:
        files: Paths or URLs.
        features: What the data set says of its columns.
    """

    def __init__(self, files: list[str], features: dict[str, Any]):
        from datasets import ClassLabel

        rows, places, self._folders = [], [], []
        for file in files:
            for place, row in _rows_of(file):
                rows.append(row)
                places.append(f"{file}, {place}")
                self._folders.append(file.rpartition("/")[0])
        super().__init__(rows, places, list(dict.fromkeys(self._folders)))
        self._called = {name: _audio_name(name) for name in self.columns if name.endswith(_FILE_NAME)}
        self.audio_columns = list(dict.fromkeys(self._called.values()))
        self.columns = list(dict.fromkeys(self._called.get(name, name) for name in self.columns))
        self.class_names = {name: kind.names for name, kind in features.items() if isinstance(kind, ClassLabel)}

    def row(self, number: int) -> dict[str, Any] | BadRow:
        values = super().row(number)
        if isinstance(values, BadRow):
            return values
        paths = {new: _beside(self._folders[number], values.get(old)) for old, new in self._called.items()}
        return {name: value for name, value in values.items() if name not in self._called} | paths


def _audio_name(name: str) -> str:
    return name.removesuffix(_FILE_NAME).removesuffix("_") or "audio"


def _beside(folder: str, name: Any) -> Any:
    """A relative name as the path it means; whether a row may name that is judged when it is read."""
    is_relative = isinstance(name, str) and name and not is_url(name) and not os.path.isabs(name)
    return f"{folder}/{name}" if is_relative else name


def _last_name(file: str) -> str:
    return file.rpartition("/")[2]


def _rows_of(file: str) -> Iterator[tuple[str, str | BadRow]]:
    return _parquet_rows(file) if file.endswith(".parquet") else manifest_rows(file)


def _parquet_rows(file: str) -> Iterator[tuple[str, str]]:
    import fsspec
    import pyarrow.parquet

    with fsspec.open(file, "rb") as opened:
        for number, row in enumerate(pyarrow.parquet.read_table(opened).to_pylist()):
            yield f"row {number}", json.dumps(row, ensure_ascii=False, default=str)
