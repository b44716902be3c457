"""What version 0.1.0 wrote, and what users wrote for it: a run's folder, and names of fields."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from jobs.command_line import parsing
from jobs.experiments import space
from jobs.inference.model import load
from jobs.run.fields import current_arguments
from jobs.run.presets import PRESETS, tiny
from jobs.run.run_identity import config_of, with_values

RUN = Path(__file__).parent.parent / "data" / "run_v0_1_0"
"""A network of a few thousand weights, trained for two steps by v0.1.0, and in vectors.npz what v0.1.0 made of some
frames and texts with it."""


def test_a_run_of_the_previous_version_embeds_as_it_did() -> None:
    model, recorded = load(str(RUN)), np.load(RUN / "vectors.npz")
    videos, texts = model.embed_frames(recorded["frames"]), model.embed_texts(recorded["texts"].tolist())
    ours = {
        "video_vectors": videos.vectors,
        "text_vectors": texts.vectors,
        "dual_scores": model.dual_scores(texts, videos),
        "match": model.match(texts, videos),
    }
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor.detach(), torch.from_numpy(recorded[name]), rtol=1e-5, atol=1e-6, msg=name)


def test_a_configuration_of_the_previous_version_keeps_its_values_under_the_new_names() -> None:
    saved, config = json.loads((RUN / "config.json").read_text()), config_of(str(RUN))
    assert config.masking.ratio == saved["masking"]["probability"] == 0.3
    assert config.text.lvwm_top_k == config.masking.top_k == saved["masking"]["top_k"] == 6
    assert config.objective.extra == ()


def test_a_configuration_of_this_version_is_read_as_it_is(tmp_path: Path) -> None:
    folder = shutil.copytree(RUN, tmp_path / "run")
    saved = json.loads((folder / "config.json").read_text())
    del saved["masking"]["probability"]
    saved["masking"]["ratio"], saved["text"]["lvwm_top_k"] = 0.2, 9
    (folder / "config.json").write_text(json.dumps(saved))
    config = config_of(str(folder))
    assert (config.masking.ratio, config.masking.top_k, config.text.lvwm_top_k) == (0.2, 6, 9)


@pytest.mark.parametrize("arguments", [["--masking.probability", "0.3"], ["--masking.probability=0.3"]])
def test_the_old_name_of_the_masking_ratio_is_taken_with_a_warning(arguments: list[str]) -> None:
    with pytest.warns(FutureWarning, match=r"masking\.probability is called masking\.ratio now"):
        config = parsing.parse(["tiny", *arguments]).config
    assert config == with_values(tiny(), {"masking.ratio": 0.3}, name="tiny")
    with pytest.warns(FutureWarning, match=r"masking\.ratio now"):
        assert space.parse(["masking.probability=0.1,0.2"]) == space.parse(["masking.ratio=0.1,0.2"])
    with pytest.warns(FutureWarning, match=r"masking\.ratio now"):
        assert with_values(tiny(), {"masking.probability": 0.3}, name="tiny") == config


def test_other_arguments_stay_as_they_are() -> None:
    arguments = ["tiny", "--optim.lr=1e-3", "--name", "masking.probability", "--dry-run"]
    assert current_arguments(arguments) == arguments


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_chooses_the_words_of_lvwm_by_the_rank_that_0_1_0_took_from_mssm(name: str) -> None:
    config = PRESETS[name][1]()
    assert config.text.lvwm_top_k == config.masking.top_k


def test_the_words_of_lvwm_stay_when_those_of_mssm_are_swept() -> None:
    for value in (10, 100, None):
        swept = with_values(tiny(), {"masking.top_k": value}, name="tiny")
        assert swept.text == tiny().text
    with pytest.raises(ValueError, match=r"text\.lvwm_top_k must not be negative, got -1"):
        dataclasses.replace(tiny().text, lvwm_top_k=-1)
