"""Two tokenizers: segments of a text where both have boundaries, and how their vocabularies relate."""

from uld_ds.alignment.segments import Segment, align, alignment_rate, segment_boundaries
from uld_ds.tokenization.spans import AlignmentError, batch_token_spans, spans_of_ids, token_spans

__all__ = [
    "AlignmentError",
    "Segment",
    "align",
    "alignment_rate",
    "batch_token_spans",
    "segment_boundaries",
    "spans_of_ids",
    "token_spans",
]
