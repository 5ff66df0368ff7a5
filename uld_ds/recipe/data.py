"""The section of a recipe about its data: where rows come from, and which columns are read."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from uld_ds.conversations import KINDS, PartKind
from uld_ds.recipe.base import Strict
from uld_ds.tasks.registry import get_task


class FilesSource(Strict):
    source: Literal["files"]
    path: str | list[str]
    """One or more .json, .jsonl, .parquet or .arrow files (glob patterns allowed)."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """Use the first so many rows."""


class HubSource(Strict):
    source: Literal["hub"]
    dataset: str
    """Hugging Face dataset id or a local dataset directory."""
    config: str | None = None
    split: str = "train"
    revision: str | None = None
    limit: Annotated[int, Field(ge=1)] | None = None
    """Use the first so many rows."""


class GeneratorSource(Strict):
    source: Literal["generator"]
    function: Annotated[str, Field(pattern=r"^[\w.]+:[\w.]+$")]
    """``module:function``; called with ``arguments``, yields one mapping per example."""
    arguments: dict[str, Any] = Field(default_factory=dict)
    limit: Annotated[int, Field(ge=1)] | None = None
    """Use the first so many rows."""


DataSource = Annotated[FilesSource | HubSource | GeneratorSource, Field(discriminator="source")]


SpecialTokens = Literal["control", "text"]


class ColumnSettings(Strict):
    prompt: str = "prompt"
    answer: str = "answer"
    messages: str | None = None
    """A column of chat messages; their assistant turns are answers. Replaces prompt, answer. A message has ``role`` and
    ``content`` (text, text parts or null) and may have ``reasoning_content``, ``tool_calls``, ``tool_call_id``,
    ``name``."""
    tools: str = "tools"
    """Beside messages, a column of the tools that may be called, as JSON schemas; read where it is there."""
    template_arguments: str = "chat_template_kwargs"
    """Beside messages, a column of variables for the chat templates of both sides; read where it is there."""
    teacher: str | None = None
    """With ``objective.combine: route``, the column that holds the name of the teacher that judges a row."""

    def of_rows(self) -> ColumnSettings:
        """Return the columns that rows are read by as prompts and answers, whoever judges them."""
        return self.model_copy(update={"teacher": None})

    def named_beside_messages(self) -> list[str]:
        """List the fields of columns beside messages that have another name than the usual one."""
        fields = type(self).model_fields
        return [name for name in ("tools", "template_arguments") if getattr(self, name) != fields[name].default]


class DataSettings(Strict):
    train: DataSource
    eval: DataSource | None = None
    """Held-out examples for bits per byte. Must not overlap the training examples."""
    task: str | None = None
    """How rows become prompts and answers: squad, qed, fairytaleqa, pubmedqa, dialogsum (few-shot for the teacher),
    prompt_answer, messages. Default: as ``columns`` say."""
    shots: Annotated[int, Field(ge=0)] | None = None
    """Examples that the task shows the teacher. Default: all that it has."""
    columns: ColumnSettings = ColumnSettings()
    turns: Literal["all", "last"] = "all"
    """Which assistant turns of a conversation are answers. Where a side has a text template: the last alone."""
    learn: Annotated[list[PartKind], Field(min_length=1)] = Field(default_factory=lambda: list(KINDS))
    """Which parts of an answer carry loss: ``reasoning``, ``text``, ``tool_calls``. The others are read only."""
    special_tokens: SpecialTokens = "control"
    """What special tokens become that stand in the text of messages (``<|im_end|>`` typed by a user): the ``control``
    tokens themselves, as everywhere, or ``text``."""
    workers: Annotated[int, Field(ge=1)] | None = None
    """Processes that prepare examples. Default: as many as there are cores, where there is work for them."""
    on_bad_example: Literal["error", "skip"] = "error"
    """What an unusable example (not JSON, no answer, nothing that fits into max_length) does: stop the run before it
    begins, or be left out, counted by reason and listed in ``bad_examples.json``."""

    @model_validator(mode="after")
    def _task_is_known(self) -> DataSettings:
        task = None if self.task is None else get_task(self.task)
        if self.shots is not None and (task is None or task.reads_columns_of_recipe):
            raise ValueError("data.shots needs a data.task that has examples to show, e.g. squad")
        if task is not None and not task.reads_columns_of_recipe and self.columns.of_rows() != ColumnSettings():
            raise ValueError(f"data.columns has no effect with data.task {self.task!r}, which knows its own")
        beside = self.columns.named_beside_messages()
        if beside and self.columns.messages is None and self.task != "messages":
            raise ValueError(f"data.columns.{beside[0]} has no effect without messages: set data.columns.messages")
        if self.task == "prompt_answer" and self.columns.messages is not None:
            raise ValueError("data.columns.messages has no effect with data.task 'prompt_answer': take 'messages'")
        return self
