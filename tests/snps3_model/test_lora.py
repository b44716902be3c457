"""Low-rank updates: the network as it was at the start, merged as unmerged, and nothing else trained."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
import transformers
from batches import MASK, MAX_TOKENS, PAD, SEP, VOCABULARY, random_batch
from torch import Tensor, nn

from jobs.run.config import PretrainConfig
from jobs.training.checkpoints import load_weights, weight_bytes
from pipeline import storage
from pipeline.records import Batch
from pipeline.stream.transforms import normalise
from snps3_model.config import ModelConfig, ObjectiveConfig, VisualConfig
from snps3_model.loading import initialise, load_earlier_run
from snps3_model.lora import UP, add_low_rank, merged, without_updates
from snps3_model.objective import Pretraining
from snps3_model.snps3 import SNPS3
from snps3_model.visual_weights import load_visual_weights

TOWER = transformers.Dinov2Config(
    hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, patch_size=8, image_size=32
)
OBJECTIVES = {
    "paper": ObjectiveConfig(num_hard_negatives=2),
    "sigmoid": ObjectiveConfig(gvtm_level1=0.0, sigmoid=1.0, learn_temperature=True, itm=1.0),
}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    """Both towers with updates."""
    folder = tmp_path_factory.mktemp("tower")
    transformers.Dinov2Model(TOWER).save_pretrained(folder)
    return ModelConfig(
        visual=VisualConfig(encoder="auto", backbone=str(folder), lora_rank=2, pixels="clip"),
        lora_rank=3,
        hidden=24,
        num_heads=2,
        feed_forward=32,
        max_positions=MAX_TOKENS + 4,
        dropout=0.0,
        initial_std=0.25,
    )


def network(config: ModelConfig) -> SNPS3:
    torch.manual_seed(0)
    return SNPS3(config, vocabulary_size=VOCABULARY, pad_id=PAD, separator_id=SEP).eval()


def moved(model: SNPS3) -> SNPS3:
    """As after some steps: updates that are not 0."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(UP):
                parameter.normal_(std=0.2)
    return model


def batch_of_32_px() -> Batch:
    batch = random_batch(5, empty=(2,))
    frames, pad_mask = batch.frames.repeat(1, 1, 4, 4, 1), batch.frame_pad_mask.repeat(1, 1, 4, 4)
    return dataclasses.replace(batch, frames=frames, frame_pad_mask=pad_mask)


def scores(model: SNPS3) -> Tensor:
    """Both encoders' scores of a batch, which every layer of the network has a part in."""
    batch = batch_of_32_px()
    video = model.encode_video(normalise(batch.frames), batch.frame_pad_mask)
    text = model.encode_text(batch.token_ids, batch.token_mask)
    cross = model.score(batch.token_ids, batch.token_mask, video.tokens)
    return torch.cat([(text.vector[:, None] * video.vectors).sum(-1), cross[:, None]], dim=1).detach()


def test_updates_begin_at_the_network_as_it_is_and_merge_into_it(config: ModelConfig) -> None:
    plain, updated = network(without_updates(config)), network(config)
    report = load_earlier_run(updated, {f"model.{key}": value for key, value in plain.state_dict().items()}, "plain")
    assert not report.missing
    torch.testing.assert_close(scores(updated), scores(plain), rtol=1e-6, atol=1e-6)
    after = scores(moved(updated))
    assert (after - scores(plain)).abs().mean() > 0.01
    load_earlier_run(plain, {f"model.{key}": value for key, value in updated.state_dict().items()}, "updated")
    torch.testing.assert_close(scores(plain), after, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_only_updates_heads_and_embeddings_are_trained_and_each_of_them_is(name: str, config: ModelConfig) -> None:
    trained = Pretraining(network(config), OBJECTIVES[name], mask_id=MASK).train()
    moved(trained.model)
    batch = batch_of_32_px()
    torch.stack(list(trained(batch, normalise(batch.frames)).values())).sum().backward()
    asked = {key for key, parameter in trained.named_parameters() if parameter.requires_grad}
    assert asked == {key for key, parameter in trained.named_parameters() if parameter.grad is not None}
    inner = {key for key in asked if ".backbone." in key or "bert.encoder." in key}
    assert inner
    assert all(".lora_" in key for key in inner)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_chunks_of_updated_towers_compute_what_the_whole_batch_does(name: str, config: ModelConfig) -> None:
    results = []
    for rows_at_once in (None, 2):
        model = moved(network(config))
        torch.manual_seed(1)
        trained = Pretraining(model, OBJECTIVES[name], mask_id=MASK, rows_at_once=rows_at_once).double().train()
        batch = batch_of_32_px()
        losses = trained(batch, normalise(batch.frames).double())
        torch.stack(list(losses.values())).sum().backward()
        gradients = {key: p.grad for key, p in trained.named_parameters() if p.grad is not None}
        results.append(({key: loss.detach() for key, loss in losses.items()}, gradients))
    torch.testing.assert_close(results[1][0], results[0][0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(results[1][1], results[0][1], rtol=1e-9, atol=1e-11)


def test_a_checkpoint_holds_the_updates_and_another_run_takes_them(config: ModelConfig) -> None:
    first, again = moved(network(config)), network(config)
    load_weights(weight_bytes(first), again)
    assert torch.equal(scores(again), scores(first))
    weights = {f"model.{key}": value for key, value in first.state_dict().items()}
    only_text = dataclasses.replace(config, visual=without_updates(config).visual)
    later = network(only_text)
    load_earlier_run(later, weights, "first")
    torch.testing.assert_close(scores(later), scores(first), rtol=1e-6, atol=1e-6)


def test_pretrained_towers_come_under_their_updates(config: ModelConfig, tmp_path: Path) -> None:
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    bert = transformers.BertConfig(
        hidden_size=24, vocab_size=VOCABULARY, max_position_embeddings=MAX_TOKENS + 4, **sizes
    )
    torch.manual_seed(3)
    transformers.BertModel(bert).save_pretrained(tmp_path)
    states = []
    for fields in (config, without_updates(config)):
        model = network(dataclasses.replace(fields, pretrained_text=str(tmp_path)))
        initialise(model, model.config)
        load_visual_weights(model.visual, str(config.visual.backbone), storage)
        states.append(model.state_dict())
    updated, plain = states
    towers = [key for key in plain if key.startswith(("bert.", "visual.backbone."))]
    assert len(towers) > 40
    assert all(torch.equal(updated[key], plain[key]) for key in towers)


def test_a_state_is_left_alone_where_an_update_has_no_weight() -> None:
    weights = {"a.lora_up": torch.zeros(2, 1), "a.lora_down": torch.zeros(1, 2)}
    assert merged(weights) == weights


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"lora_rank": 2}, r"model\.lora_rank=2 on random weights never learns to read; set model\.pretrained_text"),
        ({"visual": VisualConfig(encoder="pvt_v2_b0", lora_rank=2)}, r"model\.visual\.lora_rank on random weights"),
    ],
)
def test_updates_of_random_weights_are_refused(fields: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        PretrainConfig(name="x", model=ModelConfig(**fields))


def test_updates_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match=r"model\.lora_rank must lie in \[1, model\.hidden=128\)"):
        ModelConfig(lora_rank=128)
    for settings in ({"lora_rank": 0}, {"lora_rank": 2, "frozen": True}):
        with pytest.raises(ValueError, match=r"model\.visual\.lora_rank must be at least 1 .*frozen off"):
            VisualConfig(encoder="pvt_v2_b0", **settings)
    with pytest.raises(ValueError, match=r"lora_rank has no effect on model\.visual\.encoder=small_cnn"):
        VisualConfig(lora_rank=2)
    with pytest.raises(ValueError, match="no linear layers to update"):
        add_low_rank(nn.Conv2d(3, 3, 1), 2, "model.visual.lora_rank")
