"""A spectrum store of another teacher, other data or another codec is refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.helpers.stores import writer
from tests.helpers.teacher_outputs import identity
from uld_ds.errors import UserError
from uld_ds.spectrum.codec_bytes import REBUILT_VERSION
from uld_ds.spectrum.precision import Precision
from uld_ds.teachers.store.manifest import CodecFacts, ServedFacts, manifest_from_json, to_json
from uld_ds.teachers.store.reader import SpectrumStore

CHANGES = [
    ({"data_digest": "e" * 64}, "data_digest", "train on the data it was built from"),
    ({"teacher": "org/other"}, "teacher", "use what it was built with"),
    ({"revision": None}, "revision", "use what it was built with"),
    ({"prompt_template": "{prompt}"}, "prompt_template", "use what it was built with"),
    ({"system_prompt": "Be brief."}, "system_prompt", "use what it was built with"),
    ({"temperature": 2.0}, "temperature", "use what it was built with"),
    ({"tokenizer_digest": "b" * 64}, "tokenizer_digest", "use what it was built with"),
    ({"top_ids": 64}, "top_ids", "set store.top_ids to the store's"),
    (
        {"served": ServedFacts(engine="vllm", model="m", version="0.32.0", top=64, vocab_size=300)},
        r"served\.engine",
        "use what",
    ),
    ({"precision": Precision(step=1 / 16)}, r"codec\.precision\.step", "set the recipe's precision to the store's"),
]


@pytest.mark.parametrize(("change", "field", "fix"), CHANGES)
def test_a_store_of_something_else_is_refused(
    built: Path, tmp_path: Path, change: dict[str, object], field: str, fix: str
) -> None:
    other = identity(**change)  # type: ignore[arg-type]
    store = SpectrumStore.open(built)
    store.check_matches(identity())
    with pytest.raises(UserError, match=rf"^teacher.store: .* has {field} .*, but here it is .*; .*{fix}") as caught:
        store.check_matches(other, key="teacher.store")
    assert "\n" not in str(caught.value)
    # And nobody builds over it, whole or not.
    writer(tmp_path)
    for place, what in ((built, "the store"), (tmp_path, "the unfinished store")):
        with pytest.raises(UserError, match=f"^store: {what} at .* has {field} .*; remove it, or build elsewhere"):
            writer(place, other)


def test_who_answered_is_in_the_manifest_of_served_stores_alone(built: Path, tmp_path: Path) -> None:
    plain = json.loads((built / "manifest.json").read_text())
    assert not {"served", "top_codec"} & plain.keys()
    served = ServedFacts(engine="vllm", model="m", version="0.32.0", top=64, precision="bfloat16", vocab_size=300)
    manifest = SpectrumStore.open(built).manifest.model_copy(update={"served": served, "top_codec": 2})
    again = manifest_from_json(to_json(manifest), "m", "store")
    assert again.served == served and again.top_codec == 2
    assert again.rebuilt_vocab_size is None
    rebuilt = again.model_copy(update={"codec": CodecFacts.of(truncated=True, rebuilt=True)})
    assert rebuilt.rebuilt_vocab_size == 300
    # How top-k tokens are written says nothing of what they are.
    assert not identity(top_ids=4, top_codec=2).differences(identity(top_ids=4))
    changed = served.model_copy(update={"top": 20})
    assert identity(served=served).differences(identity(served=changed)) == {"served.top": (64, 20)}


def test_shards_of_another_size_are_not_mixed(tmp_path: Path) -> None:
    writer(tmp_path)
    with pytest.raises(UserError, match="has examples_per_shard 20, but here it is 8"):
        writer(tmp_path, examples_per_shard=8)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("format_version", 2, "format_version 2, but this release reads 1"),
        ("codec", {"version": REBUILT_VERSION + 1, "precision": {}}, f"codec.version {REBUILT_VERSION + 1}, but"),
        ("max_length", "128", "max_length: Input should be a valid integer"),
        ("surprise", 1, "surprise: Extra inputs"),
    ],
)
def test_manifests_of_other_releases(copy: Path, field: str, value: object, message: str) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps({**manifest, field: value}))
    with pytest.raises(UserError, match=message):
        SpectrumStore.open(copy)
