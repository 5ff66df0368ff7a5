"""Errors cross processes as they are: a worker's mistake of the user is told as one."""

from __future__ import annotations

import pickle

from uld_ds.errors import RunError, UserError


def test_a_users_mistake_survives_the_way_from_a_worker() -> None:
    error = UserError("data.train", "'x' is not there", "correct it")
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.key) == (UserError, "data.train: 'x' is not there; correct it", "data.train")
    assert again.exit_status == 2
    assert str(pickle.loads(pickle.dumps(RunError("it failed")))) == "it failed"
