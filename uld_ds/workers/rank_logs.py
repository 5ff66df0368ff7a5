"""The logs of a rank, in two files: lines for a person, and one JSON object per line for a program.

The second has a time with its zone, the rank and the node in every line, so that the files of all ranks can be merged
and searched: ``cat logs/*.jsonl | jq -s 'sort_by(.time)[] | select(.level == "WARNING")'``.
"""

from __future__ import annotations

import json
import logging
import platform
from datetime import UTC, datetime
from pathlib import Path


class JsonLines(logging.Formatter):
    """A formatter of log records as lines of JSON.

    Args:
        rank: number that is put into every line, beside the node's name.
    """

    def __init__(self, rank: int) -> None:
        super().__init__()
        self._about = {"rank": rank, "node": platform.node()}

    def format(self, record: logging.LogRecord) -> str:
        """Format a log record as one line of JSON."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            **self._about,
            "process": record.process,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def rank_handlers(folder: Path, rank: int) -> list[logging.Handler]:
    """Make the handlers that append to ``rank-N.log`` and ``rank-N.jsonl`` in a folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    text = logging.FileHandler(folder / f"rank-{rank}.log", encoding="utf-8")
    text.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    lines = logging.FileHandler(folder / f"rank-{rank}.jsonl", encoding="utf-8")
    lines.setFormatter(JsonLines(rank))
    return [text, lines]
