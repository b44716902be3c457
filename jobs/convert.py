"""A checkpoint of the published code as first weights of a run of ours.

    python jobs/convert.py webvid_video_swin --checkpoint univl.ckpt --out pretrained/snp_vst.safetensors
    python jobs/pretrain.py webvid_video_swin --name mine --model.initial-weights pretrained/snp_vst.safetensors

The preset says which network it is. Every tensor of it must be in the checkpoint, and what is left over is named.
"""

from __future__ import annotations

import sys

from jobs.command_line.entry import run_command


def main() -> None:
    """Command line."""
    import tyro

    from jobs.inference.conversion import Convert, convert

    try:
        print(convert(tyro.cli(Convert, description=__doc__)))
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"convert: {error}")


if __name__ == "__main__":
    sys.exit(run_command(main))
