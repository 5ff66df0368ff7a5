"""Export of the student from its engine, as a Hugging Face directory whose logits are the engine's.

They are the engine's bit for bit. Adapters are merged into the weights they adapt (of weights held in 4 bits, into what
these stand for): there, logits differ by rounding. Transformers 4 reads it, too, as far as it can.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import GenerationConfig, PreTrainedTokenizerBase

from uld_ds.data.chat_templates import as_trained
from uld_ds.data.sides import end_ids_of
from uld_ds.models.adapters import is_adapted, merged
from uld_ds.models.architectures import is_encoder_decoder
from uld_ds.models.generation_options import writable
from uld_ds.models.older_readers import adapt_config, save_tokenizer
from uld_ds.models.quantization import is_quantized, unquantized_like
from uld_ds.recipe import ModelSettings
from uld_ds.utils.distributed import Ranks
from uld_ds.utils.files import remove_leftovers, whole_folder

_PREFIX = "lm."


def export_student(
    student: Any, tokenizer: PreTrainedTokenizerBase, target: Path, ranks: Ranks, *, ends: Sequence[int] = ()
) -> None:
    """Write the student as a Hugging Face directory from its engine's weights. Collective; the first rank writes.

    Args:
        student: DeepSpeed engine around a RowModel.
        tokenizer: the student's, saved beside the weights.
        target: the directory, replaced if it is there.
        ranks: the process group.
        ends: token ids that end an answer as it was trained: whoever generates with the student stops at them.
    """
    whole = _plain_model(student, ranks)
    if whole is not None:
        lm, weights = whole
        _stop_at(lm.generation_config, ends)
        lm.generation_config = writable(lm.generation_config)
        remove_leftovers(target)
        # On the disk: the run's result names it, and the checkpoints may go.
        with whole_folder(target, sync=True, replace=True) as aside:
            lm.save_pretrained(aside, state_dict=weights)
            adapt_config(aside)
            save_tokenizer(tokenizer, aside)
    ranks.barrier()


def write_weights(student: Any, target: Path, ranks: Ranks) -> None:
    """Write the student's weights of now in Hugging Face layout, for programs that read it as it learns. Collective.

    There is no tokenizer beside them. The first rank writes; when this returns, every rank finds the folder.

    Args:
        student: DeepSpeed engine around a RowModel, which is left as it is.
        target: the directory, which is not there yet.
        ranks: the process group.
    """
    whole = _plain_model(student, ranks)
    if whole is not None:
        lm, weights = whole
        held = lm.generation_config
        lm.generation_config = GenerationConfig()  # whoever samples names options and ends
        try:
            with whole_folder(target) as aside:
                lm.save_pretrained(aside, state_dict=weights)
                adapt_config(aside)
        finally:
            lm.generation_config = held
    ranks.barrier()


def export_trained(
    student: Any, tokenizer: PreTrainedTokenizerBase, settings: ModelSettings, target: Path, ranks: Ranks
) -> None:
    """Write the student so that whoever generates with it asks and stops as it was trained. Collective.

    Its chat template has the recipe's variables and system prompt, its generation configuration all tokens that end a
    turn.

    Args:
        student: DeepSpeed engine around a RowModel.
        tokenizer: the student's.
        settings: the student's section of the recipe.
        target: the directory, replaced if it is there.
        ranks: the process group.
    """
    own = as_trained(tokenizer, settings, for_encoder=is_encoder_decoder(student.module.lm.config))
    export_student(student, own, target, ranks, ends=end_ids_of(tokenizer, settings))


def _stop_at(config: Any, ends: Sequence[int]) -> None:
    """Add ids to a generation configuration's ``eos_token_id``, which may be one, several or none."""
    named = config.eos_token_id
    there = [] if named is None else [named] if isinstance(named, int) else list(named)
    whole = list(dict.fromkeys([*there, *map(int, ends)]))
    if whole:
        config.eos_token_id = whole[0] if len(whole) == 1 else whole


def _plain_model(student: Any, ranks: Ranks) -> tuple[Any, dict[str, Any]] | None:
    """Collect a model without adapters or 4 bits and its weights on the first rank; None on the others. Collective."""
    weights = _whole_state_dict(student, ranks)
    if weights is None:
        return None
    lm: Any = student.module.lm
    if is_adapted(lm):
        lm, weights = lm.get_base_model(), merged(lm, weights)
    if is_quantized(lm):
        lm = unquantized_like(lm)
    return lm, weights


def _whole_state_dict(student: Any, ranks: Ranks) -> dict[str, Any] | None:
    """Collect the language model's weights on the first rank; None on the others. Collective."""
    if student.zero_optimization_partition_weights():
        # The public save_16bit_model calls the same and writes neither config nor tokenizer.
        whole = student._zero3_consolidated_16bit_state_dict()
    else:
        whole = student.module.state_dict() if ranks.is_first else None
    if whole is None:
        return None
    return {name.removeprefix(_PREFIX): tensor for name, tensor in whole.items()}
