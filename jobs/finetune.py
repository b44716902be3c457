"""Fine-tune a pre-trained run on a task: `ray job submit -- python jobs/finetune.py RECIPE --run RUN --name NAME …`.

The network, its vocabulary and the first weights are those of RUN; the recipe says what is learned and how. Every field
can be set anew; from scratch with `--model.initial-weights None`. The same command again goes on.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from cluster.auth import use_private_token

if __name__ == "__main__":
    use_private_token()

import dataclasses

from pydantic import TypeAdapter, ValidationError

from jobs import cli, pretrain, run_files
from jobs.checkpoints import WEIGHTS
from jobs.config import OptimConfig, PretrainConfig, SelectionConfig, TaskConfig
from pipeline import storage

EMBEDDED = "corpora/embedded"


def config_of(run_folder: str) -> PretrainConfig:
    """The configuration in a run's folder. ValueError that names what is wrong with it, FileNotFoundError for none."""
    path = f"{run_folder}/config.json"
    storage.check_readable(path)
    try:
        return TypeAdapter(PretrainConfig).validate_python(run_files.read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f"{path}: {where}: {first['msg']}; it was written by another version") from error


def from_run(run: PretrainConfig, run_folder: str, **changes: Any) -> PretrainConfig:
    """A configuration that begins where `run` ended, with its words."""
    table = f"{run_folder}/significant_words.json"
    text = dataclasses.replace(
        run.text, vocabulary=f"{run_folder}/tokenizer.json", significant_words=table, word_families=None
    )
    visual = dataclasses.replace(run.model.visual, pretrained=None)
    model = dataclasses.replace(
        run.model, visual=visual, pretrained_text=None, initial_weights=f"{run_folder}/best/{WEIGHTS}"
    )
    return dataclasses.replace(run, text=text, model=model, **changes)


def matching(run: PretrainConfig) -> Any:
    """The two losses that retrieval is trained with: GVTM of both levels."""
    return dataclasses.replace(run.objective, masked_words_text=0.0, masked_words_cross=0.0, lvwm=0.0, itm=0.0)


def tiny_optim(run: PretrainConfig, num_steps: int, lr: float) -> OptimConfig:
    """A short schedule on two cores."""
    return dataclasses.replace(run.optim, num_steps=num_steps, num_epochs=None, lr=lr, warmup_steps=num_steps // 10)


def tiny_retrieval(run: PretrainConfig, run_folder: str) -> PretrainConfig:
    """Retrieval on the embedded corpus."""
    return from_run(
        run,
        run_folder,
        name="tiny-retrieval",
        objective=matching(run),
        optim=tiny_optim(run, 240, 1e-3),
        selection=SelectionConfig(evaluate_every=120),
    )


def tiny_qa(run: PretrainConfig, run_folder: str) -> PretrainConfig:
    """Question answering on the embedded corpus."""
    files: Any = {name: f"{EMBEDDED}/questions/{file}.jsonl" for name, file in EMBEDDED_FILES.items()}
    return from_run(
        run,
        run_folder,
        name="tiny-qa",
        task=TaskConfig(kind="question_answering", train=f"{EMBEDDED}/questions/train.jsonl", **files),
        optim=tiny_optim(run, 480, 1e-3),
        selection=SelectionConfig(metric="validation/accuracy", evaluate_every=160),
    )


def tiny_multiple_choice(run: PretrainConfig, run_folder: str) -> PretrainConfig:
    """Multiple choice on the embedded corpus, trained with captions of other clips as wrong options."""
    files: Any = {name: f"{EMBEDDED}/multiple_choice/{file}.jsonl" for name, file in EMBEDDED_FILES.items()}
    return from_run(
        run,
        run_folder,
        name="tiny-multiple-choice",
        task=TaskConfig(kind="multiple_choice", **files),
        optim=tiny_optim(run, 240, 1e-3),
        selection=SelectionConfig(metric="validation/accuracy", evaluate_every=120),
    )


EMBEDDED_FILES = {"validation": "val", "test": "test", "temporal": "temporal"}
RECIPES: Mapping[str, Callable[[PretrainConfig, str], PretrainConfig]] = MappingProxyType(
    {recipe.__name__: recipe for recipe in (tiny_retrieval, tiny_qa, tiny_multiple_choice)}
)


def parse(argv: list[str]) -> cli.Command:
    """What was asked for; refused on stderr with exit code 2."""
    early = argparse.ArgumentParser(add_help=False)
    early.add_argument("--run")
    known, rest = early.parse_known_args(argv)
    presets = {name: ((recipe.__doc__ or "").splitlines()[0], recipe) for name, recipe in RECIPES.items()}
    if not known.run:
        if rest and rest[0] in presets:
            cli.refuse("--run must name the folder of the pre-trained run, as in --run runs/tiny")
        return cli.parse(
            rest, program="finetune.py", presets={name: (text, _no_run) for name, (text, _) in presets.items()}
        )
    folder = storage.absolute(known.run)
    try:
        run = config_of(folder)
    except (ValueError, FileNotFoundError, PermissionError) as error:
        cli.refuse(f"--run {known.run}: {error}")
    bound = {name: (text, functools.partial(recipe, run, folder)) for name, (text, recipe) in presets.items()}
    return cli.parse(rest, program="finetune.py", presets=bound)


def _no_run() -> PretrainConfig:
    raise ValueError("--run must name the folder of the pre-trained run")


def main(argv: list[str] | None = None) -> int:
    """Exit status of the command line."""
    return pretrain.run(parse(sys.argv[1:] if argv is None else argv), program="finetune")


if __name__ == "__main__":
    sys.exit(main())
