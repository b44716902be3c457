"""What a connection to Ray leaves in the environment of the process."""

from __future__ import annotations

import os
import types
from contextlib import ExitStack

import pytest
import ray

from cluster.connection import ADDRESS, connected_ray


@pytest.mark.parametrize("before", [None, "127.0.0.1:1"])
def test_the_address_is_told_while_connected_however_connections_overlap(
    monkeypatch: pytest.MonkeyPatch, before: str | None
) -> None:
    monkeypatch.delenv(ADDRESS, raising=False)
    if before:
        monkeypatch.setenv(ADDRESS, before)
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: types.SimpleNamespace(gcs_address="127.0.0.1:2"))
    with connected_ray():
        first, second = ExitStack(), ExitStack()  # as two runs in threads, the one that began first ends first
        first.enter_context(connected_ray())
        second.enter_context(connected_ray())
        first.close()
        assert os.environ[ADDRESS] == "127.0.0.1:2"
        second.close()
        assert os.environ[ADDRESS] == "127.0.0.1:2"
    assert os.environ.get(ADDRESS) == before
