"""A protocol card for tests."""

from __future__ import annotations

from typing import Any

from jobs.evaluation.cards import Card, Protocol


def card(**changes: Any) -> Card:
    """Of retrieval, with anything set anew."""
    protocol = Protocol(task="retrieval", run="runs/x", manifest="m", split="test")
    fields: dict[str, Any] = {
        "protocol": protocol,
        "weights": "w",
        "run_hash": "r",
        "run_seed": 0,
        "manifest_hash": "h",
        "ids_hash": "i",
        "num_videos": 2,
        "num_queries": 2,
        "num_missing": 0,
        "num_undecoded": 0,
        "selected_on": "x on val",
        "is_selected_on_test": False,
        "scores": {"test/t2v/r1": 0.5, "test/t2v/r1_low": 0.4, "test/t2v/r1_high": 0.6},
        "date": "2026-01-01",
        "hardware": "",
        "commit": "",
    }
    return Card(**fields | changes)
