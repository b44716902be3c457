"""Baselines of retrieval: chance, words, a still image, the scenes and public models, beside the run's own scores."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from jobs.benchmarks.support.fixtures import manifest_row
from jobs.evaluation.baselines import WordModel, colours, generated_clips, random_scores, scene_scores, table
from jobs.evaluation.scoring import EvaluateConfig
from jobs.inference.baselines import Wanted, compare_with_baselines, still
from jobs.inference.model import TINY, decode_unnamed, load
from jobs.inference.public_dual import load_public
from jobs.run import run_files
from pipeline.corpus.manifest import make_manifest, write_manifest
from pipeline.decode.codec import encode_video
from pipeline.synthetic.clips import CorpusConfig, clips_of
from pipeline.synthetic.corpus import FORMAT_VERSION, documents_of
from pipeline.synthetic.render import render_video
from snps3_model import metrics
from tests.public_folder import clip_folder

CORPUS = CorpusConfig(num_train_videos=6, num_train_images=0, num_val=1, num_test=8, num_temporal_groups=1)
NUM_TEST = 8
TEXTS = ["a red ring rises", "a blue star"]


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small embedded corpus, its videos, manifest and corpus.json."""
    root = tmp_path_factory.mktemp("corpus")
    rows = []
    clips = clips_of(CORPUS)
    for clip in clips:
        if clip.split in ("train", "test"):
            path = root / clip.clip_name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode_video(render_video(clip.scene, num_frames=12, size_px=64), fps=6))
            row = manifest_row("small", path, "", clip.split)
            rows.append(row | {"clip_id": len(rows), "captions": [caption.text for caption in clip.captions]})
    _, facts = documents_of(CORPUS, clips)
    summary = {"format_version": FORMAT_VERSION, "config": dataclasses.asdict(CORPUS), **facts}
    (root / "corpus.json").write_text(json.dumps(summary))
    write_manifest(make_manifest("small", str(root), rows), path := f"{root}/manifest.parquet")
    return path


@pytest.fixture(scope="module")
def public(tmp_path_factory: pytest.TempPathFactory) -> str:
    return clip_folder(tmp_path_factory.mktemp("clip"))


def test_random_scores_are_at_chance() -> None:
    relevant = np.eye(400, dtype=bool)
    found = metrics.direction_metrics(random_scores(400, 400, 0), relevant, "")
    for k in (1, 5, 10):
        assert found[f"r{k}_low"] <= k / 400 <= found[f"r{k}_high"]
    assert random_scores(3, 4, 7).tolist() == random_scores(3, 4, 7).tolist()


def test_words_that_colours_decide_find_every_clip() -> None:
    rng = np.random.default_rng(0)
    shades = np.eye(3)[rng.integers(0, 3, 60)] * 255
    frames = np.broadcast_to(shades[:, None, None, None], (60, 2, 16, 16, 3)).astype(np.uint8)
    names = [["red", "green", "blue"][place] for place in shades.argmax(1)]
    fitted = WordModel.fit(colours(frames), [[f"a {name} square"] for name in names])
    clips = np.eye(3)[:, None, None, None] * np.full((1, 2, 16, 16, 1), 255)
    texts = ["this is red", "blue", "green !"]
    np.testing.assert_array_equal(fitted.scores(texts, colours(clips.astype(np.uint8))).argmax(1), [0, 2, 1])
    with pytest.raises(ValueError, match=r"needs a word that describes 2 training clips, and none of 2 words does"):
        WordModel.fit(colours(frames[:2]), [["red"], ["blue"]])


def test_the_scenes_reach_the_ceiling_of_the_corpus(manifest: str) -> None:
    clips = [clip for clip in clips_of(CORPUS) if clip.split == "test"]
    scores = scene_scores([clip.captions[0].text for clip in clips], clips)
    found = metrics.direction_metrics(scores, np.eye(len(clips), dtype=bool), "")
    oracle = json.loads(Path(manifest).with_name("corpus.json").read_text())["ceilings"]["oracle"]
    for k in (1, 5, 10):
        assert found[f"r{k}"] == pytest.approx(oracle[f"test/t2v/r{k}"], abs=1e-4)


def test_a_still_clip_is_the_mean_of_its_frames_in_any_order() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, 4, 8, 8, 4), np.uint8)
    np.testing.assert_array_equal(still(frames), still(frames[:, ::-1]))
    np.testing.assert_allclose(still(frames)[:, 3].astype(float), frames.astype(float).mean(1), atol=0.5)


def test_the_table_has_the_run_as_load_scores_it_and_every_baseline(manifest: str, public: str, tmp_path: Path) -> None:
    names = ("random", "words", "frames", "scenes", f"hub={public}")
    found = compare_with_baselines(EvaluateConfig(run=TINY, manifest=manifest, baselines=names, out=str(tmp_path)))
    assert list(found.scores) == [*names[:2], "frames, dual", "frames, fused", *names[3:], "run, dual", "run, fused"]
    clips = [clip for clip in clips_of(CORPUS) if clip.split == "test"]
    texts, relevant = [clip.captions[0].text for clip in clips], np.eye(NUM_TEST, dtype=bool)
    media = [(Path(manifest).parent / clip.clip_name).read_bytes() for clip in clips]
    model = load(TINY)
    frames = np.stack([decode_unnamed(data, model.data) for data in media])
    dual = model.dual_scores(model.embed_texts(texts), model.embed_frames(frames)).numpy()
    assert found.scores["run, dual"] == pytest.approx(metrics.direction_metrics(dual, relevant, ""), abs=1e-6)
    assert found.scores["scenes"]["r1"] == 1.0
    assert run_files.read_json(f"{tmp_path}/baselines.json")["scores"]["random"] == found.scores["random"]
    assert "| scenes | 1.000 [1.000, 1.000] |" in table(found)


def test_a_public_model_scores_as_transformers_does(public: str) -> None:
    dual, theirs = load_public(public), transformers.CLIPModel.from_pretrained(public).eval()
    frames = np.random.default_rng(0).integers(0, 256, (2, 3, 32, 32, 3), np.uint8)
    found = dual.scores(TEXTS, torch.stack([dual.embed_clip(clip) for clip in frames]))
    for row, text in enumerate(TEXTS):
        for column, clip in enumerate(frames):
            pixels = dual.picture_processor(images=list(clip), return_tensors="pt")["pixel_values"]
            with torch.no_grad():
                out = theirs(**dual.tokenizer([text], return_tensors="pt"), pixel_values=pixels)
            mean = torch.nn.functional.normalize(out.image_embeds.mean(0), dim=0)  # type: ignore[union-attr]
            assert found[row, column] == pytest.approx(float(out.text_embeds[0] @ mean), abs=1e-5)


def test_wrong_inputs_are_refused(manifest: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--baselines wrods is no baseline; did you mean words\?"):
        Wanted.read(["wrods"])
    with pytest.raises(ValueError, match="--dual-softmax True has no effect with --baselines"):
        compare_with_baselines(EvaluateConfig(run=TINY, baselines=(), dual_softmax=True))
    with pytest.raises(ValueError, match=r"snps3-tiny is the name of a model, .*: set --out"):
        compare_with_baselines(EvaluateConfig(run=TINY, manifest=manifest, baselines=("random",)))
    with pytest.raises(FileNotFoundError, match=r"needs a folder on this machine.*hf download"):
        load_public(f"{tmp_path}/nowhere")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="is of type bert, and only clip or siglip"):
        load_public(str(tmp_path))
    with pytest.raises(ValueError, match=r"has no corpus\.json .*; leave the baseline scenes out"):
        generated_clips(f"{tmp_path}/manifest.parquet", [])
    with pytest.raises(ValueError, match="is not as the generator drew it"):
        generated_clips(manifest, [{"uri": "videos/test/00000.mp4", "captions": ["another"]}])
