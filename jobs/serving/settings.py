"""Settings of the replicas that serve an index, the token of requests, and the arguments of a Ray Serve deployment."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import tyro
from pydantic import TypeAdapter, ValidationError

from jobs.run.fields import refuse_below
from pipeline.nearest import did_you_mean

TOKEN = "SNPS3_TOKEN"
"""Environment variable with the token of requests: on a command line other users of the machine would see it."""
LEAST_TOKEN_CHARACTERS = 16


@dataclass(frozen=True, kw_only=True)
class ReplicasConfig:
    """The index to serve, and the replicas."""

    index: Annotated[str, tyro.conf.Positional]
    """Folder or s3:// URL that jobs/embed.py wrote."""
    run: Annotated[str | None, tyro.conf.arg(aliases=["--model"])] = None
    """Folder of the model; None: its path when the index was made."""
    replicas: int = 2
    """Processes that answer, each with the model and the index."""
    replica_cpus: float = 1.0
    """CPUs of the cluster for each replica."""
    rerank: int | None = None
    """Windows that the cross encoder re-ranks, unless a request sets it; None: 100, or 0 with a CLIP or SigLIP."""

    def __post_init__(self) -> None:
        refuse_below(self, "", replicas=1, rerank=0)
        if self.replica_cpus <= 0:
            raise ValueError(f"replica_cpus must be above 0, got {self.replica_cpus}")


def checked_token(token: str | None) -> str | None:
    """Return the token that requests need. Raise ValueError for one that can be guessed."""
    if token is not None and len(token) < LEAST_TOKEN_CHARACTERS:
        raise ValueError(f"{TOKEN} must have at least {LEAST_TOKEN_CHARACTERS} characters, got {len(token)}")
    return token


def deployment_of(args: Mapping[str, Any], token: str | None) -> tuple[ReplicasConfig, str]:
    """Return the settings and the token of a Ray Serve deployment from its arguments, whose values may be texts.

    Raise ValueError for unknown, missing and wrong arguments, and without a token: Ray Serve's proxies may listen on
    public addresses.
    """
    names = [field.name for field in dataclasses.fields(ReplicasConfig)]
    if unknown := sorted(args.keys() - set(names)):
        question = did_you_mean(unknown[0], names)
        raise ValueError(f"{unknown[0]} is no argument; {question or 'there are ' + ', '.join(names)}")
    if not args.get("index"):
        raise ValueError("index must name the folder or s3:// URL that snps3 embed wrote, got none; add index=FOLDER")
    if (checked := checked_token(token)) is None:
        raise ValueError(f"set {TOKEN} to the token of requests: Ray Serve's proxies may listen on public addresses")
    try:
        return TypeAdapter(ReplicasConfig).validate_python(dict(args)), checked
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"])) + ": " if first["loc"] else ""
        raise ValueError(f"{name}{first['msg'].removeprefix('Value error, ')}, got {first['input']!r:.80}") from error
