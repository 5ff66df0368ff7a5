"""Settings that keep libraries from talking on standard error."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from uld_ds.tokenization.notices import say_what_was_kept


def quieten_libraries() -> None:
    """Turn off libraries' progress bars and news; warnings stay."""
    import datasets
    from transformers.utils import logging as transformers_logging

    datasets.disable_progress_bars()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    for name in ("ray.train", "ray.data", "mlflow", "alembic", "DeepSpeed"):
        logging.getLogger(name).setLevel(logging.WARNING)


@contextmanager
def no_news() -> Iterator[None]:
    """Silence warnings while libraries are imported and asked about models or tokenizers.

    Also those on what is deprecated among themselves. Our own about a tokenizer come when it ends.
    """
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
        say_what_was_kept()
