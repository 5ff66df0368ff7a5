"""uld-ds: distil large language models into small ones across tokenizers."""

__version__ = "0.1.0"
