"""`serve`: serves the page and the JSON API of an index to other machines, with replicas on Ray."""

from __future__ import annotations

import os
from dataclasses import dataclass

import ray

from cluster.connection import connected_ray, num_that_fit
from cluster.worker_environment import WORKER_ENVIRONMENT
from jobs.inference.index_files import parts_in, videos_of
from jobs.inference.indexed_files import IndexedFiles
from jobs.inference.query import PORT, model_of, num_reranked
from jobs.run.fields import refuse_below
from jobs.serving.app import LOOPBACK, make_app
from jobs.serving.replicas import Replicas, start_replicas
from jobs.serving.server import listening, make_server
from jobs.serving.settings import TOKEN, ReplicasConfig, checked_token
from jobs.tracking import voice
from pipeline import storage


@dataclass(frozen=True, kw_only=True)
class ServeConfig(ReplicasConfig):
    """The index to serve, the address, and the replicas."""

    host: str = LOOPBACK[0]
    """Address to listen on. Others than loopback need a token in SNPS3_TOKEN; leave TLS to a reverse proxy."""
    port: int = PORT

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_below(self, "", port=0)


def serve(config: ServeConfig) -> None:
    """Serve until this process is stopped.

    Raise ValueError for a taken port, an index of another model, a public address without a token, and for more
    replicas than fit on the cluster.
    """
    token = token_for(config.host, os.environ.get(TOKEN))
    folder = storage.absolute(config.index)
    with listening(config.port, config.host) as listener:
        run, _ = model_of(folder, config.run)
        rerank = num_reranked(run, config.rerank)
        files = IndexedFiles.read(parts_in(folder), videos_of(folder))
        with connected_ray(worker_environment=WORKER_ENVIRONMENT, is_watched=True):
            refuse_too_many(config)
            actors = start_replicas(folder, run, count=config.replicas, num_cpus=config.replica_cpus, rerank=rerank)
            app = make_app(Replicas(files, actors), hosts=LOOPBACK if config.host in LOOPBACK else ("*",), token=token)
            url = f"http://{config.host}:{listener.getsockname()[1]}/"
            voice.show(f"{url} serves {len(files.of_row)} moments of {len(files.uris)} files; Ctrl-C ends it")
            make_server(app).run(sockets=[listener])


def token_for(host: str, token: str | None) -> str | None:
    """Return the token that requests need. Raise ValueError if it is missing for a host other than loopback, or too
    short."""
    if token is None and host not in LOOPBACK:
        raise ValueError(f"--host {host} lets others ask: set {TOKEN} to what they must bring, or take {LOOPBACK[0]}")
    return checked_token(token)


def refuse_too_many(config: ServeConfig) -> None:
    """Raise ValueError for more replicas than fit on the connected cluster: they would wait forever."""
    if (most := num_that_fit(ray.cluster_resources(), config.replica_cpus, 0)) < config.replicas:
        raise ValueError(
            f"--replicas {config.replicas} of {config.replica_cpus:g} CPUs are more than the {most} that the cluster "
            "holds; lower one of them"
        )
