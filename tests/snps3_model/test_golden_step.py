"""A whole pre-training step of the published code: six losses, their gradients, queues and three updates.

One recorded batch goes through Video Swin, the shared network and `Pretraining` in the published settings; sizes and
settings are the file's.
"""

from __future__ import annotations

import dataclasses
from functools import cache

import pytest
import torch
from golden import Recording, golden
from torch import Tensor, nn

from pipeline.records import IGNORED_LABEL, Batch
from snps3_model.config import ObjectiveConfig, reference_objective
from snps3_model.importance import words_importance
from snps3_model.metrics import recall_at
from snps3_model.objective import Pretraining
from snps3_model.snps3 import SNPS3, dual_scores
from snps3_model.step import Draws
from snps3_model.video_swin import SwinGeometry, VideoSwin

SEP, MASK = 102, 103
NAMES = {
    "gvtm_level1": "gvtm_level1",
    "gvtm_level2": "gvtm_level2",
    "lvwm": "lvwm",
    "masked_words_text": "mlm_text",
    "masked_words_cross": "mlm_cross",
    "itm": "itm",
}
"""Our name of a loss, and the recording's."""
PREFIXES = {
    "bert/": "model.bert.",
    "swin/": "model.visual.swin.",
    "img_fc/": "model.video_head.",
    "cross_pooler/": "model.cross_pooler.",
    "similarity_dense/0": "model.similarity.1",
    "similarity_dense/2": "model.similarity.3",
    "mlm_cross/bias": "model.cross_words.bias",
    "mlm_cross/transform.dense": "model.cross_words.dense",
    "mlm_cross/transform.LayerNorm": "model.cross_words.norm",
    "mlm_text/bias": "model.text_words.bias",
    "mlm_text/transform.dense": "model.text_words.dense",
    "mlm_text/transform.LayerNorm": "model.text_words.norm",
    "itm/seq_relationship": "itm_head",
}
"""How the recording names parts, and how we do."""
CASES = golden("pretrain_step").cases("out", ("similarity_level1",))


class Swin(nn.Module):
    """Video Swin as an encoder: the grid, and the pad mask at the cells' corners."""

    def __init__(self, geometry: SwinGeometry) -> None:
        super().__init__()
        self.swin = VideoSwin(geometry, reference=True)

    def forward(self, frames: Tensor, pad_mask: Tensor) -> tuple[Tensor, Tensor]:
        grid = self.swin(frames)
        return grid, pad_mask[..., :: frames.shape[-2] // grid.shape[-2], :: frames.shape[-1] // grid.shape[-1]]


def our_name(recorded: str) -> str:
    prefix = max((prefix for prefix in PREFIXES if recorded.startswith(prefix)), key=len)
    return PREFIXES[prefix] + recorded.removeprefix(prefix)


def network(file: Recording, objective: ObjectiveConfig) -> Pretraining:
    """The recorded weights and queues in our network, in training mode without dropout."""
    sizes = file.settings
    model = SNPS3(file.network_config(), vocabulary_size=sizes["vocab"], pad_id=0, separator_id=SEP)
    geometry = SwinGeometry(
        embed=sizes["embed_dim"],
        depths=tuple(sizes["depths"]),
        heads=tuple(sizes["num_heads"]),
        window=tuple(sizes["window"]),
    )
    model.visual = Swin(geometry)  # pyright: ignore[reportAttributeAccessIssue]
    result = Pretraining(model, objective, mask_id=MASK)
    weights = {our_name(name): weight for name, weight in file.tensors("w").items()}
    wanted = dict(result.named_parameters())
    trained = {name for name in wanted if not name.startswith("queues.") and name != "itm_head"}
    weights = {name: weight for name, weight in weights.items() if result.itm_head or not name.startswith("itm_head")}
    assert weights.keys() == trained
    with torch.no_grad():
        for name, weight in weights.items():
            wanted[name].copy_(weight)
        if result.queues:
            result.queues.encoders.load_state_dict(model.state_dict(), strict=False)
            result.queues.text.copy_(file.tensor("in/queue_t").T)
            result.queues.video.copy_(file.tensor("in/queue_v").T)
    return result


def recorded_batch(file: Recording) -> Batch:
    ids, mask = file.tensor("in/raw_ids"), file.tensor("in/attention_mask").bool()
    pad_mask = file.tensor("in/pad_mask")
    B, T, H, W = pad_mask.shape
    return Batch(
        clip_ids=torch.arange(B),
        weight=torch.ones(B),
        frames=torch.zeros(B, T, H, W, 3, dtype=torch.uint8),
        frame_pad_mask=pad_mask,
        token_ids=ids,
        masked_token_ids=file.tensor("in/masked_ids"),
        token_mask=mask,
        labels=file.tensor("in/labels"),
        word_positions=file.tensor("in/significant_positions"),
    )


def recorded_draws(file: Recording, case: str) -> Draws:
    prefix = f"in/{case}" if f"in/{case}/labels" in file else "in"
    return Draws(
        masked_token_ids=file.tensor(f"{prefix}/masked_ids"),
        labels=file.tensor(f"{prefix}/labels"),
        max_masked=file.tensor(f"{prefix}/labels").shape[1],
        false_ids=file.tensor("in/negative_ids"),
        false_mask=file.tensor("in/negative_mask").bool(),
    )


def published(file: Recording, case: str) -> ObjectiveConfig:
    """Published settings; outside training there is no queue and no temperature."""
    is_training = case.startswith("train")
    return reference_objective(
        temperature=file.settings["temperature"] if is_training else 1.0,
        queue_length=file.settings["queue"] if is_training else None,
        queue_momentum=file.settings["momentum"],
        attentive_share=0.0,
    )


@dataclasses.dataclass
class Found:
    """What our network made of a case."""

    losses: dict[str, Tensor]
    similarities: dict[str, Tensor]
    hits: dict[str, Tensor]
    gradients: dict[str, Tensor]
    weights: dict[str, Tensor]
    queues: dict[str, Tensor]


@torch.no_grad()
def similarities(network: Pretraining, batch: Batch, frames: Tensor) -> dict[str, Tensor]:
    """The three matrices of scores that the recording keeps."""
    model, B = network.model, len(batch.weight)
    video, text = model.encode_video(frames, batch.frame_pad_mask), model.encode_text(batch.token_ids, batch.token_mask)
    words = text.hidden[torch.arange(B)[:, None], batch.word_positions]
    caption = torch.arange(B).repeat_interleave(B)
    tokens = video.tokens.repeat(B, 1, 1)
    ids = batch.masked_token_ids if network.config.matching_text == "masked" else batch.token_ids
    fused = model.fuse(ids[caption], batch.token_mask[caption], tokens)
    return {
        "similarity_level1": dual_scores(text.vector, video.vectors, 1.0),
        "similarity_level2": model.match(fused.pooled).view(B, B),
        "similarity_lvwm": torch.einsum("ikd,jtd->ijkt", words, video.vectors).flatten(2).logsumexp(2),
    }


@torch.no_grad()
def hits(network: Pretraining, batch: Batch, frames: Tensor, draws: Draws) -> dict[str, Tensor]:
    """Whether each masked word and each pair is told right, by the recording's names."""
    model, chosen = network.model, draws.labels != IGNORED_LABEL
    tokens, labels = model.encode_video(frames, batch.frame_pad_mask).tokens, draws.labels[chosen]
    raw = model.encode_text(batch.token_ids, batch.token_mask).hidden[chosen]
    assert draws.false_ids is not None
    assert draws.false_mask is not None
    assert network.itm_head is not None
    true = model.fuse(draws.masked_token_ids, batch.token_mask, tokens)
    false = model.fuse(draws.false_ids, draws.false_mask, tokens)
    pairs = [network.itm_head(true.pooled).argmax(1) == 1, network.itm_head(false.pooled).argmax(1) == 0]
    return {
        "masked_lm_text_encoder_acc": model.text_words(raw, model.word_embeddings).argmax(1) == labels,
        "masked_lm_acc": model.cross_words(true.text_hidden[chosen], model.word_embeddings).argmax(1) == labels,
        "itm_acc": torch.cat(pairs),
    }


@cache
def found(case: str) -> Found:
    """One case; a later training step follows the earlier ones with plain SGD."""
    file = golden("pretrain_step")
    case_network = network(file, published(file, case)).train(case.startswith("train"))
    batch, frames, draws = recorded_batch(file), file.tensor("in/frames"), recorded_draws(file, case)
    last = int(case.removeprefix("train_step")) if case.startswith("train_step") else 1
    for step in range(1, last + 1):
        scores, told = similarities(case_network, batch, frames), hits(case_network, batch, frames, draws)
        case_network.zero_grad(set_to_none=True)
        result = case_network(batch, frames, draws)
        torch.stack(list(result.values())).sum().backward()
        gradients = {name: p.grad.clone() for name, p in case_network.named_parameters() if p.grad is not None}
        with torch.no_grad():
            for name, gradient in gradients.items():
                dict(case_network.named_parameters())[name].sub_(file.settings["sgd_lr"] * gradient)
        if step == last:
            queues = case_network.queues
            return Found(
                losses={name: loss.detach() for name, loss in result.items()},
                similarities=scores,
                hits=told,
                gradients=gradients,
                weights={name: p.detach() for name, p in case_network.named_parameters()},
                queues=dict(queues.named_buffers()) if queues else {},
            )
    raise AssertionError


def tolerance(case: str) -> float:
    return 1e-4 if case in ("train_step2", "train_step3") else 2e-5


def close(found: Tensor, expected: Tensor, *, rtol: float, atol: float) -> None:
    torch.testing.assert_close(found, expected.to(found.dtype), rtol=rtol, atol=atol)


@pytest.mark.parametrize("case", CASES)
def test_golden_step_losses(case: str) -> None:
    file, ours = golden("pretrain_step"), found(case)
    assert ours.losses.keys() == NAMES.keys()
    for name, recorded in NAMES.items():
        close(ours.losses[name], file.tensor(f"out/{case}/loss/{recorded}"), rtol=tolerance(case), atol=tolerance(case))
    total = torch.stack(list(ours.losses.values())).sum()
    close(total, file.tensor(f"out/{case}/loss/total"), rtol=tolerance(case), atol=tolerance(case))


@pytest.mark.parametrize("case", CASES)
def test_golden_step_similarities_and_recalls(case: str) -> None:
    file, ours = golden("pretrain_step"), found(case)
    for name, scores in ours.similarities.items():
        close(scores, file.tensor(f"out/{case}/{name}"), rtol=tolerance(case), atol=tolerance(case))
        recorded = {"similarity_level1": "l1", "similarity_level2": "l2", "similarity_lvwm": "VWM_after"}[name]
        truth = torch.eye(len(scores), dtype=torch.bool).numpy()
        for k in (1, 5, 10):
            expected = float(file[f"out/{case}/metric/{recorded}_r_{k}"])
            assert recall_at(k, scores.numpy(), truth) == pytest.approx(expected, abs=1e-6)
        num_above = (scores > scores.diagonal()[:, None]).sum(1)
        assert num_above.median() + 1 == file.tensor(f"out/{case}/metric/{recorded}_mr")  # the lower middle


@pytest.mark.parametrize("case", CASES)
def test_golden_step_gradients(case: str) -> None:
    file, ours = golden("pretrain_step"), found(case)
    names, norms = file[f"out/{case}/gradient_norm/name"], file.tensor(f"out/{case}/gradient_norm/value")
    assert ours.gradients.keys() == {our_name(str(name)) for name in names}
    for name, norm in zip(names, norms, strict=True):
        close(ours.gradients[our_name(str(name))].double().norm(), norm, rtol=1e-3, atol=1e-5)
    total = torch.stack([gradient.double().norm() for gradient in ours.gradients.values()]).norm()
    close(total, file.tensor(f"out/{case}/gradient_norm/total"), rtol=1e-3, atol=1e-5)
    for name, gradient in file.tensors(f"out/{case}/gradient").items():
        close(ours.gradients[our_name(name)], gradient, rtol=1e-3, atol=5e-5)
    for name, norm in file.tensors(f"out/{case}/ten_gradients").items():
        close(ours.gradients[our_name(name)].double().norm(), norm, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("case", golden("pretrain_step").cases("out", ("ptr_v",)))
def test_golden_step_queues_and_updated_weights(case: str) -> None:
    file, ours = golden("pretrain_step"), found(case)
    for kind, ours_kind in (("v", "video"), ("t", "text")):
        assert ours.queues[f"{ours_kind}_next"] == file.tensor(f"out/{case}/ptr_{kind}")
        columns = file.tensor(f"out/{case}/queue_{kind}_first_columns")
        queue = ours.queues[ours_kind].T[:, : columns.shape[1]]
        close(queue, columns, rtol=tolerance(case), atol=tolerance(case))
    names = file[f"out/{case}/parameter_norm_after_update/name"]
    norms = file.tensor(f"out/{case}/parameter_norm_after_update/value")
    for name, norm in zip(names, norms, strict=True):
        close(ours.weights[our_name(str(name))].double().norm(), norm, rtol=1e-4, atol=1e-5)


def test_golden_step_attention_by_which_masks_are_drawn() -> None:
    file = golden("pretrain_step")
    model, batch = network(file, published(file, "eval")).model, recorded_batch(file)
    text = model.encode_text(batch.token_ids, batch.token_mask)
    importance = words_importance(model.bert, text, batch.token_mask, "all")
    close(importance, file.tensor("out/train_attentive/words_importance"), rtol=2e-5, atol=2e-5)


def test_golden_repaired_terms_are_those_of_the_paper() -> None:
    file = golden("pretrain_step")
    paper = network(file, ObjectiveConfig(itm=1.0, temperature=1.0, frames="middle", pairs="local")).eval()
    batch, frames, draws = recorded_batch(file), file.tensor("in/frames"), recorded_draws(file, "eval")
    result = paper(batch, frames, draws)
    for ours, recorded in (
        ("masked_words_text", "mlm_text_on_masked_ids"),
        ("gvtm_level2", "gvtm_level2_on_raw_ids"),
        ("itm", "itm_on_raw_ids"),
    ):
        close(result[ours].detach(), file.tensor(f"out/repaired/{recorded}"), rtol=2e-5, atol=2e-5)
    model = paper.model
    video = model.encode_video(frames, batch.frame_pad_mask)
    close(video.tokens.detach(), file.tensor("out/repaired/clip_tokens"), rtol=2e-5, atol=2e-5)
    close(video.vectors.detach().flatten(0, 1), file.tensor("out/repaired/clip_vectors"), rtol=2e-5, atol=2e-5)
    text = model.encode_text(batch.token_ids, batch.token_mask)
    close(text.vector.detach(), file.tensor("out/repaired/text_vectors_raw_ids"), rtol=2e-5, atol=2e-5)
    scores = similarities(paper, batch, frames)["similarity_level2"]
    close(scores, file.tensor("out/repaired/similarity_level2_on_raw_ids"), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("case", CASES)
def test_golden_step_accuracies(case: str) -> None:
    file = golden("pretrain_step")
    for name, hits in found(case).hits.items():
        close(hits.float().sum() / (len(hits) + 1e-6), file.tensor(f"out/{case}/metric/{name}"), rtol=1e-5, atol=1e-6)
