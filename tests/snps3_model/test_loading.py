"""First weights from files: BERT checkpoints, earlier runs, and checkpoints of the published code."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from batches import PAD, SEP, tiny_network
from golden import golden
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM, BertModel, RobertaConfig

from snps3_model.config import ModelConfig, ObjectiveConfig, VisualConfig
from snps3_model.convert import canonical_name, convert, load_published, our_name, published_name
from snps3_model.loading import initialise, is_hub_name, load_earlier_run
from snps3_model.objective import Pretraining
from snps3_model.snps3 import SNPS3

VOCABULARY = 50
SIZES = ModelConfig(
    visual=VisualConfig(channels=(4, 4)), hidden=16, num_layers=4, num_heads=2, feed_forward=32, max_positions=20
)
BERT = BertConfig(
    vocab_size=VOCABULARY,
    hidden_size=16,
    num_hidden_layers=4,
    num_attention_heads=2,
    intermediate_size=32,
    max_position_embeddings=20,
)


def network(config: ModelConfig) -> SNPS3:
    return SNPS3(config, vocabulary_size=VOCABULARY, pad_id=PAD, separator_id=SEP)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint of BERT in Hugging Face format."""
    BertModel(BERT, add_pooling_layer=True).save_pretrained(tmp_path)
    return tmp_path


def test_a_bert_of_its_folder_becomes_the_shared_network(folder: Path) -> None:
    config = dataclasses.replace(SIZES, pretrained_text=str(folder))
    model, bert = network(config), BertModel.from_pretrained(folder).eval()
    (report,) = initialise(model, config)
    ids, mask = torch.tensor([[5, 9, 8], [7, 6, 0]]), torch.tensor([[True] * 3, [True, True, False]])
    expected = bert(input_ids=ids, attention_mask=mask.long())
    text = model.eval().encode_text(ids, mask)
    torch.testing.assert_close(text.hidden, expected.last_hidden_state, rtol=1e-5, atol=1e-6)
    assert torch.equal(model.cross_pooler.dense.weight, bert.pooler.dense.weight)
    assert len(report.loaded) == len(bert.state_dict())
    assert str(report) == f"{folder}: {len(report.loaded)} tensors loaded, 0 missing, 0 unexpected, 0 reshaped"


def test_a_masked_language_model_lacks_a_pooler_and_has_a_head_and_both_are_reported(tmp_path: Path) -> None:
    BertForMaskedLM(BERT).save_pretrained(tmp_path)
    config = dataclasses.replace(SIZES, pretrained_text=str(tmp_path))
    model = network(config)
    before = model.text_pooler.dense.weight.detach().clone()
    (report,) = initialise(model, config)
    assert report.missing == ("pooler.dense.bias", "pooler.dense.weight")
    assert any(name.startswith("cls.") for name in report.unexpected)
    assert torch.equal(model.text_pooler.dense.weight, before)
    assert torch.equal(model.cross_pooler.dense.weight, before)


def test_a_separate_cross_network_starts_from_the_first_layers(folder: Path) -> None:
    config = dataclasses.replace(SIZES, pretrained_text=str(folder), cross_network="separate")
    model = network(config)
    initialise(model, config)
    assert model.separate_cross is not None
    shared = model.bert.state_dict()
    assert all(torch.equal(tensor, shared[name]) for name, tensor in model.separate_cross.state_dict().items())
    assert not any(a is b for a in model.bert.parameters() for b in model.separate_cross.parameters())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden": 32}, "model.hidden is 32 but hidden_size there is 16: set model.hidden to 16"),
        ({"num_layers": 3}, "model.num_layers is 3 but num_hidden_layers there is 4: set model.num_layers to 4"),
        ({"num_heads": 4}, "model.num_heads is 4 but num_attention_heads there is 2"),
        ({"feed_forward": 48}, "model.feed_forward is 48 but intermediate_size there is 32"),
        ({"max_positions": 30}, "model.max_positions is 30 but max_position_embeddings there is 20"),
    ],
)
def test_other_sizes_are_refused_with_both_values(folder: Path, changes: dict[str, int], message: str) -> None:
    config = dataclasses.replace(SIZES, pretrained_text=str(folder), **changes)
    with pytest.raises(ValueError, match=message):
        initialise(network(config), config)


def test_another_vocabulary_is_refused(folder: Path) -> None:
    config = dataclasses.replace(SIZES, pretrained_text=str(folder))
    model = SNPS3(config, vocabulary_size=60, pad_id=PAD, separator_id=SEP)
    with pytest.raises(ValueError, match=r"has 60 pieces but vocab_size there is 50: set text\.vocabulary"):
        initialise(model, config)


def test_what_is_no_bert_is_refused(tmp_path: Path) -> None:
    RobertaConfig(hidden_size=16).save_pretrained(tmp_path)
    config = dataclasses.replace(SIZES, pretrained_text=str(tmp_path))
    with pytest.raises(ValueError, match="is a roberta, and the shared network is a bert: take a BERT"):
        initialise(network(config), config)


def test_a_checkpoint_without_all_layers_is_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    weights = safetensors.torch.load_file(path)
    kept = {name: tensor for name, tensor in weights.items() if "layer.2." not in name}
    safetensors.torch.save_file(kept, path, metadata={"format": "pt"})
    config = dataclasses.replace(SIZES, pretrained_text=str(folder))
    with pytest.raises(ValueError, match=r"lacks 16 tensors of a BERT \(encoder\.layer\.2"):
        initialise(network(config), config)


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    config = dataclasses.replace(SIZES, pretrained_text=str(tmp_path / "none"))
    with pytest.raises(FileNotFoundError, match=r"neither a folder with config\.json and weights nor a name"):
        initialise(network(config), config)


def test_names_on_the_hub_are_told_from_paths(tmp_path: Path) -> None:
    assert is_hub_name("bert-base-uncased")
    assert is_hub_name("google-bert/bert-base-uncased")
    for path in (str(tmp_path), "./bert", "a/b/c", "pretrained/bert-base-uncased"):
        assert not is_hub_name(path)


def weights_of(network: Pretraining) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def test_an_earlier_run_gives_its_network_and_not_its_queues() -> None:
    earlier = tiny_network(ObjectiveConfig(itm=1.0, queue_length=32), seed=1)
    model = tiny_network(seed=2).model
    report = load_earlier_run(model, weights_of(earlier), "old")
    for name, tensor in earlier.model.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)
    assert {name.split(".")[0] for name in report.unexpected} == {"itm_head", "queues"}
    assert not report.missing


def test_the_bytes_of_a_runs_weights_are_what_initialise_takes() -> None:
    earlier = tiny_network(seed=1, dtype=torch.float32)
    model = tiny_network(seed=2, dtype=torch.float32).model
    config = dataclasses.replace(model.config, initial_weights="runs/old/best/model.safetensors")
    (report,) = initialise(model, config, safetensors.torch.save(weights_of(earlier)))
    assert torch.equal(model.word_embeddings, earlier.model.word_embeddings)
    assert report.source == "runs/old/best/model.safetensors"


def test_an_earlier_run_of_another_network_is_refused() -> None:
    weights = weights_of(tiny_network())
    weights["model.cross_pooler.dense.bias"] = torch.zeros(3)
    del weights["model.similarity.1.bias"]
    weights["model.stranger"] = torch.zeros(3)
    with pytest.raises(ValueError, match=r"1 tensors are missing \(similarity\.1\.bias\), 1 are unknown \(stranger\)"):
        load_earlier_run(tiny_network().model, weights, "old")


def test_two_sources_for_one_network_are_refused() -> None:
    with pytest.raises(ValueError, match=r"initial_weights=a would overwrite model\.pretrained_text=b"):
        ModelConfig(initial_weights="a", pretrained_text="b")


def base_network(**changes: object) -> Pretraining:
    """The paper's network without values; a visual encoder is the visual tests' matter."""
    config = ModelConfig(
        hidden=768,
        num_layers=12,
        num_heads=12,
        feed_forward=3072,
        max_positions=512,
        **changes,  # type: ignore[arg-type]
    )
    with torch.device("meta"):
        model = SNPS3(config, vocabulary_size=30_522, pad_id=0, separator_id=102)
        return Pretraining(model, ObjectiveConfig(itm=1.0))


MODELS = ("resnet50", "pvt_v2_b2", "video_swin_small")


@pytest.mark.parametrize("name", MODELS)
def test_golden_published_names_and_shapes_are_ours(name: str) -> None:
    file = golden("parameter_names_full_size")
    shapes = {
        str(published): tuple(int(size) for size in shape if size)
        for published, shape in zip(
            file[f"{name}/parameter_name"], file[f"{name}/parameter_shape_zero_padded"], strict=True
        )
        if "img_encoder" not in published or "img_fc" in published
    }
    shapes.pop("model.module.img_proj", None)
    ours = {n: tuple(p.shape) for n, p in base_network().named_parameters() if not n.startswith("model.visual.")}
    assert {our_name(published): shape for published, shape in shapes.items()} == ours
    assert {published_name(name) for name in ours} == shapes.keys()


@pytest.mark.parametrize("name", MODELS)
def test_golden_second_names_lead_to_the_first(name: str) -> None:
    file = golden("parameter_names_full_size")
    names = {str(published) for published in file[f"{name}/parameter_name"]}
    for line in file[f"{name}/aliases"]:
        first, *others = str(line).split(" = ")
        assert first in names
        assert {canonical_name(other) for other in others} == {first}


@pytest.mark.parametrize("name", MODELS)
def test_golden_number_of_parameters_is_the_published_one(name: str) -> None:
    """The published totals are ours and the visual encoder's; the paper's count 21.7 M more for each SNP."""
    file = golden("parameter_names_full_size")
    shapes = file[f"{name}/parameter_shape_zero_padded"]
    sizes = [int(np.prod(shape[shape > 0])) for shape in shapes]
    is_visual = [("img_encoder" in n and "img_fc" not in n) or "img_proj" in n for n in file[f"{name}/parameter_name"]]
    visual = sum(size for size, own in zip(sizes, is_visual, strict=True) if own)
    ours = sum(p.numel() for n, p in base_network().named_parameters() if not n.startswith("model.visual."))
    assert ours + visual == int(file[f"{name}/total_parameters"])


def num_parameters(network: Pretraining) -> int:
    return sum(p.numel() for p in network.parameters())


def test_the_baseline_has_three_layers_and_embeddings_more() -> None:
    """P3E − SNP is 45.1 M in the paper's Table II: 205.5 − 160.4 and 206.2 − 161.1."""
    layers, hidden = 3, 768
    per_layer = 4 * (hidden * hidden + hidden) + 2 * hidden * 3072 + 3072 + hidden + 4 * hidden
    embeddings = (30_522 + 512 + 2) * hidden + 2 * hidden
    more = num_parameters(base_network(cross_network="separate")) - num_parameters(base_network())
    assert more == layers * per_layer + embeddings
    assert round(more / 1e6, 1) == 45.1


def test_the_papers_own_counts_are_those_of_the_code_and_a_disabled_temporal_encoder() -> None:
    """Paper 160.4 and 161.1 M, published code 138.7 and 139.4: 21.7 M are three layers, positions, types and a norm."""
    per_layer = num_parameters(base_network(cross_network="separate", num_cross_layers=3)) - num_parameters(
        base_network(cross_network="separate", num_cross_layers=2)
    )
    temporal = 3 * per_layer + (512 + 2) * 768 + 2 * 768
    file = golden("parameter_names_full_size")
    stray_projection = 512 * 768
    resnet = int(file["resnet50/total_parameters"]) + temporal
    pvt = int(file["pvt_v2_b2/total_parameters"]) - stray_projection + temporal
    assert (round(resnet / 1e6, 1), round(pvt / 1e6, 1)) == (160.4, 161.1)


def published_checkpoint(network: Pretraining) -> dict[str, Tensor]:
    """The weights of `network` as the published code saves them, with the second names."""
    weights = {published_name(name): tensor for name, tensor in network.state_dict().items()}
    table = "model.module.text_encoder."
    for name in list(weights):
        if name.startswith(f"{table}encoder."):
            weights[name.replace(f"{table}encoder.", "model.module.cross_encoder.")] = weights[name]
    weights["mlm_head.transformer_mlm.cls.predictions.decoder.weight"] = weights[
        f"{table}embeddings.word_embeddings.weight"
    ]
    weights["model.module.text_encoder.embeddings.position_ids"] = torch.arange(4)[None]
    return weights


def load_visual(encoder: torch.nn.Module, weights, source: str) -> None:
    encoder.load_state_dict(weights)


def test_a_published_checkpoint_becomes_ours() -> None:
    """Fault B9: published fine-tuning without `module.` in the names started from BERT in silence."""
    theirs, ours = (tiny_network(ObjectiveConfig(itm=1.0), seed=seed) for seed in (1, 2))
    report = load_published(ours, published_checkpoint(theirs), "theirs.ckpt", load_visual)
    torch.testing.assert_close(dict(ours.state_dict()), dict(theirs.state_dict()), rtol=0, atol=0)
    assert "model.module.text_encoder.embeddings.position_ids" in report.unexpected


def test_a_published_checkpoint_of_a_separate_cross_encoder_or_with_unknown_names_is_refused() -> None:
    weights = published_checkpoint(tiny_network())
    name = next(name for name in weights if name.startswith("model.module.cross_encoder."))
    with pytest.raises(ValueError, match="differ, but the published model has one tensor under both names"):
        convert(weights | {name: weights[name] + 1})
    with pytest.raises(ValueError, match="stranger is not the name of a tensor of the published model"):
        convert(weights | {"stranger": torch.zeros(1)})
    del weights["model.module.cross_pooler.dense.bias"]
    with pytest.raises(ValueError, match=r"1 tensors are missing \(cross_pooler\.dense\.bias\)"):
        load_published(tiny_network(), weights, "theirs.ckpt", load_visual)
