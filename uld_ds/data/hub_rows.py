"""The rows of a dataset of the hub, or of one in a folder of this machine.

What has types of its own (Parquet, Arrow, a saved dataset) is read by ``datasets``. It guesses those of JSON and CSV
(5.2), and there a text is a text: see ``json_tables``; a CSV file has nothing else, with null for an empty cell.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd
from datasets import (
    Dataset,
    DatasetBuilder,
    DownloadManager,
    Features,
    ReadInstruction,
    Value,
    concatenate_datasets,
    load_dataset,
    load_dataset_builder,
    load_from_disk,
)
from datasets.packaged_modules.csv.csv import Csv, CsvConfig
from datasets.packaged_modules.json.json import Json, JsonConfig

from uld_ds.data.json_tables import read_json
from uld_ds.recipe import HubSource
from uld_ds.utils.files import in_home


def read_hub(source: HubSource) -> Dataset:
    """Read a split of a dataset. Raises whatever ``datasets`` raises."""
    folder = in_home(source.dataset)
    if (folder / "state.json").is_file():
        return load_from_disk(str(folder))
    if (folder / "dataset_dict.json").is_file():
        return load_from_disk(str(folder))[source.split]
    place = str(folder) if folder.is_dir() else source.dataset
    builder = load_dataset_builder(place, source.config, revision=source.revision)
    if isinstance(builder, Json) and _is_plain(builder.config):
        return _json_split(builder, source.split)
    options = _as_text(builder) if isinstance(builder, Csv) else {}
    return load_dataset(place, source.config, split=source.split, revision=source.revision, **options)


def _is_plain(config: JsonConfig) -> bool:
    """Tell whether rows are the whole of each file, not part of it or in another encoding."""
    return config.field is None and config.encoding == "utf-8"


def _json_split(builder: DatasetBuilder, split: str) -> Dataset:
    """Read a split of JSON files: one by its name, or such as ``train[:10%]`` and ``train+test``."""
    files = {str(name): found for name, found in builder.config.data_files.items()}
    asked = [name for name in files if re.search(rf"(^|\+)\s*{re.escape(name)}\s*(\[|\+|$)", split)]
    if not asked:
        raise ValueError(f"there is no such split, but {', '.join(files)}")
    rows = {name: read_json(_downloaded(files[name])) for name in asked}
    parts = ReadInstruction.from_spec(split).to_absolute({name: len(found) for name, found in rows.items()})
    chosen = [rows[part.splitname].select(range(part.from_, part.to)) for part in parts]
    return chosen[0] if len(chosen) == 1 else concatenate_datasets(chosen)


def _as_text(builder: DatasetBuilder) -> dict[str, Any]:
    """Make the options by which every cell of CSV files is the text that it is: ``007``, ``true`` and ``NA``, too."""
    config: CsvConfig = builder.config
    kept = {"keep_default_na": False, "na_values": [""]}
    first = _downloaded(next(iter(config.data_files.values())))[0]
    header = pd.read_csv(first, **{**config.pd_read_csv_kwargs, **kept, "chunksize": None, "nrows": 0})
    return {**kept, "features": Features({str(name): Value("string") for name in header.columns})}


def _downloaded(files: Iterable[str]) -> list[Path]:
    return [Path(file) for file in DownloadManager().download_and_extract(list(files))]
