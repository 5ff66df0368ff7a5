"""A pretrained model as a value: where it is, at which revision, and whose code may be run to load it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig, GenerationConfig, PreTrainedConfig, PreTrainedTokenizerBase

from uld_ds.errors import UserError
from uld_ds.models.architectures import SAFE_WEIGHTS, auto_class, is_encoder_decoder, named_start
from uld_ds.models.generation_options import check_options
from uld_ds.models.locate import locate_model
from uld_ds.models.parts import embedding_rows
from uld_ds.recipe import ModelSettings
from uld_ds.recipe.models import RemoteCodeSettings, remote_code_options, trusted_code
from uld_ds.tokenization.loading import load_tokenizer


@dataclass(frozen=True)
class Pretrained:
    """A model to load: configuration, tokenizer and weights of one place at one revision.

    ``from_settings`` alone looks whether the model is there and what code it names; otherwise nothing is read until it
    is asked for. A value: equal by its fields, hashable, and it crosses processes.
    """

    place: str
    """Directory in Hugging Face layout, or hub id."""
    revision: str | None = None
    """Branch, tag or commit of a hub id; it means nothing for a directory."""
    key: str = "model"
    """Recipe key or option that the user gave the place with, for messages, e.g. ``teacher.model``."""
    code: RemoteCodeSettings | None = None
    """Repository whose code may be run, at the commit that somebody has read; with None no code is run."""

    @classmethod
    def from_settings(cls, settings: ModelSettings, section: str, *, runs: bool = True) -> Pretrained:
        """Locate the model that a recipe names.

        Args:
            settings: Teacher or student section of a recipe, with ``model`` set.
            section: Name of that section, for messages.
            runs: Whether its weights are to be loaded here; otherwise they need not be there.

        Raises:
            UserError: as ``locate_model``: there is no such model, it cannot be used, or it needs code that the recipe
                does not trust, or its generation options are refused.
        """
        found = cls.at(locate_model(settings, section, runs=runs), settings, section)
        check_options(found.place, found.revision, found.key)
        return found

    @classmethod
    def at(cls, place: str, settings: ModelSettings, section: str) -> Pretrained:
        """Describe the model of a recipe's section at a place that is known.

        Args:
            place: Place of ``locate_model``, or of the student that was made for a run.
            settings: Teacher or student section of a recipe.
            section: Name of that section, for messages.
        """
        return cls(place, settings.revision, f"{section}.model", trusted_code(settings))

    def config(self, **options: Any) -> PreTrainedConfig:
        """Read the configuration.

        Args:
            **options: Further options of transformers' ``from_pretrained``, e.g. ``gguf_file``.

        Raises:
            Exception: whatever transformers' reading runs into; ``from_settings`` has read it once, with our messages.
        """
        return AutoConfig.from_pretrained(self.place, **self._source, **options)

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Load the tokenizer.

        Raises:
            UserError: there is none, or it needs code that is not trusted.
        """
        return load_tokenizer(self.place, self.revision, self.key, code=remote_code_options(self.code))

    def embedding_rows(self) -> int:
        """Find how many token ids the model knows; nothing of it is loaded.

        Raises:
            UserError: its configuration makes no model, or its weights are of another size.
        """
        folder = Path(self.place) if Path(self.place).is_dir() else None
        return embedding_rows(self.config(), self.key, self.place, folder, **remote_code_options(self.code))

    def decoder_start(self) -> int | None:
        """Find the token that a decoder begins with; None where there is no encoder, and answers follow their prompt.

        Raises:
            UserError: an encoder-decoder model that does not say it.
        """
        config = self.config()
        if not is_encoder_decoder(config):
            return None
        try:
            generation = GenerationConfig.from_pretrained(self.place, revision=self.revision or "main")
        except OSError:  # an older checkpoint: it is in config.json
            generation = GenerationConfig.from_model_config(config)
        start = named_start(generation)
        if start is None:
            problem = f"{self.place!r} does not say what its decoder begins with"
            raise UserError(self.key, problem, "give it decoder_start_token_id")
        return start

    def load(self, **options: Any) -> Any:
        """Load the model with its output head, from safetensors alone.

        Args:
            **options: Further options of transformers' ``from_pretrained``, e.g. ``dtype``.

        Returns:
            The model; with ``output_loading_info`` also which of its weights were found. Its configuration does not say
            that embeddings and output head are one matrix where the files have two.

        Raises:
            OSError: there are no weights, or none as safetensors.
        """
        kind = auto_class(self.config())
        loaded = kind.from_pretrained(self.place, **self._source, **SAFE_WEIGHTS, **options)
        _note_own_head(loaded[0] if isinstance(loaded, tuple) else loaded)
        return loaded

    @property
    def _source(self) -> dict[str, Any]:
        return {"revision": self.revision, **remote_code_options(self.code)}


def _note_own_head(model: Any) -> None:
    """Set ``tie_word_embeddings`` to what transformers made of the files: different matrices it does not tie.

    It leaves the configuration as it was, by which a model is resized, pruned and saved, and read by others (those on
    transformers 4 would tie). Models with an encoder keep theirs: some scale their logits by it.
    """
    head = model.get_output_embeddings()
    own = head is not None and getattr(head, "weight", None) is not model.get_input_embeddings().weight
    if own and not is_encoder_decoder(model.config):
        for config in (model.config, model.config.get_text_config()):
            config.tie_word_embeddings = False
