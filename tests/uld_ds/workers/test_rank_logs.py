"""A rank's log: lines for a person, the same as JSON for a program."""

from __future__ import annotations

import json
import logging
from datetime import datetime
from pathlib import Path

from uld_ds.workers.rank_logs import rank_handlers


def test_every_record_is_in_both_files(tmp_path: Path) -> None:
    logger = logging.Logger("uld_ds.somewhere")
    handlers = rank_handlers(tmp_path / "logs", 3)
    for handler in handlers:
        logger.addHandler(handler)
    logger.warning("%d rows\nleft out: größer", 2)
    try:
        raise ValueError("bad")
    except ValueError:
        logger.exception("it failed")
    for handler in handlers:
        handler.close()
    first, second = map(json.loads, (tmp_path / "logs" / "rank-3.jsonl").read_text(encoding="utf-8").splitlines())
    assert (first["rank"], first["level"], first["logger"]) == (3, "WARNING", "uld_ds.somewhere")
    assert first["message"] == "2 rows\nleft out: größer"
    assert datetime.fromisoformat(first["time"]).utcoffset() is not None
    assert second["exception"].endswith("ValueError: bad")
    assert "WARNING uld_ds.somewhere: 2 rows\nleft out: größer" in (tmp_path / "logs" / "rank-3.log").read_text()
