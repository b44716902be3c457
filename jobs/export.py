"""Write a model as a folder in Hugging Face's format.

python jobs/export.py RUN FOLDER

config.json  model.safetensors  tokenizer.json  tokenizer_config.json  preprocessor_config.json  README.md (model card)
significant_words.json  identity.json  answers.json (of question answering)  cards/ (protocol cards of the run's scores)

Whatever takes a run's folder (`jobs.model.load`, finetune, embed) takes such a folder; `load` its name on the hub, too.
"""

from __future__ import annotations

from jobs.command_line import parsing
from jobs.command_line.entry import run_command


def main(argv: list[str] | None = None) -> None:
    """Do what the command line says."""
    from jobs.inference.hub_folder import ExportConfig, export

    config = parsing.read(ExportConfig, argv, program="export.py", description=__doc__)
    print(export(config))


if __name__ == "__main__":
    run_command(main)
