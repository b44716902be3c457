"""Turn a checkpoint of the published code into first weights of a run.

    python jobs/convert.py webvid_video_swin --checkpoint univl.ckpt --out pretrained/snp_vst.safetensors
    python jobs/pretrain.py webvid_video_swin --name mine --model.initial-weights pretrained/snp_vst.safetensors

The preset says which network it is. Every tensor of it must be in the checkpoint, and what is left over is named.
"""

from __future__ import annotations

from jobs.command_line import parsing
from jobs.command_line.entry import run_command


def main(argv: list[str] | None = None) -> None:
    """Do what the command line says."""
    from jobs.inference.conversion import Convert, convert

    config = parsing.read(Convert, argv, program="convert.py", description=__doc__)
    print(convert(config))


if __name__ == "__main__":
    run_command(main)
