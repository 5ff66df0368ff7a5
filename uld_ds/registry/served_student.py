"""The student behind MLflow's pyfunc: chat messages or prompts in, answers out.

This file travels with every registered student and is all that serving needs of this project: it imports nothing of
it. What the student's chat template wants, and how its reasoning is told from its answer, stands in ``chat.json``
beside the model. MLflow calls ``_load_pyfunc``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

# What callers may set, with its defaults.
GENERATION: dict[str, Any] = {"max_new_tokens": 64, "do_sample": False, "temperature": 1.0, "repetition_penalty": 1.0}
RETURN_REASONING = "return_reasoning"
PARAMETERS: dict[str, Any] = {**GENERATION, RETURN_REASONING: False}
PROMPT, MESSAGES, TOOLS, ARGUMENTS = "prompt", "messages", "tools", "chat_template_kwargs"
REASONING_NAMES = ("reasoning_content", "thinking", "reasoning")
CHAT_FILE = "chat.json"
# What a student without that file is taken for.
USUAL_CHAT: dict[str, Any] = {
    "marks": {"opening": "<think>", "closing": "</think>", "answer": "", "begun": "", "end": "", "is_known": False},
    "control": [],
    "reasoning": "inline",
    "in_blocks": False,
    "arguments_as_text": False,
    "null_content": "",
    "no_tools": None,
}
_INLINE = re.compile(r"\A(?:\s*<think>)?(.*?)</think>(.*)\Z", re.DOTALL)


class ServedStudent:
    """A student that answers requests, one row at a time.

    Args:
        model: language model, decoder-only or with an encoder.
        tokenizer: the model's; chat input needs its chat template.
        chat: content of ``chat.json``: how the template takes messages, and its marks around reasoning.
    """

    def __init__(self, model: Any, tokenizer: Any, chat: Mapping[str, Any] | None = None) -> None:
        self._model = model.eval()
        self._tokenizer = tokenizer
        self._chat = {**USUAL_CHAT, **(chat or {})}
        ends = model.generation_config.eos_token_id
        self._ends = set() if ends is None else {ends} if isinstance(ends, int) else set(ends)

    def predict(self, model_input: Any, params: Mapping[str, Any] | None = None) -> list[Any]:
        """Answer each row of a request.

        Args:
            model_input: rows that each have ``messages`` (a conversation: role, content; also ``reasoning_content``,
                ``tool_calls``, ``tool_call_id``, ``name``) or ``prompt`` (text to go on from, taken as it is): a data
                frame, a mapping, a list of either; or plain texts. Beside messages, ``tools`` (JSON schemas) and
                ``chat_template_kwargs`` (variables of the chat template) may stand.
            params: some of PARAMETERS.

        Returns:
            One answer per row, without its reasoning and its end; with ``return_reasoning``, messages with ``content``
            and ``reasoning_content`` instead.

        Raises:
            ValueError: a row has neither, or has messages that the student has no chat template for.
        """
        settings = {**PARAMETERS, **(params or {})}
        with_reasoning = settings.pop(RETURN_REASONING)
        if not settings["do_sample"]:
            settings.pop("temperature")
        rows = _rows(model_input)
        if not rows:
            raise ValueError(f"a request has {MESSAGES!r} or {PROMPT!r}; this one has neither")
        said = [self._answer(row, settings) for row in rows]
        return [
            {"content": answer, "reasoning_content": reasoning} if with_reasoning else answer
            for reasoning, answer in said
        ]

    def _answer(self, row: Mapping[str, Any], settings: dict[str, Any]) -> tuple[str, str]:
        messages, prompt = row.get(MESSAGES), row.get(PROMPT)
        if messages is not None and len(messages):
            inputs = self._conversation(row)
        elif isinstance(prompt, str):
            inputs = self._text(prompt)
        else:
            raise ValueError(f"a request has {MESSAGES!r} or {PROMPT!r}; this one has {sorted(map(str, row))}")
        ids = inputs["input_ids"].to(self._model.device)
        mask = inputs["attention_mask"].to(self._model.device)
        with torch.no_grad():
            output = self._model.generate(input_ids=ids, attention_mask=mask, **settings)
        # A decoder behind an encoder puts its start token before the answer, another one the whole prompt.
        has_encoder = self._model.config.is_encoder_decoder
        said = output[0, 1 if has_encoder else ids.shape[1] :].tolist()
        end = next((place for place, token in enumerate(said) if token in self._ends), len(said))
        asked = "" if has_encoder else self._tokenizer.decode(ids[0, -64:], skip_special_tokens=False)
        return self._split(said[:end], asked.rstrip())

    def _split(self, said: list[int], asked: str) -> tuple[str, str]:
        """Split what was generated after a prompt into reasoning and answer."""
        marks, plain = self._chat["marks"], str(self._tokenizer.decode(said, skip_special_tokens=True))
        marked = str(self._tokenizer.decode(said, skip_special_tokens=False)).strip()
        whole = marked.removesuffix(marks["end"]).rstrip()
        if not marks["is_known"]:  # reasoning by the usual marks is a part of the content
            whole = whole.removeprefix(marks["answer"]).strip()
        is_begun = any(mark and asked.endswith(mark) for mark in (marks["begun"], marks["opening"]))
        before, closed, after = whole.partition(marks["closing"])
        if marks["closing"] and closed:
            return self._text_of(before.strip().removeprefix(marks["opening"])), self._text_of(after)
        if is_begun or (marks["opening"] and whole.startswith(marks["opening"])):
            return self._text_of(whole.removeprefix(marks["opening"])), ""  # it was cut off while it thought
        if any(marks[name] and marks[name] in marked for name in ("answer", "end")):
            return "", self._text_of(whole.removeprefix(marks["answer"]))
        return "", plain

    def _text_of(self, marked: str) -> str:
        for token in self._chat["control"]:
            marked = marked.replace(token, "")
        return marked.strip()

    def _text(self, prompt: str) -> Any:
        whole = self._tokenizer(prompt, return_tensors="pt")
        if self._model.config.is_encoder_decoder:
            return whole
        # What a tokenizer puts before a text belongs there, once; what it puts after one would end the prompt.
        bare = self._tokenizer(prompt, add_special_tokens=False)["input_ids"]
        ids = whole["input_ids"][0].tolist()
        first = next((n for n in range(len(ids) - len(bare) + 1) if ids[n : n + len(bare)] == bare), None)
        if first is None or not bare:
            return whole
        leading = [] if bare[:first] == ids[:first] else ids[:first]
        kept = torch.tensor([[*leading, *bare]])
        return {"input_ids": kept, "attention_mask": torch.ones_like(kept)}

    def _conversation(self, row: Mapping[str, Any]) -> Any:
        text = self.render(row)
        if self._model.config.is_encoder_decoder:
            # The encoder learned to read text with the special tokens that the tokenizer itself gives it.
            return self._tokenizer(text, return_tensors="pt")
        return self._tokenizer(text, add_special_tokens=False, return_tensors="pt")

    def render(self, row: Mapping[str, Any]) -> str:
        """Render the conversation of a request, with its tools and variables, up to where the student is to speak.

        Raises:
            ValueError: the student has no chat template.
        """
        if not self._tokenizer.chat_template:
            raise ValueError(f"this student knows no conversations: give {PROMPT!r}")
        tools, arguments = _parsed(_plain(row.get(TOOLS))), _parsed(_plain(row.get(ARGUMENTS))) or {}
        return str(
            self._tokenizer.apply_chat_template(
                [self._own(_read(message)) for message in _plain(row[MESSAGES])],
                tools=_without_nulls([_parsed(tool) for tool in tools]) if tools else self._chat["no_tools"],
                tokenize=False,
                add_generation_prompt=True,
                **_without_nulls(arguments),
            )
        )

    def _own(self, message: dict[str, Any]) -> dict[str, Any]:
        """Return a message with its reasoning, tool calls and text where the chat template takes them."""
        style = self._chat["reasoning"]
        if message["role"] == "assistant":
            if style != "inline":
                message = _with_reasoning(message, style)
            if message.get("tool_calls"):
                message = self._with_calls(message)
        if self._chat["in_blocks"] and not isinstance(message["content"], list):
            message = message | {"content": [{"type": "text", "text": message["content"] or ""}]}
        return message

    def _with_calls(self, message: dict[str, Any]) -> dict[str, Any]:
        new = message | ({} if message["content"] else {"content": self._chat["null_content"]})
        if self._chat["arguments_as_text"]:
            functions = [call["function"] for call in message["tool_calls"]]
            texts = [json.dumps(function["arguments"], ensure_ascii=False) for function in functions]
            new["tool_calls"] = [
                call | {"function": call["function"] | {"arguments": text}}
                for call, text in zip(message["tool_calls"], texts, strict=True)
            ]
        return new


def _with_reasoning(message: dict[str, Any], style: str) -> dict[str, Any]:
    reasoning, content = message.get(REASONING_NAMES[0]), message["content"]
    inline = None if reasoning or not content else _INLINE.match(content)
    if inline is not None:
        reasoning, content = inline[1].strip(), inline[2].strip()
    message = message | {"content": content}
    if not reasoning:
        return message
    if style == "fields":
        return message | dict.fromkeys(REASONING_NAMES, reasoning)
    blocks = [{"type": "thinking", "thinking": reasoning}, *([{"type": "text", "text": content}] if content else [])]
    return {name: value for name, value in message.items() if name not in REASONING_NAMES} | {"content": blocks}


def _read(message: Mapping[str, Any]) -> dict[str, Any]:
    """Read a message of a request: fields that hold nothing are left out, other names of reasoning accepted."""
    content, calls = message.get("content"), _parsed(message.get("tool_calls"))
    thoughts = ""
    if isinstance(content, list):
        parts = [part if isinstance(part, Mapping) else {"type": "text", "text": part} for part in content]
        unknown = {str(part.get("type")) for part in parts} - {"text", "thinking", "reasoning"}
        if unknown:
            raise ValueError(f"a message has content of type {min(unknown)!r}: this student reads text alone")
        thoughts = "".join(part.get(part["type"]) or "" for part in parts if part["type"] != "text")
        content = "".join(part.get("text") or "" for part in parts if part["type"] == "text")
    read = {"role": message["role"], "content": "" if content is None and not calls else content}
    if reasoning := next((message[name] for name in REASONING_NAMES if message.get(name)), thoughts):
        read[REASONING_NAMES[0]] = reasoning
    if calls:
        read["tool_calls"] = [_call(_parsed(call)) for call in calls]
    return read | {name: message[name] for name in ("tool_call_id", "name") if message.get(name)}


def _call(call: Mapping[str, Any]) -> dict[str, Any]:
    function = _parsed(call.get("function", call))
    given = function.get("arguments", function.get("parameters"))
    # Chat APIs have arguments as JSON text, in which null is a value; templates want an object.
    arguments = (_parsed(given) if isinstance(given, str) else _without_nulls(given)) or {}
    named = {"id": call["id"]} if call.get("id") else {}
    return {"type": "function", **named, "function": {"name": function["name"], "arguments": arguments}}


def _parsed(value: Any) -> Any:
    return json.loads(value) if isinstance(value, str) and value.strip() else value or None


def _without_nulls(value: Any) -> Any:
    """Leave out what is null in objects: a table's columns give every row the keys of all rows."""
    if isinstance(value, Mapping):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _plain(value: Any) -> Any:
    """Make lists and mappings of whatever arrays a data frame has made of them."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.generic):
        return value.item()
    return [_plain(item) for item in value] if _is_list(value) else value


def _rows(model_input: Any) -> list[Mapping[str, Any]]:
    if isinstance(model_input, pd.DataFrame):
        rows = [
            {str(name): value for name, value in row.items() if not _missing(value)}
            for row in model_input.to_dict("records")
        ]
        # MLflow makes one row of a mapping, also of one with a list of prompts.
        return [one for row in rows if row for one in _rows(row)]
    if isinstance(model_input, str):
        return [{PROMPT: model_input}]
    if isinstance(model_input, Mapping):
        # Columns (a list of prompts, a list of conversations), or one request.
        prompts: Any = model_input.get(PROMPT)
        talks: Any = model_input.get(MESSAGES)
        if _is_list(prompts):
            return [{PROMPT: prompt} for prompt in prompts]
        if _is_list(talks) and len(talks) and _is_list(talks[0]):
            return [{MESSAGES: talk, **_options(model_input, place)} for place, talk in enumerate(talks)]
        return [model_input]
    return [row for item in model_input for row in _rows(item)]


def _options(columns: Mapping[str, Any], place: int) -> dict[str, Any]:
    """Return one conversation's tools and variables out of columns; those that are given once are everybody's."""
    tools: Any = columns.get(TOOLS)
    arguments: Any = columns.get(ARGUMENTS)
    is_column = _is_list(tools) and all(tool is None or _is_list(tool) for tool in tools)
    return {
        TOOLS: tools[place] if is_column and len(tools) else tools,
        ARGUMENTS: arguments[place] if _is_list(arguments) else arguments,
    }


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence | np.ndarray) and not isinstance(value, str)


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and value != value)


def _load_pyfunc(path: str) -> ServedStudent:
    """Load the student from the folder of the logged model's files: MLflow calls this."""
    folder = Path(path)
    chat = folder / CHAT_FILE
    has_encoder = AutoConfig.from_pretrained(folder / "model").is_encoder_decoder
    model = (AutoModelForSeq2SeqLM if has_encoder else AutoModelForCausalLM).from_pretrained(folder / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder / "components" / "tokenizer")
    return ServedStudent(model, tokenizer, json.loads(chat.read_text(encoding="utf-8")) if chat.is_file() else None)
