"""What an engine of Ray's own has answered is written as our own actors write."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from uld_ds.workers.answers import write_engine_rows


def test_rows_of_an_engine_are_answers(tmp_path: Path) -> None:
    texts = [" said ", "cut off here", ""]
    batch = pa.table({"id": ["a", "b", "c"], "generated_text": texts, "num_generated_tokens": [3, 8, 1]})
    counted = write_engine_rows(batch, parts=str(tmp_path), max_new_tokens=8)
    assert counted.to_pylist() == [{"prompts": 3, "tokens": 12}]
    (part,) = tmp_path.iterdir()
    rows = pq.read_table(part).to_pylist()
    assert rows == [
        {"id": "a", "text": "said", "tokens": 3, "finish": "stop"},
        {"id": "b", "text": "cut off here", "tokens": 8, "finish": "length"},
        {"id": "c", "text": "", "tokens": 1, "finish": "stop"},
    ]
