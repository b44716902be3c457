"""Leftovers of ended runs on a cluster: actors and placement groups."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

import ray
from ray._private import state
from ray.util import placement_group_table

KINDS = ("RayTrainWorker", "TrainController", "SplitCoordinator")
"""Parts of the class names of actors that every running run has."""
OTHER_KINDS = ("DatasetManager", "PreemptionWatcher")
"""Parts of the class names of actors that a run may have too."""


def living_actors() -> list[Mapping[str, Any]]:
    """Return the actors of the connected cluster that are not dead, from Ray's state API."""
    return [actor for actor in state.actors().values() if actor["State"] != "DEAD"]


def refuse_unknown_actors(address: str) -> None:
    """Raise RuntimeError unless the current run has an actor of each of `KINDS`.

    `leftovers` searches for these names: if Ray renamed one, it would silently miss leftovers.
    """
    with ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False):
        names = sorted({actor["ActorClassName"] for actor in living_actors()})
    if unseen := [kind for kind in KINDS if not any(kind in name for name in names)]:
        raise RuntimeError(f"no actor of a live run is called {unseen[0]}; it has {', '.join(names)}: adapt KINDS")


def leftovers(address: str) -> list[str]:
    """Return actors that are still alive, and placement groups that are still held, after all runs have ended."""
    time.sleep(10)  # Ray notices a killed driver by missing heartbeats
    with ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False):
        held = [key for key, group in placement_group_table().items() if group["state"] != "REMOVED"]
        kinds = KINDS + OTHER_KINDS
        actors = [actor for actor in living_actors() if any(kind in actor["ActorClassName"] for kind in kinds)]
        groups = [f"placement group {key}" for key in held]
        return groups + [f"{actor['ActorClassName']} {actor['State']}" for actor in actors]
