"""The spectrum store: teacher outputs on disk or object storage, for students of any tokenizer."""
