"""The digest of a model's weights does not depend on where digests can be kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from uld_ds.models.identity import weights_digest


def test_a_cache_that_cannot_be_written_costs_time_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    monkeypatch.setenv("ULD_DS_CACHE", str(tmp_path / "cache"))
    digest = weights_digest(tmp_path)
    assert len(list((tmp_path / "cache" / "digests").iterdir())) == 1
    monkeypatch.setenv("ULD_DS_CACHE", str(tmp_path / "model.safetensors"))
    assert weights_digest(tmp_path) == digest
