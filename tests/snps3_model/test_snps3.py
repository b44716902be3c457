"""The shared network against transformers' BERT put together by hand."""

from __future__ import annotations

import dataclasses
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from batches import FIRST_WORD, MAX_TOKENS, PAD, SEP, VOCABULARY, random_batch, tiny_network
from torch import Tensor
from transformers import BertModel
from transformers.models.bert.modeling_bert import BertPooler

from pipeline.stream.transforms import IMAGENET_MEAN, IMAGENET_STD, normalise
from snps3_model.snps3 import SNPS3, dual_scores

MODEL = tiny_network().model
BATCH = random_batch(4)
FRAME_TOKENS = torch.randn(4, 3, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def embedded(bert: BertModel, words: Tensor, positions: list[int], kind: int) -> Tensor:
    """Word vectors (B, L, D) with their position and type, added and normalised by hand."""
    parts = bert.embeddings
    total = words + parts.position_embeddings.weight[positions] + parts.token_type_embeddings.weight[kind]
    return F.layer_norm(total, (16,), parts.LayerNorm.weight, parts.LayerNorm.bias, parts.LayerNorm.eps)


def attended(bert: BertModel, hidden: Tensor, mask: Tensor) -> Tensor:
    """BERT's layers by hand: masked softmax attention and a GELU feed-forward, each added and normalised."""
    for layer in bert.encoder.layer:
        own, B, L = layer.attention.self, *hidden.shape[:2]
        query, key, value = (
            project(hidden).view(B, L, own.num_attention_heads, -1).transpose(1, 2)
            for project in (own.query, own.key, own.value)
        )
        scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
        share = scores.masked_fill(~mask[:, None, None, :], -torch.inf).softmax(-1)
        context = (share @ value).transpose(1, 2).flatten(2)
        out = layer.attention.output
        hidden = out.LayerNorm(out.dense(context) + hidden)
        wide = F.gelu(layer.intermediate.dense(hidden))
        hidden = layer.output.LayerNorm(layer.output.dense(wide) + hidden)
    return hidden


def pooled(pooler: BertPooler, hidden: Tensor) -> Tensor:
    return torch.tanh(hidden[:, 0] @ pooler.dense.weight.T + pooler.dense.bias)


def assert_close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-11)


def test_the_text_pass_is_bert_of_the_caption() -> None:
    L = BATCH.token_ids.shape[1]
    features = MODEL.encode_text(BATCH.token_ids, BATCH.token_mask)
    hidden = attended(
        MODEL.bert, embedded(MODEL.bert, MODEL.word_embeddings[BATCH.token_ids], [*range(L)], 0), BATCH.token_mask
    )
    assert_close(features.hidden[BATCH.token_mask], hidden[BATCH.token_mask])
    assert_close(features.vector, F.normalize(pooled(MODEL.text_pooler, hidden), dim=-1))
    whole = MODEL.bert(input_ids=BATCH.token_ids, attention_mask=BATCH.token_mask.long())
    assert_close(features.hidden[BATCH.token_mask], whole.last_hidden_state[BATCH.token_mask])


def test_the_cross_pass_is_text_then_frames_then_separator_counted_anew() -> None:
    B, L = BATCH.token_ids.shape
    words = MODEL.word_embeddings
    text = embedded(MODEL.bert, words[BATCH.token_ids], [*range(L)], 0)
    frames = torch.cat([FRAME_TOKENS, words[torch.full((B, 1), SEP)]], dim=1)
    visual = embedded(MODEL.bert, frames, [0, 1, 2, 3], 1)
    mask = torch.cat([BATCH.token_mask, torch.ones(B, 4, dtype=torch.bool)], dim=1)
    hidden = attended(MODEL.bert, torch.cat([text, visual], dim=1), mask)
    fused = MODEL.fuse(BATCH.token_ids, BATCH.token_mask, FRAME_TOKENS)
    assert_close(fused.text_hidden[BATCH.token_mask], hidden[:, :L][BATCH.token_mask])
    assert_close(fused.pooled, pooled(MODEL.cross_pooler, hidden))


@pytest.mark.parametrize("cross_network", ["shared", "separate"])
def test_the_score_alone_is_that_of_the_whole_cross_pass(cross_network: Literal["shared", "separate"]) -> None:
    model = SNPS3(
        dataclasses.replace(MODEL.config, cross_network=cross_network, num_cross_layers=1),
        vocabulary_size=VOCABULARY,
        pad_id=PAD,
        separator_id=SEP,
    ).double()
    frames = FRAME_TOKENS.clone().requires_grad_()
    whole = model.match(model.fuse(BATCH.token_ids, BATCH.token_mask, frames).pooled)
    alone = model.score(BATCH.token_ids, BATCH.token_mask, frames)
    torch.testing.assert_close(alone, whole, rtol=1e-12, atol=1e-12)
    weights = [frames, *(weight for weight in model.cross_network.encoder.parameters())]
    ours, wanted = (torch.autograd.grad(score.exp().sum(), weights) for score in (alone, whole))
    torch.testing.assert_close(ours, wanted, rtol=1e-10, atol=1e-12)


def test_parts_of_a_frame_share_its_position_and_have_a_place_of_their_own() -> None:
    network = tiny_network(grid_side=2)
    model, (B, L) = network.model, BATCH.token_ids.shape
    assert model.parts is not None
    tokens = model.encode_video(normalise(BATCH.frames).double(), BATCH.frame_pad_mask).tokens
    assert tokens.shape == (B, 2 * 4, 16)
    words = model.word_embeddings
    placed = tokens + model.parts.weight[[0, 1, 2, 3] * 2]
    frames = torch.cat([placed, words[torch.full((B, 1), SEP)]], dim=1)
    visual = embedded(model.bert, frames, [0, 0, 0, 0, 1, 1, 1, 1, 2], 1)
    text = embedded(model.bert, words[BATCH.token_ids], [*range(L)], 0)
    is_frame = torch.tensor([[True, False]]).expand(B, -1)
    seen = torch.tensor([True] * 4 + [False] * 4 + [True]).expand(B, -1)
    hidden = attended(model.bert, torch.cat([text, visual], dim=1), torch.cat([BATCH.token_mask, seen], dim=1))
    fused = model.fuse(BATCH.token_ids, BATCH.token_mask, tokens, ~is_frame)
    assert_close(fused.pooled, pooled(model.cross_pooler, hidden))
    losses = network(BATCH, normalise(BATCH.frames).double())
    torch.stack(list(losses.values())).sum().backward()
    assert model.parts.weight.grad is not None
    assert (model.parts.weight.grad.abs().sum(1) > 0).all()


def test_the_cross_pass_sees_the_order_of_frames_and_the_dual_score_does_not() -> None:
    turned = FRAME_TOKENS.flip(1)
    fused, other = (MODEL.fuse(BATCH.token_ids, BATCH.token_mask, tokens).pooled for tokens in (FRAME_TOKENS, turned))
    assert (fused - other).abs().max() > 1e-4
    text = MODEL.encode_text(BATCH.token_ids, BATCH.token_mask).vector
    scores, same = (dual_scores(text, F.normalize(tokens, dim=-1), 0.05) for tokens in (FRAME_TOKENS, turned))
    assert_close(scores, same)


def test_text_and_frame_vectors_have_length_1_and_a_vector_per_frame() -> None:
    video = MODEL.encode_video(normalise(BATCH.frames).double(), BATCH.frame_pad_mask)
    assert video.tokens.shape == video.vectors.shape == (4, 2, 16)
    assert_close(video.vectors.norm(dim=-1), torch.ones(4, 2, dtype=torch.float64))
    first = MODEL.video_head[0]
    assert_close(
        video.vectors, F.normalize(MODEL.video_head[2](F.relu(video.tokens @ first.weight.T + first.bias)), dim=-1)
    )


def test_a_dual_score_joins_the_frames_of_a_clip() -> None:
    text, video = FRAME_TOKENS[:2, 0], FRAME_TOKENS
    scores = dual_scores(text, video, 0.5)
    expected = torch.stack([torch.stack([(clip @ one / 0.5).exp().sum().log() for clip in video]) for one in text])
    assert_close(scores, expected)


def test_the_two_poolers_start_equal_and_are_two() -> None:
    for ours, other in zip(MODEL.text_pooler.parameters(), MODEL.cross_pooler.parameters(), strict=True):
        assert torch.equal(ours, other)
        assert ours is not other


@pytest.mark.parametrize("head", ["text_words", "cross_words"])
def test_word_logits_are_tied_to_the_one_table_of_word_vectors(head: str) -> None:
    model = tiny_network().model
    words, hidden = getattr(model, head), FRAME_TOKENS[:, 0]
    inner = words.norm(F.gelu(words.dense(hidden)))
    assert_close(words(hidden, model.word_embeddings), inner @ model.word_embeddings.T + words.bias)
    tables = [name for name, p in model.named_parameters() if p.shape == (VOCABULARY, 16)]
    assert tables == ["bert.embeddings.word_embeddings.weight"]
    words(hidden, model.word_embeddings)[:, FIRST_WORD].sum().backward()
    gradient = model.word_embeddings.grad
    assert gradient is not None
    assert gradient[FIRST_WORD].any()


def test_one_set_of_layers_serves_both_passes() -> None:
    names = {name.split(".")[0] for name, _ in MODEL.named_children()}
    assert names == {"visual", "video_head", "bert", "cross_pooler", "similarity", "text_words", "cross_words"}


@pytest.mark.parametrize("strange", [-1, VOCABULARY])
def test_ids_outside_the_vocabulary_are_refused(strange: int) -> None:
    ids = BATCH.token_ids.clone()
    ids[1, 1] = strange
    message = f"token id {strange} is outside the network's vocabulary of {VOCABULARY} pieces; encode captions with"
    with pytest.raises(ValueError, match=message):
        MODEL.encode_text(ids, BATCH.token_mask)
    with pytest.raises(ValueError, match=message):
        MODEL.fuse(ids, BATCH.token_mask, FRAME_TOKENS)


def test_the_text_pass_alone_does_not_depend_on_its_padding() -> None:
    short = MODEL.encode_text(BATCH.token_ids, BATCH.token_mask)
    more = (0, MAX_TOKENS + 4 - BATCH.token_ids.shape[1])
    long = MODEL.encode_text(F.pad(BATCH.token_ids, more), F.pad(BATCH.token_mask, more))
    assert_close(long.vector, short.vector)


def test_normalising_is_imagenets() -> None:
    frames = normalise(BATCH.frames)
    pixel = BATCH.frames[1, 0, 2, 3]
    for channel in range(3):
        expected = (pixel[channel].item() / 255 - IMAGENET_MEAN[channel]) / IMAGENET_STD[channel]
        assert frames[1, 0, channel, 2, 3].item() == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_the_same_seed_gives_the_same_network_and_another_another() -> None:
    first, again, other = (tiny_network(seed=seed).model for seed in (0, 0, 1))
    assert isinstance(first, SNPS3)
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])
    assert not torch.equal(first.word_embeddings, other.word_embeddings)
