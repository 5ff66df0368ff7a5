"""Losses: the objective and its terms."""

from uld_ds.losses.objective import Objective
from uld_ds.losses.term import Compared, IdentityTerm

__all__ = ["Compared", "IdentityTerm", "Objective"]
