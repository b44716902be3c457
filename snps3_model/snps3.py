"""SNP-S3: one BERT-type network for text and for text with video.

frames ─ encoder ─ pool ─┬─ video_head, L2 ─────────────────────► frame vectors   (dual encoder)
                         │
caption ─ embeddings ─┬──┼─ shared layers ─ text pooler, L2 ────► text vector     (dual encoder)
                      │  │
                      └──┴─ [text ; frames ; SEP] ─ the same layers ─ cross pooler ─► match score, words
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from transformers import BertConfig, BertModel
from transformers.models.bert.modeling_bert import BertPooler

from snps3_model.config import ModelConfig
from snps3_model.encoders import make_encoder
from snps3_model.visual import pool

TEXT_TYPE, VISUAL_TYPE = 0, 1


@dataclass(frozen=True)
class VideoFeatures:
    """What the visual side gives: `tokens` go to the cross pass, unit `vectors` to the dual encoder."""

    tokens: Float[Tensor, "B T D"]
    vectors: Float[Tensor, "B T D"]


@dataclass(frozen=True)
class TextFeatures:
    """What the text pass gives: a hidden state per token, and the unit `vector` of the caption."""

    hidden: Float[Tensor, "B L D"]
    vector: Float[Tensor, "B D"]


@dataclass(frozen=True)
class CrossFeatures:
    """What the cross pass gives: hidden states of the text part, and the pooled pair."""

    text_hidden: Float[Tensor, "B L D"]
    pooled: Float[Tensor, "B D"]


class WordHead(nn.Module):
    """Vocabulary logits of masked words; the projection is tied to the word embeddings (§1.5 of the paper's code)."""

    def __init__(self, hidden: int, vocabulary: int) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden, hidden)
        self.norm = nn.LayerNorm(hidden, eps=1e-6)
        self.bias = nn.Parameter(torch.zeros(vocabulary))

    def forward(self, hidden: Float[Tensor, "M D"], word_embeddings: Float[Tensor, "V D"]) -> Float[Tensor, "M V"]:
        return F.linear(self.norm(F.gelu(self.dense(hidden))), word_embeddings, self.bias)


class SNPS3(nn.Module):
    """The shared network, its visual encoder and its heads (paper, Fig. 2). Knows nothing of losses or ranks."""

    def __init__(self, config: ModelConfig, *, vocabulary_size: int, pad_id: int, separator_id: int) -> None:
        super().__init__()
        if lacking := not_built(config):
            raise ValueError("; ".join(lacking))
        self.config, self.separator_id = config, separator_id
        self.visual = make_encoder(config.visual, config.hidden)
        self.video_head = nn.Sequential(
            nn.Linear(config.hidden, config.hidden), nn.ReLU(), nn.Linear(config.hidden, config.hidden)
        )
        bert = BertConfig(
            vocab_size=vocabulary_size,
            pad_token_id=pad_id,
            hidden_size=config.hidden,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            intermediate_size=config.feed_forward,
            max_position_embeddings=config.max_positions,
            hidden_dropout_prob=config.dropout,
            attention_probs_dropout_prob=config.dropout,
            initializer_range=config.initial_std,
            attn_implementation="sdpa",  # pyright: ignore[reportCallIssue]
        )
        self.bert = BertModel(bert, add_pooling_layer=True)
        self.cross_pooler = BertPooler(bert)
        self.cross_pooler.load_state_dict(self.text_pooler.state_dict())
        self.similarity = nn.Sequential(
            nn.Dropout(config.dropout),
            nn.Linear(config.hidden, 2 * config.hidden),
            nn.ReLU(),
            nn.Linear(2 * config.hidden, 1),
        )
        self.text_words = WordHead(config.hidden, vocabulary_size)
        self.cross_words = WordHead(config.hidden, vocabulary_size)

    @property
    def text_pooler(self) -> BertPooler:
        pooler = self.bert.pooler
        assert pooler is not None, "the shared network is built with its text pooler"
        return pooler

    @property
    def word_embeddings(self) -> Float[Tensor, "V D"]:
        return self.bert.embeddings.word_embeddings.weight

    def encode_video(self, frames: Float[Tensor, "B T 3 H W"], pad_mask: Bool[Tensor, "B T H W"]) -> VideoFeatures:
        """One token and one unit vector per frame."""
        tokens = pool(*self.visual(frames, pad_mask))
        return VideoFeatures(tokens=tokens, vectors=F.normalize(self.video_head(tokens), dim=-1))

    def encode_text(self, token_ids: Int64[Tensor, "B L"], token_mask: Bool[Tensor, "B L"]) -> TextFeatures:
        """The shared layers over the caption alone."""
        hidden = self.shared_layers(self.bert.embeddings(input_ids=token_ids), token_mask)
        return TextFeatures(hidden=hidden, vector=F.normalize(self.text_pooler(hidden), dim=-1))

    def fuse(
        self,
        token_ids: Int64[Tensor, "B L"],
        token_mask: Bool[Tensor, "B L"],
        frame_tokens: Float[Tensor, "B T D"],
    ) -> CrossFeatures:
        """The same layers over `[text ; frames ; SEP]`; positions of the visual part restart at 0, type 1."""
        B, L = token_ids.shape
        text = self.bert.embeddings(input_ids=token_ids)
        separator = self.word_embeddings[self.separator_id].expand(B, 1, -1)
        visual_inputs = torch.cat([frame_tokens, separator], dim=1)
        visual_type = torch.full(visual_inputs.shape[:2], VISUAL_TYPE, device=token_ids.device)
        visual = self.bert.embeddings(inputs_embeds=visual_inputs, token_type_ids=visual_type)
        mask = torch.cat([token_mask, token_mask.new_ones(visual.shape[:2])], dim=1)
        hidden = self.shared_layers(torch.cat([text, visual], dim=1), mask)
        return CrossFeatures(text_hidden=hidden[:, :L], pooled=self.cross_pooler(hidden))

    def match(self, pooled: Float[Tensor, "B D"]) -> Float[Tensor, " B"]:
        """The cross encoder's matching score of each fused pair."""
        return self.similarity(pooled).squeeze(-1)

    def shared_layers(self, embedded: Float[Tensor, "B L D"], mask: Bool[Tensor, "B L"]) -> Float[Tensor, "B L D"]:
        lowest = torch.finfo(embedded.dtype).min
        additive = torch.zeros(mask.shape, dtype=embedded.dtype, device=mask.device).masked_fill(~mask, lowest)
        output = self.bert.encoder(embedded, attention_mask=additive[:, None, None, :])
        return output.last_hidden_state


def not_built(config: ModelConfig) -> list[str]:
    """What `config` asks for and this network cannot give yet, a sentence each."""
    lacking = []
    pretrained = {
        "model.pretrained_text": config.pretrained_text,
        "model.initial_weights": config.initial_weights,
    }
    for name, path in pretrained.items():
        if path is not None:
            lacking.append(
                f"{name}={path} cannot be loaded yet; today every run starts from random weights: set {name} to None"
            )
    return lacking


def dual_scores(text: Float[Tensor, "Q D"], video: Float[Tensor, "C T D"], temperature: float) -> Float[Tensor, "Q C"]:
    """Dual-encoder score of each caption with each clip: log-sum-exp over the clip's frames of cosine / temperature."""
    return torch.logsumexp(torch.einsum("qd,ctd->qct", text, video) / temperature, dim=-1)
