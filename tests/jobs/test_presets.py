from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable

import pytest
import torch
from transformers import SiglipImageProcessorPil, SiglipVisionConfig

from jobs.evaluation.leaderboard import COLUMNS
from jobs.evaluation.published import FILE, published_scores
from jobs.launch.preflight import visual_problems
from jobs.run.config import DataConfig, OptimConfig, PretrainConfig
from jobs.run.datasets import DATASETS, published_test_set
from jobs.run.fields import as_dict as plain
from jobs.run.fields import flat
from jobs.run.presets import PRESETS, tiny
from jobs.run.run_identity import identity, in_steps
from pipeline.corpus.caption_formats import format_named
from pipeline.stream.config import AugmentationConfig, MixingConfig
from pipeline.stream.epoch_plan import Plan
from snps3_model.config import VisualConfig
from snps3_model.encoders import VisualEncoder, make_encoder
from snps3_model.snps3 import SNPS3

PAPER = [name for name in PRESETS if name not in ("tiny", "openvid_video_swin")]

# the published scripts and configs: encoder, frames, long side in pixels, steps, epochs at most, where the rate falls
RECIPES = {
    "coco_vg_resnet50": ("resnet50", 1, 768, 400_000, 20, 150_000, None),
    "coco_vg_pvt": ("pvt_v2_b2", 1, 768, 130_000, 30, 110_000, None),
    "cc3m_video_swin": ("video_swin_small", 1, 480, 130_000, 30, 110_000, None),
    "webvid_video_swin": ("video_swin_small", 4, 480, None, 10, None, 5),
}


def preset(name: str) -> PretrainConfig:
    return PRESETS[name][1]()


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_named_after_itself_and_says_what_it_is(name):
    assert preset(name).name == name
    assert PRESETS[name][0].endswith(".")
    assert preset(name) == preset(name)


@pytest.mark.parametrize("name", PAPER)
def test_recipes_are_the_published_ones(name):
    config = preset(name)
    encoder, num_frames, size, num_steps, num_epochs, decay_step, decay_epoch = RECIPES[name]
    assert config.model.visual.encoder == encoder
    assert (config.data.num_frames, config.data.frame_size_px) == (num_frames, size)
    assert config.optim.num_epochs == num_epochs
    assert (config.optim.decay, config.optim.decay_step, config.optim.decay_epoch) == ("step", decay_step, decay_epoch)
    assert num_steps is None or config.optim.num_steps == num_steps
    augmentation = config.data.augmentation
    if encoder == "video_swin_small":
        assert (config.data.shown_px, augmentation.short_side_px, augmentation.long_sides_px) == (224, (268, 336), ())
        assert (augmentation.flip_probability, augmentation.operation_probability) == (0.5, 0.5)
        assert (augmentation.num_operations, augmentation.magnitude) == (2, 9)
    else:
        sides = (224, 256, 288, 320, 352, 384, 416, 448, 480, 512, 544, 576, 608, 640, 672, 704, 736, 768)
        assert augmentation == AugmentationConfig(long_sides_px=sides)
        assert config.data.shown_px == 768


def test_openvid_differs_from_the_paper_in_its_corpus_its_start_and_its_length():
    fields, published = (flat(plain(preset(name))) for name in ("openvid_video_swin", "webvid_video_swin"))
    different = {key for key, value in fields.items() if value != published[key]}
    starts = {"model.pretrained_text", "model.initial_weights", "model.visual.pretrained"}
    assert different == {"name", "data.manifest", "optim.num_steps"} | starts


@pytest.mark.parametrize("name", PAPER)
def test_what_all_recipes_share(name):
    fields = flat(plain(preset(name)))
    assert {key: fields[f"optim.{key}"] for key in ("global_batch", "lr", "weight_decay", "warmup_steps", "betas")} == {
        "global_batch": 128,
        "lr": 5e-5,
        "weight_decay": 1e-3,
        "warmup_steps": 2000,
        "betas": [0.9, 0.98],
    }
    assert fields["optim.max_grad_norm"] == 5.0
    sizes = ("hidden", "num_layers", "num_heads", "feed_forward", "max_positions", "dropout", "initial_std")
    assert [fields[f"model.{size}"] for size in sizes] == [768, 12, 12, 3072, 512, 0.1, 0.02]
    assert [fields[f"text.{size}"] for size in ("vocabulary_size", "max_tokens", "num_words")] == [30_522, 30, 3]
    assert [fields[f"masking.{key}"] for key in ("strategy", "ratio", "top_k")] == ["mssm", 0.15, 3000]
    assert (fields["objective.temperature"], fields["objective.num_hard_negatives"]) == (0.05, None)
    assert set(preset(name).objective.weights.values()) == {1.0}
    assert fields["optim.precision"] == "bf16"  # the published runs had AMP
    placement = preset(name).placement
    assert (placement.num_workers, placement.use_gpu, placement.num_kept_checkpoints) == (8, True, 10)
    assert preset(name).selection.evaluate_every == 5000


def test_the_published_initial_weights_are_asked_for():
    assert preset("coco_vg_resnet50").model.visual.frozen_batch_norm
    for name in ("coco_vg_resnet50", "coco_vg_pvt", "cc3m_video_swin"):
        assert preset(name).model.pretrained_text == preset(name).text.vocabulary
        assert preset(name).model.visual.pretrained is not None
    second = preset("webvid_video_swin").model
    assert (second.pretrained_text, second.visual.pretrained) == (None, None)
    assert second.initial_weights == "runs/cc3m_video_swin/best/model.safetensors"


def test_tiny_can_be_built_and_downloads_nothing():
    config = tiny()
    assert config.text.vocabulary is None
    SNPS3(config.model, vocabulary_size=50, pad_id=0, separator_id=3)


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_encoders_can_be_built(name):
    with torch.device("meta"):
        assert isinstance(make_encoder(preset(name).model.visual, 768), VisualEncoder)


def test_frozen_random_weights_are_refused():
    tiny_visual = VisualConfig(encoder="pvt_v2_b0", frozen=True)
    with pytest.raises(ValueError, match=r"model\.visual\.frozen on random weights sees nothing"):
        dataclasses.replace(tiny(), model=dataclasses.replace(tiny().model, visual=tiny_visual))
    begun = dataclasses.replace(tiny().model, visual=tiny_visual, initial_weights="best/model.safetensors")
    assert dataclasses.replace(tiny(), model=begun).model.visual.frozen


def test_frames_and_pixels_of_another_tower_are_refused_before_the_start(tmp_path):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    SiglipVisionConfig(**sizes, patch_size=14, image_size=224).save_pretrained(tmp_path)
    SiglipImageProcessorPil().save_pretrained(tmp_path)
    visual = VisualConfig(encoder="auto", backbone=str(tmp_path))
    size, pixels = visual_problems(visual, DataConfig(frame_size_px=64))
    assert "data.frame_size_px=64: frames of 64 × 64 px do not fall into the encoder's patches of 14 px" in size
    assert pixels.startswith("model.visual.pixels: it is imagenet, but ")
    assert visual_problems(dataclasses.replace(visual, pixels="half"), DataConfig(frame_size_px=70)) == []


def steps(per_epoch: int) -> Callable[[int], int]:
    return lambda epoch: epoch * per_epoch


def test_epochs_become_steps_of_the_corpus():
    webvid = preset("webvid_video_swin")
    known = in_steps(webvid.optim, steps(1000))
    assert (known.num_steps, known.decay_step) == (10_000, 5_000)
    assert in_steps(known, steps(1000)) == known
    few_epochs = in_steps(preset("coco_vg_pvt").optim, steps(1_178))
    assert (few_epochs.num_steps, few_epochs.decay_step) == (30 * 1_178, 110_000)
    assert in_steps(preset("cc3m_video_swin").optim, steps(23_438)).num_steps == 130_000
    assert in_steps(tiny().optim, steps(32)) == tiny().optim


def test_epochs_of_images_and_then_of_videos_are_counted_each_with_its_own_steps():
    plan = Plan(seed=0, num_videos=1280, num_images=640, global_batch=128, mixing=MixingConfig(image_epochs=2))
    optim = dataclasses.replace(tiny().optim, num_steps=1000, num_epochs=5, decay_epoch=3, decay="step")
    known = in_steps(optim, plan.first_step)
    assert (known.num_steps, known.decay_step) == (2 * 5 + 3 * 10, 2 * 5 + 1 * 10)


def test_epochs_are_identity():
    longer = dataclasses.replace(tiny(), optim=dataclasses.replace(tiny().optim, num_epochs=3))
    assert identity(tiny(), "m") != identity(longer, "m")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_epochs": 0}, "optim.num_epochs must be at least 1 or None, got 0"),
        ({"decay": "step"}, "needs optim.decay_step or optim.decay_epoch"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        OptimConfig(**changes)


def test_published_scores_and_formats_belong_to_a_data_set():
    tests = {test.title: test for dataset in DATASETS for test in dataset.tests}
    assert json.loads(FILE.read_text()).keys() == tests.keys()
    for test in tests.values():
        assert all(len(scores) == len(COLUMNS[test.task]) for scores in published_scores(test).values())
    assert all(format_named(dataset.format).name == dataset.format for dataset in DATASETS)


@pytest.mark.parametrize(
    ("corpus", "task", "num_train", "title"),
    [
        ("MSR-VTT", "retrieval", 8000, "MSR-VTT 7K, text to video"),
        ("msr_vtt_9k", "retrieval", 8001, "MSR-VTT 9K, text to video"),
        ("msrvtt_full", "multiple_choice", 6513, "MSRVTT-MC"),
        ("msvd", "question_answering", 1200, "MSVD-QA"),
        ("didemo", "question_answering", 1, None),
        ("embedded", "retrieval", 1, None),
    ],
)
def test_a_corpus_is_compared_on_its_published_test_set(corpus, task, num_train, title):
    test = published_test_set(corpus, task, num_train)
    assert (test.title if test else None) == title
