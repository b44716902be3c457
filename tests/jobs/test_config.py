"""A configuration as a value: what names a run, what may change, and what is refused in which words."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from jobs.run.config import (
    DataConfig,
    OptimConfig,
    Placement,
    PretrainConfig,
    SelectionConfig,
    TaskConfig,
    TextConfig,
    nearest_multiples,
)
from jobs.run.fields import as_dict, config_hash, differences, flat
from jobs.run.run_identity import identity
from pipeline.offline.shards import PackingConfig
from pipeline.stream.config import AugmentationConfig, OrderConfig
from pipeline.text.config import MaskingConfig, Strategy
from snps3_model.config import ModelConfig, ObjectiveConfig, VisualConfig

CONFIG = PretrainConfig(name="first")


def leaves(config: Any) -> dict[str, Any]:
    """Dotted name → value of every field, read from the dataclasses themselves."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            found |= {f"{field.name}.{key}": inner for key, inner in leaves(value).items()}
        else:
            found[field.name] = value
    return found


def nested(fields: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `flat`."""
    result: dict[str, Any] = {}
    for key, value in fields.items():
        *outer, last = key.split(".")
        inner = result
        for name in outer:
            inner = inner.setdefault(name, {})
        inner[last] = value
    return result


def test_the_saved_form_holds_every_field_and_survives_json() -> None:
    saved = as_dict(CONFIG)
    assert nested(flat(saved)) == saved == json.loads(json.dumps(saved))
    for name, value in leaves(CONFIG).items():
        plain = list(value) if isinstance(value, tuple) else value
        assert flat(saved)[name] == plain, name
    assert flat(saved).keys() == leaves(CONFIG).keys()


def test_the_saved_form_makes_the_same_configuration_again() -> None:
    config = dataclasses.replace(
        CONFIG, masking=MaskingConfig(strategy=Strategy.MLM), optim=OptimConfig(betas=(0.8, 0.9)), seed=5
    )
    saved = as_dict(config)
    assert saved["masking"]["strategy"] == "mlm"
    saved["masking"]["strategy"] = Strategy(saved["masking"]["strategy"])
    parts = {field.name: type(getattr(config, field.name)) for field in dataclasses.fields(config)}
    saved["masking"]["strategy"] = Strategy(saved["masking"]["strategy"])
    saved["model"]["visual"] = CONFIG.model.visual
    saved["objective"]["extra"] = tuple(saved["objective"]["extra"])
    saved["data"] |= {"mixing": CONFIG.data.mixing, "augmentation": CONFIG.data.augmentation}
    again = {name: parts[name](**value) if isinstance(value, dict) else value for name, value in saved.items()}
    assert as_dict(PretrainConfig(**again)) == as_dict(config)


@pytest.mark.parametrize("name", leaves(CONFIG))
def test_every_field_is_identity_or_placement(name: str) -> None:
    """A field that would be in neither could change what a run computes under the same hash."""
    is_identity = name in identity(CONFIG, "m")
    assert is_identity == (not name.startswith("placement.") and name not in ("name", "data.manifest"))


def changed(**parts: Any) -> PretrainConfig:
    return dataclasses.replace(CONFIG, **parts)


@pytest.mark.parametrize(
    "other",
    [
        changed(name="second"),
        changed(placement=Placement(num_workers=4, storage="s3://bucket/runs", log_every=3, decode_cpus=7)),
        changed(placement=Placement(num_workers=(1, 7))),
        changed(data=DataConfig(manifest="s3://bucket/manifest.parquet")),
    ],
)
def test_where_a_run_runs_is_no_part_of_what_it_is(other: PretrainConfig) -> None:
    assert identity(other, "m") == identity(CONFIG, "m")
    assert config_hash(identity(other, "m")) == config_hash(identity(CONFIG, "m"))


@pytest.mark.parametrize(
    ("other", "line"),
    [
        (changed(seed=1), "seed: was 0, is 1"),
        (changed(optim=OptimConfig(global_batch=32)), "optim.global_batch: was 64, is 32"),
        (changed(masking=MaskingConfig(strategy=Strategy.MLM)), "masking.strategy: was 'mssm', is 'mlm'"),
        (changed(objective=ObjectiveConfig(lvwm=0.0)), "objective.lvwm: was 1.0, is 0.0"),
        (changed(data=DataConfig(num_frames=1)), "data.num_frames: was 4, is 1"),
        (changed(model=ModelConfig(hidden=64)), "model.hidden: was 128, is 64"),
        (changed(selection=SelectionConfig(patience=2)), "selection.patience: was None, is 2"),
    ],
)
def test_what_a_run_computes_is_its_identity_and_the_difference_is_shown(other: PretrainConfig, line: str) -> None:
    old, new = identity(CONFIG, "m"), identity(other, "m")
    assert config_hash(old) != config_hash(new)
    assert differences(old, new) == [line]
    assert differences(old, old) == []


def test_the_content_of_the_corpus_is_identity() -> None:
    old, new = identity(CONFIG, "aa"), identity(CONFIG, "bb")
    assert differences(old, new) == ["data.manifest_hash: was 'aa', is 'bb'"]
    assert config_hash(old) != config_hash(new)


def test_a_field_that_one_side_lacks_is_named() -> None:
    assert differences({"seed": 0, "old": 1}, {"seed": 0, "new": 2}) == [
        "new: was 'absent', is 2",
        "old: was 1, is 'absent'",
    ]


def test_the_hash_is_12_hex_digits_of_the_values_in_any_order() -> None:
    fields = identity(CONFIG, "m")
    found = config_hash(dict(reversed(fields.items())))
    assert found == config_hash(fields)
    assert len(found) == 12
    assert int(found, 16) >= 0


def test_the_remedy_for_a_batch_names_the_nearest_shares() -> None:
    assert nearest_multiples(10, 4) == "take 8 or 12"
    assert nearest_multiples(3, 4) == "take 4"


def test_a_configuration_holds_plain_values_only() -> None:
    @dataclasses.dataclass
    class Odd:
        value: object

    with pytest.raises(TypeError, match="a configuration cannot hold a set"):
        as_dict(Odd({1}))


def pretrain(**parts: Any) -> PretrainConfig:
    return PretrainConfig(**{"name": "x"} | parts)


REFUSED = [
    (lambda: DataConfig(num_frames=0), r"data\.num_frames must be at least 1, got 0"),
    (lambda: DataConfig(frame_size_px=-1), r"data\.frame_size_px must be at least 1, got -1"),
    (lambda: DataConfig(max_evaluation_clips=0), r"data\.max_evaluation_clips must be at least 1, got 0"),
    (lambda: DataConfig(max_rejected_share=1.5), r"data\.max_rejected_share must lie in \[0, 1\], got 1\.5"),
    (
        lambda: DataConfig(augmentation=AugmentationConfig(crop_px=50, short_side_px=(60, 70))),
        r"data\.augmentation\.crop_px must not exceed data\.frame_size_px=48, .* got 50; raise data\.frame_size_px",
    ),
    (
        lambda: DataConfig(augmentation=AugmentationConfig(long_sides_px=(32, 64))),
        r"data\.augmentation\.long_sides_px must not exceed data\.frame_size_px=48, .* got 64",
    ),
    (lambda: TextConfig(max_tokens=2), r"text\.max_tokens must be at least 3, got 2"),
    (lambda: TextConfig(num_words=0), r"text\.num_words must lie in \[1, text\.max_tokens\], got 0"),
    (lambda: TextConfig(num_words=31), r"text\.num_words must lie in \[1, text\.max_tokens\], got 31"),
    (lambda: OptimConfig(num_steps=0), r"optim\.num_steps must be above 0, got 0"),
    (lambda: OptimConfig(global_batch=0), r"optim\.global_batch must be above 0, got 0"),
    (lambda: OptimConfig(lr=-1e-3), r"optim\.lr must be above 0, got -0\.001"),
    (lambda: OptimConfig(max_grad_norm=0.0), r"optim\.max_grad_norm must be above 0, got 0\.0"),
    (lambda: OptimConfig(decay="step"), r"optim\.decay=step needs optim\.decay_step"),
    (lambda: SelectionConfig(evaluate_every=0), r"selection\.evaluate_every must be at least 1, got 0"),
    (lambda: SelectionConfig(evaluate_also=(5, 0)), r"selection\.evaluate_also must have steps of at least 1, got 0"),
    (lambda: SelectionConfig(patience=0), r"selection\.patience must be at least 1 or None, got 0"),
    *[
        (lambda name=name: Placement(**{name: 0}), rf"placement\.{name} must be at least 1, got 0")
        for name in ("num_workers", "decode_cpus", "log_every", "num_kept_checkpoints", "threads_per_worker")
    ],
    (lambda: Placement(num_workers=(0, 2)), r"placement\.num_workers must be at least 1, got 0"),
    (lambda: Placement(num_workers=(4, 2)), r"placement\.num_workers must name the fewest first, got 4 and 2"),
    (lambda: Placement(max_failures=-1), r"placement\.max_failures must not be negative, got -1"),
    (lambda: OptimConfig(layer_decay=0.0), r"optim\.layer_decay must lie in \(0, 1\], got 0"),
    (lambda: ObjectiveConfig(dual_share=1.0), r"objective\.dual_share must lie in \[0, 1\), got 1"),
    (
        lambda: ObjectiveConfig(gvtm_level1=0.0, dual_share=0.5),
        r"objective\.dual_share=0\.5 is of .* both are 0; set one",
    ),
    (
        lambda: OptimConfig(hold_share=1.0),
        r"optim\.hold_share must lie in \[0, 1\), got 1\.0",
    ),
    (lambda: OptimConfig(num_steps=9, frozen_steps=9), r"optim\.frozen_steps must be below optim\.num_steps=9, got 9"),
    (
        lambda: dataclasses.replace(CONFIG, optim=OptimConfig(pretrained_rate=0.1)),
        r"optim\.pretrained_rate=0\.1 has no effect on random weights",
    ),
    (lambda: Placement(compiled=True), r"placement\.compiled needs placement\.length_groups=1, got 2"),
    (lambda: Placement(hang_seconds=0), r"placement\.hang_seconds must be above 0, got 0"),
    (lambda: pretrain(name=""), "name must be a plain folder name of letters, digits and _ . -, got ''"),
    (lambda: pretrain(name="a/b"), "name must be a plain folder name of letters, digits and _ . -, got 'a/b'"),
    (
        lambda: pretrain(placement=Placement(num_workers=3)),
        r"global_batch must be a multiple of placement\.num_workers .* got 64 clips for 3 workers; take 63 or 66",
    ),
    (
        lambda: pretrain(optim=OptimConfig(global_batch=2), placement=Placement(num_workers=4)),
        "got 2 clips for 4 workers; take 4$",
    ),
    (
        lambda: pretrain(text=TextConfig(max_tokens=65)),
        r"model\.max_positions must be at least 65 for text\.max_tokens=65 and data\.num_frames=4, got 64",
    ),
    (
        lambda: pretrain(data=DataConfig(num_frames=64)),
        r"model\.max_positions must be at least 65 for text\.max_tokens=30 and data\.num_frames=64, got 64",
    ),
    (
        lambda: ModelConfig(visual=VisualConfig(encoder="clip_cnn"), grid_side=2),
        r"encoder=clip_cnn gives one token per frame, and model\.grid_side=2 asks for more; set it to 1",
    ),
    (
        lambda: pretrain(objective=ObjectiveConfig(num_hard_negatives=64)),
        r"objective\.num_hard_negatives must be below optim\.global_batch, got 64 of 64",
    ),
    (lambda: OptimConfig(average_decay=1.0), r"optim\.average_decay must lie between 0 and 1 or be None, got 1\.0"),
    (lambda: TaskConfig(test="q.json"), r"task\.test names questions, which task\.kind=captions does not ask"),
    (lambda: TaskConfig(is_video_hidden=True), r"task\.is_video_hidden is for questions and choices"),
    (lambda: TaskConfig(kind="multiple_choice"), r"task\.kind=multiple_choice needs task\.test, a file of questions"),
    (
        lambda: pretrain(objective=ObjectiveConfig(queue_length=255)),
        r"objective\.queue_length must be at least 256, the frames of one step of optim\.global_batch=64, got 255",
    ),
    (
        lambda: pretrain(placement=Placement(rows_at_once=8)),
        r"placement\.rows_at_once=8 would change what is computed: that CNN normalises over all clips",
    ),
    (lambda: OrderConfig(whole_up_to=1023), r"data\.order\.whole_up_to must be at least 1024, a block, got 1023"),
    (lambda: OrderConfig(window_blocks=1), r"data\.order\.window_blocks must be at least 2, got 1"),
    *[
        (lambda name=name: PackingConfig(**{name: 0}), rf"packing\.{name} must be at least 1, got 0")
        for name in ("num_frames", "frame_size_px", "shard_bytes")
    ],
    (lambda: PackingConfig(quality=96), r"packing\.quality must lie in \[1, 95\], got 96"),
]


@pytest.mark.parametrize(("make", "message"), REFUSED, ids=[message[:40] for _, message in REFUSED])
def test_what_cannot_work_is_refused_with_value_and_rule(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
