#!/usr/bin/env bash
# datasets reads texts of a JSON Lines file as something else because of what other rows hold: "0012" as the number 12,
# "null" as nothing.
#
# Guess: JSON says what is a text. A column of several kinds of values is refused, or its texts stay texts; a message
# whose content is a list of parts (as those with images are) does nothing to the contents of other messages.
#
# Seen with datasets 5.2.0 and pyarrow 25.0.1: one message with a list of parts makes the column of all contents JSON,
# and every text in it is read as JSON once more where it can be: "0012" is 12, "1.50" is 1.5, "null" is None, "true" is
# True, '"Yes"' has lost its quotes. The same texts among texts alone are left alone. In a column of integers that is
# longer than one chunk of the file, later texts become integers: "007" is 7. And in a column of texts, a later chunk in
# which all look like dates comes back as text of another form.
set -euo pipefail
EXPECTED='texts alone:            "0012" "1.50" "null" "true" "\"Yes\""
beside a list of parts: 12 1.5 null true "Yes"
behind 30 integers:     7 10
behind ten words:       "2024-01-01 00:00:00"'
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q datasets==5.2.0 pyarrow==25.0.1 pandas==3.1.1
found=$(cd "$folder" && HF_HOME="$folder" HF_HUB_OFFLINE=1 "$folder/env/bin/python" - 2>/dev/null <<'PYTHON'
import json
from pathlib import Path

from datasets import load_dataset


def read(title, rows, last, **options):
    """Print the last rows, as JSON, after they were written as JSON and read by datasets."""
    file = Path(f"{len(title)}.jsonl")
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    held = load_dataset("json", data_files=str(file), split="train", **options)
    values = [message["content"] for row in held for message in row["messages"]] if "messages" in rows[0] else held["answer"]
    print(f"{title:<23}", *(json.dumps(value) for value in list(values)[-last:]))


texts = ["0012", "1.50", "null", "true", '"Yes"']
chat = [{"messages": [{"role": "user", "content": text}]} for text in texts]
parts = {"messages": [{"role": "user", "content": [{"type": "text", "text": "What is it?"}]}]}
read("texts alone:", chat, 5)
read("beside a list of parts:", [parts, *chat], 5)
read("behind 30 integers:", [{"answer": answer} for answer in [*range(30), "007", "010"]], 2, chunksize=64)
read("behind ten words:", [{"answer": answer} for answer in ["tomorrow"] * 10 + ["2024-01-01"] * 5], 1, chunksize=64)
PYTHON
)
echo "$found"
[ "$found" = "$EXPECTED" ] || { echo "expected: $EXPECTED" >&2; exit 1; }
