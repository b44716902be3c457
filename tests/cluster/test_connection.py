"""What a connection to Ray leaves in the environment of the process."""

from __future__ import annotations

import os
import types
from contextlib import ExitStack

import pytest
import ray

from cluster import connection
from cluster.connection import ADDRESS, connected_ray, num_concurrent, num_that_fit_now


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


def test_more_at_a_time_than_there_is_room_for_are_refused_where_no_node_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, free = {"CPU": 8.0, "GPU": 3.0}, {"CPU": 8.0, "GPU": 2.0}
    monkeypatch.setattr(ray, "cluster_resources", lambda: whole)
    monkeypatch.setattr(ray, "available_resources", lambda: free)
    monkeypatch.setattr(connection, "GIVEN_BACK_SECONDS", 0.0)
    assert [num_that_fit_now(2.0, 0), num_that_fit_now(2.0, 1), num_that_fit_now(0.5, 4)] == [4, 2, 1]
    assert num_concurrent(None, 2.0, 1, grows=False) == 2
    assert num_concurrent(3, 2.0, 1, grows=False) == 3  # another job may end meanwhile
    assert num_concurrent(9, 2.0, 1, grows=True) == 9
    with pytest.raises(ValueError, match="num_at_once=4, but there is room for 3, of 2 CPUs and 1 GPUs each"):
        num_concurrent(4, 2.0, 1, grows=False)


def test_what_a_driver_that_is_gone_had_held_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = iter([{"CPU": 1.0}, {"CPU": 2.0}])
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0})
    monkeypatch.setattr(ray, "available_resources", lambda: next(looks))
    assert num_that_fit_now(1.0, 0) == 2
