"""The page and the JSON API as an application of Ray Serve, for clusters that run it already; needs `[ray-serve]`.

SNPS3_TOKEN=… serve run jobs.serving.ray_serve:build_app index=INDEX replicas=4

browser ── proxy of Ray Serve ── `Front`, the ASGI application ── `Searcher`, a replica with the model and the index

`snps3 serve` answers faster and replaces a lost replica sooner. Requests only read, so it is safe to repeat one whose
searcher died. The one `Front` is not repeated: requests in it are lost where its process is killed.
"""

from __future__ import annotations

import logging
import os
import time
from typing import Any

from ray import serve
from ray.exceptions import RayActorError, RayTaskError
from ray.serve import Application
from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp

from cluster.worker_environment import WORKER_ENVIRONMENT
from jobs.inference.index_files import parts_in, videos_of
from jobs.inference.indexed_files import Filters, IndexedFiles
from jobs.inference.query import model_of, num_reranked
from jobs.serving.app import make_app
from jobs.serving.library import Library, Moment, Sentence
from jobs.serving.replicas import PATIENCE_SECONDS, Replicas
from jobs.serving.settings import TOKEN, deployment_of
from pipeline import storage

MAX_BATCH = 16
"""Sentences that a replica embeds at once."""
MAX_ONGOING = 1000
"""Requests that a replica holds: Ray Serve's five would leave batches small, and videos that play block the page."""
HEALTH_CHECK_SECONDS = 5.0
log = logging.getLogger(__name__)


@serve.deployment(max_ongoing_requests=MAX_ONGOING, health_check_period_s=HEALTH_CHECK_SECONDS)
class Searcher:
    """A library in a process of its own. Sentences that arrive while it works are answered as one batch."""

    def __init__(self, index: str, run: str, rerank: int) -> None:
        self.library = Library.open(index, run, rerank=rerank)

    async def by_text(self, text: str, filters: Filters, *, num: int, rerank: int | None = None) -> list[Moment]:
        """Return the best moments for a sentence, as `Library.by_text` does."""
        answer = await self.by_texts(Sentence(text=text, filters=filters, num=num, rerank=rerank))
        if isinstance(answer, Exception):
            raise answer
        return answer

    @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=0.0)
    async def by_texts(self, sentences: list[Sentence]) -> list[Any]:
        """Return the moments, or the error, of each sentence."""
        return await run_in_threadpool(self.library.by_texts, sentences)

    async def answer(self, method: str, *args: Any, **options: Any) -> Any:
        """Return the result of another method of the library."""
        return await run_in_threadpool(getattr(self.library, method), *args, **options)


@serve.deployment(
    max_ongoing_requests=MAX_ONGOING,
    health_check_period_s=HEALTH_CHECK_SECONDS,
    ray_actor_options={"num_cpus": 0},  # it only waits for searchers
)
@serve.ingress()
class Front:
    """The application behind Ray Serve's proxies; it asks the searchers."""

    def __init__(self, folder: str, token: str, searchers: Any) -> None:
        files = IndexedFiles.read(parts_in(folder), videos_of(folder))
        self.replicas, self.token = Replicas(files, [searchers], ask_handle), token

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """Return the application; Ray Serve calls this after the constructor."""
        return make_app(self.replicas, hosts=["*"], token=self.token)


def build_app(args: dict[str, Any]) -> Application:
    """Return the application for `serve run` and `serve deploy`; `args`: the fields of `ReplicasConfig`.

    Requests need the token in the environment variable SNPS3_TOKEN. Raise ValueError without it, for unknown or wrong
    fields, for an index of another model, and for one that cannot re-rank; FileNotFoundError for a missing index.
    """
    config, token = deployment_of(args, os.environ.get(TOKEN))
    folder = storage.absolute(config.index)
    run, _ = model_of(folder, config.run)
    options = {"num_cpus": config.replica_cpus, "runtime_env": {"env_vars": WORKER_ENVIRONMENT}}
    searcher: Any = Searcher  # Ray Serve's decorators are not typed
    searchers = searcher.options(num_replicas=config.replicas, ray_actor_options=options)
    front: Any = Front
    return front.bind(folder, token, searchers.bind(folder, run, num_reranked(run, config.rerank)))


def ask_handle(handle: Any, method: str, *args: Any, **options: Any) -> Any:
    """Ask the searchers behind a handle and wait for the answer; ask again where the asked one has died.

    Raise any error of the library, and TimeoutError if none answers for `PATIENCE_SECONDS`.
    """
    deadline = time.monotonic() + PATIENCE_SECONDS
    while (seconds := deadline - time.monotonic()) > 0:
        try:
            if method == "by_text":
                return handle.by_text.remote(*args, **options).result(timeout_s=seconds)
            return handle.answer.remote(method, *args, **options).result(timeout_s=seconds)
        except RayActorError as error:
            log.warning("a searcher is gone, its request goes to another: %s", str(error).partition("\n")[0])
        except RayTaskError as error:
            raise error.cause from error
        except TimeoutError:
            break
    raise TimeoutError("no replica answers")
