"""Find moments of videos by a sentence, in an index of jobs/embed.py.

python jobs/search.py INDEX "a red ring rises"
python jobs/search.py INDEX                       a page in which to ask, and to play what is there
python jobs/search.py VIDEOS --model MODEL        the same for a folder of videos, which is embedded first
python jobs/search.py INDEX --queries FILE        a JSON line per question, and one per answer

The dual encoder's vectors choose `--rerank` videos, the cross encoder puts them in order. A CLIP or SigLIP ranks by its
vectors alone.
"""

from __future__ import annotations

from jobs.command_line import parsing
from jobs.command_line.entry import run_command


def main(argv: list[str] | None = None) -> None:
    """Do what the command line says."""
    from jobs.inference.query import SearchConfig, answers, search
    from jobs.tracking import voice

    config = parsing.read(SearchConfig, argv, program="search.py", description=__doc__)
    if config.queries:
        for answer in answers(config):
            print(answer, flush=True)
        return
    if config.text is None:
        from jobs.serving.server import serve

        serve(config)
        return
    for moment in search(config):
        cross = "" if moment.cross is None else f"{moment.cross:.3f}"
        voice.show(f"{cross:>8}  {moment.dual:8.3f}  {moment.span:>15}  {moment.uri}".rstrip())


if __name__ == "__main__":
    run_command(main)
