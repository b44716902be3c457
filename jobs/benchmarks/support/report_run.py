"""Cost of a corpus report, measured in a separate process.

python -m jobs.benchmarks.support.report_run MANIFEST PAGE
"""

from __future__ import annotations

import json
import sys
import time

from jobs.benchmarks.support.processes import private_and_shared_bytes, sampled
from jobs.benchmarks.support.scale_run import DECODER
from jobs.reports.corpus import CorpusReportConfig, corpus_page, read_corpus
from pipeline import storage

SAMPLE_SECONDS = 0.2


def main(manifest: str, page: str) -> None:
    """Write the page, and print seconds, CPU seconds, and the highest private memory in MiB."""
    imports, _ = private_and_shared_bytes()
    cpu, wall = time.process_time(), time.perf_counter()
    with sampled(private_and_shared_bytes, SAMPLE_SECONDS) as samples:
        corpus = read_corpus(CorpusReportConfig(manifest=manifest, out=page, decoder=DECODER))
        storage.write_bytes_atomic(page, corpus_page(corpus).encode())
    highest = max(private for _, (private, _) in [*samples, (0.0, private_and_shared_bytes())])
    result = {
        "seconds": time.perf_counter() - wall,
        "cpu_seconds": time.process_time() - cpu,
        "private_mib": highest / 2**20,
        "imports_mib": imports / 2**20,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
