"""What is written beside a student: the registry's description, the model card of its folder."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from uld_ds.recipe import HubSource, ModelSettings, Recipe
from uld_ds.recipe.objective import LOSS_TERMS

# What MLflow's database takes.
DESCRIPTION_LIMIT = 5000
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_BITS = {"before": "held-out bits per byte, before", "after": "after", "teacher": "teacher"}


def description(name: str, facts: Mapping[str, Any], run_id: str, plots: list[str]) -> str:
    """Markdown for the registry's page: results, pictures of the run, what it was made from.

    Pictures are artifacts of the run, and their addresses those of the page's own server.
    """
    results = _results(facts)
    pictures = "\n\n".join(f"![{path}](get-artifact?path={quote(path, safe='')}&run_uuid={run_id})" for path in plots)
    rows = "\n".join(f"| {key.replace('_', ' ')} | {value} |" for key, value in facts.items())
    text = f"Distilled by uld-ds, run `{name}`.\n\n{results}\n\n{pictures}\n\n| made from | |\n|---|---|\n{rows}\n"
    return text if len(text) <= DESCRIPTION_LIMIT else text[: text.rfind("\n", 0, DESCRIPTION_LIMIT) + 1]


def _results(facts: Mapping[str, Any]) -> str:
    rows = "\n".join(f"| {label} | {_number(facts.get(f'bits_per_byte_{key}'))} |" for key, label in _BITS.items())
    return f"| result | |\n|---|---|\n{rows}\n| alignment rate | {facts['alignment_rate']:.1%} |"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def model_card(recipe: Recipe, facts: Mapping[str, Any], teacher_folder: str | None) -> str:
    """The README.md of an exported student, with the metadata that the Hugging Face hub reads.

    Args:
        recipe: of the run.
        facts: the registered version's tags.
        teacher_folder: where the teacher is, if it is a folder here; its own card tells its licence.
    """
    name = recipe.registry.model_name or recipe.run.name
    bases = [m for m in (recipe.student.model, recipe.teacher.model) if m and _HUB_ID.fullmatch(m)]
    data = recipe.data.train
    licence = teacher_licence(teacher_folder)
    card_data = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["uld-ds", "distillation", "universal-logit-distillation"],
        base_model=bases or None,
        datasets=[data.dataset] if isinstance(data, HubSource) and _HUB_ID.fullmatch(data.dataset) else None,
        # Whoever publishes a student decides under which licence; that of the teacher is told below.
        license="other",
        license_name="see-the-licence-notes-below",
        model_name=name,
        eval_results=_eval_results(facts),
    )
    made_from = "\n".join(f"| {key.replace('_', ' ')} | {value} |" for key, value in facts.items())
    prompt = _how_it_was_asked(recipe.student)
    text = f"""# {name}

A student that [{facts["teacher"]}]({_link(recipe)}) taught by universal logit distillation with uld-ds: loss =
{_loss(facts)}, alignment `{facts["alignment"]}`.

## Results

{_results(facts)}

Bits per byte of answers that no training example holds; lower is better, whatever the tokenizer.

## Use

{prompt}

## Licence notes

{_licence_note(str(facts["teacher"]), licence)}

## Made from

| | |
|---|---|
{made_from}
"""
    return f"---\n{card_data.to_yaml()}\n---\n\n{text}"


def _loss(facts: Mapping[str, Any]) -> str:
    """The sum of the terms that had a weight."""
    return " + ".join(filter(None, (term.described(facts) for term in LOSS_TERMS.values())))


def _link(recipe: Recipe) -> str:
    model = recipe.teacher.model
    return f"https://huggingface.co/{model}" if model and _HUB_ID.fullmatch(model) else "#made-from"


def _eval_results(facts: Mapping[str, Any]) -> list[EvalResult] | None:
    bits = facts.get("bits_per_byte_after")
    if bits is None:
        return None
    digest = str(facts.get("eval_data_digest", ""))[:16]
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type="held-out",
            dataset_name=f"held-out answers {digest}".strip(),
            metric_type="bits_per_byte",
            metric_name="bits per byte, lower is better",
            metric_value=round(float(bits), 6),
        )
    ]


def _how_it_was_asked(settings: ModelSettings) -> str:
    lines = "Ask it with its chat template (`tokenizer.apply_chat_template`)."
    if settings.prompt_template != "chat":
        lines = f"Ask it with this template, which its chat template follows: `{json.dumps(settings.prompt_template)}`."
    if settings.system_prompt:
        lines += f" It was trained with the system prompt {json.dumps(settings.system_prompt, ensure_ascii=False)}."
    return lines


def _licence_note(teacher: str, licence: str | None) -> str:
    if licence is None:
        told = f"The teacher {teacher} tells no licence here: look it up before you publish this student."
    else:
        told = f"The teacher {teacher} is under `{licence}`."
    return f"{told} Licences of some teachers speak about models that learnt from their answers, too."


def teacher_licence(folder: str | None) -> str | None:
    """The licence in the metadata of a model folder's card, or what its LICENSE file begins with."""
    if folder is None or not Path(folder).is_dir():
        return None
    card = Path(folder) / "README.md"
    if card.is_file():
        try:
            licence = ModelCard.load(card, ignore_metadata_errors=True).data.get("license")
        except (ValueError, yaml.YAMLError):
            licence = None
        if licence:
            return str(licence)
    for file in sorted(Path(folder).glob("LICENSE*")):
        first = next((line.strip() for line in file.read_text(errors="replace").splitlines() if line.strip()), None)
        if first:
            return first[:80]
    return None
