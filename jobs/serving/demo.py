"""`demo`: renders and indexes a few films of the embedded corpus, and opens the page that searches them."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from jobs.inference.index import EmbedConfig
from jobs.inference.local_index import embed_here
from jobs.inference.model import folder_of
from jobs.inference.query import PORT
from jobs.run.fields import refuse_below
from jobs.serving.library import Library
from jobs.serving.server import listening, show_page
from jobs.tracking import voice
from pipeline.decode.codec import encode_video
from pipeline.synthetic.clips import CorpusConfig, SceneClip, clips_of
from pipeline.synthetic.render import render_video

SCENES_PER_FILM = 6
CORPUS = CorpusConfig(num_train_videos=1, num_train_images=0, num_val=1, num_temporal_groups=1)
SCENE_SECONDS = CORPUS.num_frames / CORPUS.fps


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """A model trained on the embedded corpus, and the number of films."""

    model: Annotated[str, tyro.conf.Positional] = "runs/tiny"
    """Folder or s3:// URL of a run or of an exported model, or its name on the hub."""
    num_films: int = 8
    port: int = PORT
    """Port of the page, on this machine's loopback; 0: any free one."""

    def __post_init__(self) -> None:
        refuse_below(self, "", num_films=1, port=0)


def demo(config: DemoConfig) -> None:
    """Serve until this process is stopped. Raise ValueError for a taken port, FileNotFoundError for a missing model."""
    with listening(config.port) as listener, tempfile.TemporaryDirectory() as folder:
        clips = [clip for clip in clips_of(CORPUS) if clip.split == "test"][: config.num_films * SCENES_PER_FILM]
        write_films(Path(folder, "videos"), clips)
        library = films_library(folder_of(config.model), folder)
        voice.show("this model knows coloured shapes that move, and nothing else; ask, say:")
        voice.show("\n".join(f"  {clip.captions[0].text}" for clip in clips[:3]))
        show_page(library, listener)


def write_films(folder: Path, clips: list[SceneClip]) -> None:
    """Write films of `SCENES_PER_FILM` consecutive scenes each."""
    folder.mkdir()
    sizes = {"num_frames": CORPUS.num_frames, "size_px": CORPUS.size_px}
    for start in range(0, len(clips), SCENES_PER_FILM):
        shots = [render_video(clip.scene, **sizes) for clip in clips[start : start + SCENES_PER_FILM]]
        path = folder / f"film-{start // SCENES_PER_FILM + 1:02}.mp4"
        path.write_bytes(encode_video(np.concatenate(shots), fps=CORPUS.fps))


def films_library(run: str, folder: str) -> Library:
    """Index the videos in `folder`, in windows as long as a scene; return the open index."""
    embed_here(
        EmbedConfig(
            run=run,
            videos=f"{folder}/videos",
            out=f"{folder}/index",
            window_seconds=SCENE_SECONDS,
            stride_seconds=SCENE_SECONDS / 2,
        )
    )
    return Library.open(f"{folder}/index")
