"""The films of the demo: what is drawn is found where it was drawn."""

from __future__ import annotations

import socket
from pathlib import Path

import numpy as np
import pytest

from jobs.inference.indexed_files import Filters
from jobs.inference.model import TINY, decode
from jobs.serving import demo as module
from jobs.serving.demo import (
    CORPUS,
    KNOWS,
    SCENE_SECONDS,
    SCENES_PER_FILM,
    DemoConfig,
    demo,
    films_library,
    write_films,
)
from jobs.serving.library import Library
from pipeline.decode.codec import open_video
from pipeline.synthetic.clips import clips_of
from tests.made_run import made_run


def test_each_scene_of_a_film_is_a_window_of_its_index(tmp_path: Path) -> None:
    clips = [clip for clip in clips_of(CORPUS) if clip.split == "test"][:8]
    write_films(tmp_path / "videos", clips)
    library = films_library(made_run(tmp_path), str(tmp_path))
    assert library.files.names == ["film-01.mp4", "film-02.mp4"]
    assert library.files.seconds.tolist() == pytest.approx([6 * SCENE_SECONDS, 2 * SCENE_SECONDS])
    places = [library.index.place(row) for row in range(len(library.index))]
    starts = {start for uri, start, _ in places if uri.endswith("film-01.mp4") and start is not None}
    assert {SCENE_SECONDS * scene for scene in range(6)} <= starts
    with open_video((tmp_path / "videos" / "film-02.mp4").read_bytes()) as video:
        assert video.info.num_frames == 2 * CORPUS.num_frames
    assert decode(str(tmp_path / "videos" / "film-02.mp4"), library.model.data).any()


def test_a_demo_without_its_model_or_port_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere.*does not exist|no file.*nowhere"):
        demo(DemoConfig(model=f"{tmp_path}/nowhere", port=0, num_films=1))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"port {port} is taken by another process"):
            demo(DemoConfig(port=port))


def test_without_a_model_the_shipped_one_is_shown_says_what_it_knows_and_finds_scenes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clips = [clip for clip in clips_of(CORPUS) if clip.split == "test"][: 2 * SCENES_PER_FILM]
    found: list[bool] = []

    def ask(library: Library, _: socket.socket) -> None:
        for number, clip in enumerate(clips):
            (moment,) = library.by_text(clip.captions[0].text, Filters(), num=1)
            film, scene = divmod(number, SCENES_PER_FILM)
            found.append((moment.file, moment.start_seconds) == (film, pytest.approx(scene * SCENE_SECONDS)))

    monkeypatch.setattr(module, "show_page", ask)
    demo(DemoConfig(num_films=2, port=0))
    assert f"{TINY} {KNOWS}" in capsys.readouterr().out
    assert np.mean(found) > 0.5  # by chance one in 22 windows
