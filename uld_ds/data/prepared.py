"""Prepared data on disk: rows of token ids and segments, with their statistics."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset, load_from_disk

from uld_ds.data.statistics import DataFacts

# Folder in run.storage; a run's name cannot begin like this.
PREPARED_DATA = ".prepared"


@dataclass(frozen=True)
class Split:
    """Prepared examples with their facts."""

    rows: Dataset
    facts: DataFacts
    folder: Path

    @classmethod
    def load(cls, folder: Path) -> Split:
        """Load the split that ``Preparer.prepare`` has put into ``folder``."""
        facts = DataFacts(**json.loads((folder / "facts.json").read_text(encoding="utf-8")))
        return cls(load_from_disk(str(folder / "rows")), facts, folder)
