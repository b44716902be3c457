"""Clients that send sequential requests to a server of moments. This module imports nothing slow."""

from __future__ import annotations

import http.client
import itertools
import json
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote


def ask_for(
    port: int, texts: Sequence[str], num_clients: int, seconds: float, rerank: int, rate: float | None
) -> tuple[list[float], int, float, float]:
    """Send requests from one thread per client, `rate` a second in all or without a pause. Return the milliseconds of
    each answer since its scheduled time, the number of answers without ten moments, seconds, and CPU seconds."""
    start, start_cpu = time.perf_counter(), time.process_time()
    stop = start + seconds

    def client(number: int) -> list[tuple[float, bool]]:
        answers = []
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        turns = itertools.count(start + number / rate, num_clients / rate) if rate else None
        for text in itertools.islice(itertools.cycle(texts), number * 7, None):
            begin = next(turns) if turns else time.perf_counter()
            if begin >= stop:
                break
            time.sleep(max(0.0, begin - time.perf_counter()))
            try:
                connection.request("GET", f"/api/search?q={quote(text)}&num=10&rerank={rerank}")
                is_answered = len(json.loads(connection.getresponse().read()).get("moments", ())) == 10
            except (OSError, http.client.HTTPException, ValueError):
                is_answered = False
                connection.close()
            answers.append((1e3 * (time.perf_counter() - begin), is_answered))
        connection.close()
        return answers

    with ThreadPoolExecutor(num_clients) as pool:
        answers = [*itertools.chain.from_iterable(pool.map(client, range(num_clients)))]
    wall, cpu = time.perf_counter() - start, time.process_time() - start_cpu
    return [time_ms for time_ms, _ in answers], sum(not is_answered for _, is_answered in answers), wall, cpu
