"""When too little is known of a teacher for the ULD distance, and how that is said."""

from __future__ import annotations

import math

import pytest
import torch

from tests.helpers.spectra_zoo import reference_distance, zipf
from tests.helpers.teacher_outputs import tokens_of
from uld_ds.spectrum.spectrum import Spectrum
from uld_ds.teacher_outputs import TeacherTokens
from uld_ds.teachers.truncation import LARGEST_SHARE, share_of_bound, uncertain_uld

LOGITS = torch.cat([zipf(20, 3000, slope=1.5, seed=1), zipf(20, 3000, slope=2.5, seed=2)])


def told(k: int) -> TeacherTokens:
    log_probs = LOGITS.log_softmax(-1).sort(-1, descending=True).values[:, :k].float()
    return TeacherTokens(Spectrum.from_top_log_probs(log_probs, vocab_size=3000), log_probs[:, 0])


def test_the_share_is_the_bound_over_the_distance_between_the_texts_distributions() -> None:
    tokens = told(64)
    p = LOGITS.softmax(-1)
    apart = reference_distance(p, p.roll(-20, 0))
    assert tokens.spectrum.error is not None
    want = float(tokens.spectrum.error.double().sum() / apart.sum())
    # What stands for the distance is taken from estimated tails.
    assert share_of_bound(tokens.spectrum) == pytest.approx(want, rel=0.05)
    shares = [share_of_bound(told(k).spectrum) for k in (20, 64, 256, 2000)]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > LARGEST_SHARE > shares[-1]


def test_the_warning_names_both_keys_and_figures() -> None:
    tokens = told(20)
    assert tokens.spectrum.unknown_mass is not None
    text = uncertain_uld([tokens[:15], tokens[15:]], weight=1.5, top=20)
    assert text is not None
    assert "objective.uld is 1.5 and teacher.server.top is 20" in text
    assert f"{float(tokens.spectrum.unknown_mass.mean()):.1%} of probability" in text
    assert f"about {share_of_bound(tokens.spectrum):.0%}" in text
    assert "\n" not in text
    named = uncertain_uld([tokens], weight=1.0, top=20, key="teachers.big.server.top")
    assert named is not None and "teachers.big.server.top is 20" in named


def test_nothing_is_said_without_need() -> None:
    assert uncertain_uld([told(20)], weight=0.0, top=20) is None
    assert uncertain_uld([], weight=1.0, top=20) is None
    assert uncertain_uld([told(2000)], weight=1.0, top=2000) is None
    assert uncertain_uld([tokens_of(9, 1)], weight=1.0, top=20) is None
    padding = Spectrum.from_top_log_probs(torch.full((3, 2), -math.inf), vocab_size=9)
    assert uncertain_uld([TeacherTokens(padding, torch.zeros(3))], weight=1.0, top=2) is None
