"""The texts beside a student: the registry's description, and the model card in its folder."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from uld_ds.recipe import HubSource, ModelSettings, NamedTeacherSettings, Recipe
from uld_ds.recipe.objective import LOSS_TERMS
from uld_ds.reporting.templates import render

# What MLflow's database takes.
DESCRIPTION_LIMIT = 5000
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_BITS = {"before": "held-out bits per byte, before", "after": "after", "teacher": "teacher"}


def description(name: str, facts: Mapping[str, Any], run_id: str, plots: list[str]) -> str:
    """Write the Markdown of the registry's page: results, pictures of the run, what the student was made from.

    Pictures are artifacts of the run, and their addresses those of the page's own server.

    Args:
        name: name of the run.
        facts: the registered version's tags.
        run_id: id of the MLflow run.
        plots: paths of the pictures among its artifacts.
    """
    pictures = [(path, f"get-artifact?path={quote(path, safe='')}&run_uuid={run_id}") for path in plots]
    text = render(
        "description.md.j2", name=name, results=_results(facts), pictures=pictures, made_from=_made_from(facts)
    )
    return text if len(text) <= DESCRIPTION_LIMIT else text[: text.rfind("\n", 0, DESCRIPTION_LIMIT) + 1]


def _results(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    bits = [(label, _number(facts.get(f"bits_per_byte_{key}"))) for key, label in _BITS.items()]
    rate = facts.get("alignment_rate")
    return bits if rate is None else [*bits, ("alignment rate", f"{rate:.1%}")]


def _made_from(facts: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [(key.replace("_", " "), value) for key, value in facts.items()]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def model_card(recipe: Recipe, facts: Mapping[str, Any], places: Mapping[str, str], *, readers: str = "") -> str:
    """Write the README.md of an exported student, with the metadata that the Hugging Face hub reads.

    Args:
        recipe: the run's recipe.
        facts: the registered version's tags.
        places: where each teacher is, by its name; the card of one that is a folder here tells its license.
        readers: which versions of transformers read it.
    """
    name = recipe.registry.model_name or recipe.run.name
    return render(
        "model_card.md.j2",
        metadata=_metadata(recipe, facts, name).to_yaml(),
        name=name,
        facts=facts,
        teachers=_taught_by(recipe, facts),
        loss=_loss(facts) + _combined(recipe),
        rollouts=_rollouts(recipe),
        results=_results(facts),
        readers=readers,
        how_it_was_asked=_how_it_was_asked(recipe.student),
        license_note=_license_notes(recipe, facts, places),
        made_from=_made_from(facts),
    )


def _metadata(recipe: Recipe, facts: Mapping[str, Any], name: str) -> ModelCardData:
    models = (recipe.student.model, *(teacher.model for teacher in recipe.teachers))
    bases = [m for m in dict.fromkeys(models) if m and _HUB_ID.fullmatch(m)]
    data = recipe.data.train
    return ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["uld-ds", "distillation", "universal-logit-distillation"],
        base_model=bases or None,
        datasets=[data.dataset] if isinstance(data, HubSource) and _HUB_ID.fullmatch(data.dataset) else None,
        # Whoever publishes a student decides under which license; that of the teacher is told below.
        license="other",
        license_name="see-the-license-notes-below",
        model_name=name,
        eval_results=_eval_results(facts),
    )


def _loss(facts: Mapping[str, Any]) -> str:
    """Write the loss as the sum of the terms that had a weight."""
    return " + ".join(filter(None, (term.described(facts) for term in LOSS_TERMS.values())))


def _rollouts(recipe: Recipe) -> str:
    """Say how much of what the student learned from it answered itself; empty if nothing."""
    if recipe.rollouts is None:
        return ""
    weights = recipe.rollouts.weights(recipe.objective)
    own = " + ".join(f"{weight:g} {LOSS_TERMS[key].label}" for key, weight in weights.items() if weight)
    share = recipe.own_examples / recipe.training.batch_size
    return (
        f"{share:.0%} of the answers in each batch were the student's own, sampled every {recipe.rollouts.every} steps "
        f"at temperature {recipe.rollouts.temperature:g} and judged by the teacher; their loss: {own}."
    )


def _taught_by(recipe: Recipe, facts: Mapping[str, Any]) -> str:
    """Name the teachers, each as a link in Markdown."""
    if len(recipe.teachers) == 1:
        return f"[{facts['teacher']}]({_link(recipe.teachers[0].model)})"
    links = [f"[{_shown(teacher)}]({_link(teacher.model)})" for teacher in recipe.teachers]
    return f"{', '.join(links[:-1])} and {links[-1]}"


def _shown(teacher: NamedTeacherSettings) -> str:
    return teacher.model or teacher.name


def _combined(recipe: Recipe) -> str:
    """Say how several teachers are combined, as what follows the sum of terms; empty with one."""
    if len(recipe.teachers) == 1:
        return ""
    weights = ", ".join(f"{teacher.weight:g} {_shown(teacher)}" for teacher in recipe.teachers)
    if recipe.objective.combine == "difference":
        return f", by the difference of the first teacher and the second ({weights})"
    judged = "each row by the teacher that it names" if recipe.objective.combine == "route" else "summed over teachers"
    return f", {judged} ({weights})"


def _link(model: str | None) -> str:
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


def _license_notes(recipe: Recipe, facts: Mapping[str, Any], places: Mapping[str, str]) -> str:
    if len(recipe.teachers) == 1:
        return _license_note(str(facts["teacher"]), teacher_license(places.get(recipe.teachers[0].name)))
    return "\n".join(
        f"- {_license_note(_shown(teacher), teacher_license(places.get(teacher.name)))}" for teacher in recipe.teachers
    )


def _license_note(teacher: str, terms: str | None) -> str:
    if terms is None:
        told = f"The teacher {teacher} tells no license here: look it up before you publish this student."
    else:
        told = f"The teacher {teacher} is under `{terms}`."
    return f"{told} Licenses of some teachers speak about models that learned from their answers, too."


def teacher_license(folder: str | None) -> str | None:
    """Read the license from the metadata of a model folder's card, or its LICENSE file's first line; else None."""
    if folder is None or not Path(folder).is_dir():
        return None
    card = Path(folder) / "README.md"
    if card.is_file():
        try:
            terms = ModelCard.load(card, ignore_metadata_errors=True).data.get("license")
        except (ValueError, yaml.YAMLError):
            terms = None
        if terms:
            return str(terms)
    for file in sorted(Path(folder).glob("LICENSE*")):
        first = next(
            (line.strip() for line in file.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()),
            None,
        )
        if first:
            return first[:80]
    return None
