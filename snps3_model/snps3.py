"""SNP-S3: one BERT-type network for text and for text with video.

frames ─ encoder ─ pool ─┬─ video_head, L2 ─────────────────────► frame vectors   (dual encoder)
                         │
caption ─ embeddings ─┬──┼─ shared layers ─ text pooler, L2 ────► text vector     (dual encoder)
                      │  │
                      └──┴─ [text ; frames ; SEP] ─ the same layers ─ cross pooler ─► match score, words
"""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from snps3_model.config import ModelConfig
from snps3_model.encoders import make_encoder
from snps3_model.lora import add_low_rank
from snps3_model.precision import in_single_precision
from snps3_model.visual import pool, pool_parts

if TYPE_CHECKING:  # takes two seconds, so only building a network imports it
    from transformers.models.bert.configuration_bert import BertConfig
    from transformers.models.bert.modeling_bert import BertModel

VISUAL_TYPE = 1
"""Token type of frames; captions have type 0."""


@dataclass(frozen=True)
class VideoFeatures:
    """Output of the visual side: `tokens` (one per frame, or per part of a frame) for the cross pass, unit `vectors` of
    the frames for the dual encoder."""

    frames: Float[Tensor, "B T D"]
    """The mean of each frame's grid, before a temporal encoder."""
    tokens: Float[Tensor, "B S D"]
    vectors: Float[Tensor, "B T D"]


@dataclass(frozen=True)
class TextFeatures:
    """Output of the text pass: its hidden states, and the unit `vector` of the caption."""

    layers: tuple[Float[Tensor, "B L D"], ...]
    """The embedded caption, then the output of each layer."""
    vector: Float[Tensor, "B D"]

    def widened(self, num_tokens: int) -> TextFeatures:
        """Return the features zero-padded to `num_tokens` tokens."""
        return TextFeatures(layers=tuple(widened(layer, num_tokens) for layer in self.layers), vector=self.vector)

    @property
    def embedded(self) -> Float[Tensor, "B L D"]:
        """The caption before the first layer."""
        return self.layers[0]

    @property
    def hidden(self) -> Float[Tensor, "B L D"]:
        """A hidden state per token, after the last layer."""
        return self.layers[-1]


@dataclass(frozen=True)
class CrossFeatures:
    """Output of the cross pass: hidden states of the text part and of the visual tokens, and the pooled pair."""

    text_hidden: Float[Tensor, "B L D"]
    frame_hidden: Float[Tensor, "B S D"]
    pooled: Float[Tensor, "B D"]

    def widened(self, num_tokens: int) -> CrossFeatures:
        """Return the features with the text part zero-padded to `num_tokens` tokens."""
        return dataclasses.replace(self, text_hidden=widened(self.text_hidden, num_tokens))


class WordHead(nn.Module):
    """Vocabulary logits of masked words; the projection is tied to the word embeddings (§1.5 of the paper's code)."""

    def __init__(self, hidden: int, vocabulary: int) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden, hidden)
        self.norm = nn.LayerNorm(hidden, eps=1e-6)
        self.bias = nn.Parameter(torch.zeros(vocabulary))

    def forward(self, hidden: Float[Tensor, "M D"], word_embeddings: Float[Tensor, "V D"]) -> Float[Tensor, "M V"]:
        return F.linear(self.norm(F.gelu(self.dense(hidden))), word_embeddings, self.bias)


def bert_config(config: ModelConfig, vocabulary_size: int, pad_id: int) -> BertConfig:
    """Return the description of the shared network for Transformers."""
    from transformers.models.bert.configuration_bert import BertConfig

    return BertConfig(
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


class SNPS3(nn.Module):
    """The shared network, its visual encoder and its heads (paper, Fig. 2). It knows neither losses nor ranks."""

    def __init__(self, config: ModelConfig, *, vocabulary_size: int, pad_id: int, separator_id: int) -> None:
        from transformers.models.bert.modeling_bert import BertModel, BertPooler

        super().__init__()
        self.config, self.separator_id = config, separator_id
        self.visual = make_encoder(config.visual, config.hidden)
        self.video_head = nn.Sequential(
            nn.Linear(config.hidden, config.hidden), nn.ReLU(), nn.Linear(config.hidden, config.hidden)
        )
        bert = bert_config(config, vocabulary_size, pad_id)
        self.bert = BertModel(bert, add_pooling_layer=True)
        self.cross_pooler = BertPooler(bert)
        self.cross_pooler.load_state_dict(self.text_pooler.state_dict())
        self.separate_cross: BertModel | None = None
        if config.cross_network == "separate":
            layers = copy.deepcopy(bert)
            layers.num_hidden_layers = config.num_cross_layers
            self.separate_cross = BertModel(layers, add_pooling_layer=False)
        self.temporal: BertModel | None = None
        self.frame_places: nn.Linear | None = None
        if config.num_temporal_layers:
            layers = copy.deepcopy(bert)
            layers.num_hidden_layers, layers.vocab_size, layers.pad_token_id = config.num_temporal_layers, 1, 0
            self.temporal = BertModel(layers, add_pooling_layer=False)
            self.temporal.embeddings.word_embeddings.requires_grad_(False)  # it reads frames only
            self.frame_places = nn.Linear(config.hidden, config.max_positions)
        self.parts = nn.Embedding(config.grid_side**2, config.hidden) if config.grid_side > 1 else None
        self.similarity = nn.Sequential(
            nn.Dropout(config.dropout),
            nn.Linear(config.hidden, 2 * config.hidden),
            nn.ReLU(),
            nn.Linear(2 * config.hidden, 1),
        )
        if config.lora_rank is not None:
            for network in filter(None, (self.bert, self.separate_cross)):
                add_low_rank(network.encoder, config.lora_rank, "model.lora_rank")
        self.text_words = WordHead(config.hidden, vocabulary_size)
        self.cross_words = WordHead(config.hidden, vocabulary_size)

    @property
    def text_pooler(self) -> nn.Module:
        pooler = self.bert.pooler
        assert pooler is not None, "the shared network is built with its text pooler"
        return pooler

    @property
    def word_embeddings(self) -> Float[Tensor, "V D"]:
        return self.bert.embeddings.word_embeddings.weight

    def encode_video(self, frames: Float[Tensor, "B T 3 H W"], pad_mask: Bool[Tensor, "B T H W"]) -> VideoFeatures:
        """Return the tokens of a clip, and one unit vector per frame."""
        grid, grid_mask = self.visual(frames, pad_mask)
        means, side = pool(grid, grid_mask), self.config.grid_side
        encoded = self.look_over_time(means)
        tokens = encoded if side == 1 else pool_parts(grid, grid_mask, side)
        return VideoFeatures(frames=means, tokens=tokens, vectors=unit(self.video_head(encoded)))

    def look_over_time(self, frames: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """Run the temporal encoder over a clip's frames; return `frames` themselves if there is none."""
        if self.temporal is None:
            return frames
        embedded = self.temporal.embeddings(inputs_embeds=frames)
        return all_layers(self.temporal, embedded, embedded.new_ones(embedded.shape[:2], dtype=torch.bool))[-1]

    @property
    def cross_network(self) -> Any:
        """The network of the cross pass: the shared one, or the separate one of the baseline P3E."""
        return self.bert if self.separate_cross is None else self.separate_cross

    @property
    def cross_word_embeddings(self) -> Float[Tensor, "V D"]:
        """The word vectors that the cross pass reads and predicts."""
        return self.cross_network.embeddings.word_embeddings.weight

    def text_word_logits(self, hidden: Float[Tensor, "M D"]) -> Float[Tensor, "M V"]:
        """Return vocabulary logits of hidden states of the text pass."""
        return self.text_words(hidden, self.word_embeddings)

    def cross_word_logits(self, hidden: Float[Tensor, "M D"]) -> Float[Tensor, "M V"]:
        """Return vocabulary logits of hidden states of the cross pass, whose network may have its own word table."""
        return self.cross_words(hidden, self.cross_word_embeddings)

    def encode_text(self, token_ids: Int64[Tensor, "B L"], token_mask: Bool[Tensor, "B L"]) -> TextFeatures:
        """Run the shared layers over the caption alone. Raise ValueError for an id outside the vocabulary (on a CPU
        only; checking on a GPU would stall the host)."""
        return self.encode_embedded(self.embed_text(token_ids), token_mask)

    def embed_text(self, token_ids: Int64[Tensor, "B L"]) -> Float[Tensor, "B L D"]:
        """Embed the caption for the text pass."""
        refuse_strange_ids(token_ids, len(self.word_embeddings))
        return self.bert.embeddings(input_ids=token_ids)

    def encode_embedded(self, text: Float[Tensor, "B L D"], token_mask: Bool[Tensor, "B L"]) -> TextFeatures:
        """Run the text pass over embedded captions."""
        layers = all_layers(self.bert, text, token_mask)
        return TextFeatures(layers=layers, vector=unit(self.text_pooler(layers[-1])))

    def fuse(
        self,
        token_ids: Int64[Tensor, "B L"],
        token_mask: Bool[Tensor, "B L"],
        frame_tokens: Float[Tensor, "B S D"],
        frame_pad_mask: Bool[Tensor, "B T"] | None = None,
    ) -> CrossFeatures:
        """Run the layers over `[text ; frames ; SEP]`; the visual part has type 1 and frame numbers as positions.

        Nothing attends to frames in `frame_pad_mask`; without a mask, every frame is real.
        """
        text = self.embed_caption(token_ids)
        return self.fuse_embedded(text, token_mask, self.embed_frames(frame_tokens), frame_pad_mask)

    def embed_caption(self, token_ids: Int64[Tensor, "B L"]) -> Float[Tensor, "B L D"]:
        """Embed the text part of the cross pass."""
        refuse_strange_ids(token_ids, len(self.cross_word_embeddings))
        return self.cross_network.embeddings(input_ids=token_ids)

    def embed_frames(self, frame_tokens: Float[Tensor, "B S D"]) -> Float[Tensor, "B S+1 D"]:
        """Embed the visual part of the cross pass with its separator."""
        num_parts = self.config.grid_side**2
        if self.parts is not None:
            places = self.parts.weight.repeat(frame_tokens.shape[1] // num_parts, 1)
            frame_tokens = frame_tokens + places
        separator = self.cross_word_embeddings[self.separator_id].expand(frame_tokens.shape[0], 1, -1)
        inputs = torch.cat([frame_tokens, separator], dim=1)
        kind = torch.full(inputs.shape[:2], VISUAL_TYPE, device=inputs.device)
        frame = torch.arange(inputs.shape[1], device=inputs.device)[None] // num_parts
        return self.cross_network.embeddings(inputs_embeds=inputs, token_type_ids=kind, position_ids=frame)

    def fuse_embedded(
        self,
        text: Float[Tensor, "B L D"],
        token_mask: Bool[Tensor, "B L"],
        visual: Float[Tensor, "B S D"],
        frame_pad_mask: Bool[Tensor, "B T"] | None = None,
    ) -> CrossFeatures:
        """Run the cross pass over embedded parts; `visual` ends with its separator."""
        L = text.shape[1]
        hidden = all_layers(self.cross_network, *self.join(text, token_mask, visual, frame_pad_mask))[-1]
        return CrossFeatures(text_hidden=hidden[:, :L], frame_hidden=hidden[:, L:-1], pooled=self.cross_pooler(hidden))

    def join(
        self,
        text: Float[Tensor, "B L D"],
        token_mask: Bool[Tensor, "B L"],
        visual: Float[Tensor, "B S D"],
        frame_pad_mask: Bool[Tensor, "B T"] | None = None,
    ) -> tuple[Float[Tensor, "B L+S D"], Bool[Tensor, "B L+S"]]:
        """Return the input of the cross pass and its mask."""
        is_visible = token_mask.new_ones(visual.shape[:2])
        if frame_pad_mask is not None:
            is_visible = (~frame_pad_mask).repeat_interleave(self.config.grid_side**2, dim=1)
            is_visible = F.pad(is_visible, (0, 1), value=True)
        return torch.cat([text, visual], dim=1), torch.cat([token_mask, is_visible], dim=1)

    def score(
        self, token_ids: Int64[Tensor, "B L"], token_mask: Bool[Tensor, "B L"], frame_tokens: Float[Tensor, "B S D"]
    ) -> Float[Tensor, " B"]:
        """Return `match` of the cross pass."""
        return self.match(self.pooled(token_ids, token_mask, frame_tokens))

    def pooled(
        self, token_ids: Int64[Tensor, "B L"], token_mask: Bool[Tensor, "B L"], frame_tokens: Float[Tensor, "B S D"]
    ) -> Float[Tensor, "B D"]:
        """Return `fuse(…).pooled`; the last layer is computed for [CLS] only, all that the pooler reads."""
        return self.pooled_embedded(self.embed_caption(token_ids), token_mask, self.embed_frames(frame_tokens))

    def pooled_embedded(
        self, text: Float[Tensor, "B L D"], token_mask: Bool[Tensor, "B L"], visual: Float[Tensor, "B S D"]
    ) -> Float[Tensor, "B D"]:
        """Return `pooled` of embedded parts; `visual` ends with its separator."""
        return self.cross_pooler(first_state(self.cross_network, *self.join(text, token_mask, visual)))

    def score_embedded(
        self, text: Float[Tensor, "B L D"], token_mask: Bool[Tensor, "B L"], visual: Float[Tensor, "B S D"]
    ) -> Float[Tensor, " B"]:
        """Return `score` of embedded parts; `visual` ends with its separator."""
        return self.match(self.pooled_embedded(text, token_mask, visual))

    def match(self, pooled: Float[Tensor, "B D"]) -> Float[Tensor, " B"]:
        """Return the cross encoder's matching score of each fused pair."""
        return self.similarity(pooled).squeeze(-1)


def widened(hidden: Float[Tensor, "B l D"], num_tokens: int) -> Float[Tensor, "B L D"]:
    """Return `hidden` zero-padded to `num_tokens` tokens."""
    return F.pad(hidden, (0, 0, 0, num_tokens - hidden.shape[1]))


def refuse_strange_ids(token_ids: Int64[Tensor, "B L"], vocabulary_size: int) -> None:
    """Raise ValueError that names an id outside the vocabulary; on a CPU only."""
    has_values = type(token_ids) is Tensor and token_ids.device.type == "cpu"  # fake tensors are of a subclass
    if not has_values or torch.compiler.is_compiling() or not token_ids.numel():
        return
    least, most = token_ids.aminmax()
    if least < 0 or most >= vocabulary_size:
        strange = int(least if least < 0 else most)
        raise ValueError(
            f"token id {strange} is outside the network's vocabulary of {vocabulary_size} pieces; encode captions with "
            "the run's own tokenizer.json"
        )


def all_layers(
    network: nn.Module, embedded: Float[Tensor, "B L D"], mask: Bool[Tensor, "B L"]
) -> tuple[Float[Tensor, "B L D"], ...]:
    """Return `embedded` and the output of each layer of `network`; nothing attends to tokens where `mask` is False."""
    # BertModel would add position and type to given embeddings a second time, so its layers are called one by one
    additive = additive_mask(mask, embedded.dtype)
    states = [embedded]
    for layer in layers_of(network):
        states.append(layer(states[-1], additive))
    return tuple(states)


def layers_of(network: Any) -> Any:
    """Return the layers of a BERT, in order."""
    return network.encoder.layer


def first_state(
    network: nn.Module, embedded: Float[Tensor, "B L D"], mask: Bool[Tensor, "B L"]
) -> Float[Tensor, "B 1 D"]:
    """Return the last layer's output for the first token. It attends to all tokens; queries, attention output and
    feed-forward part of the other tokens, five sixths of the layer's work, are skipped."""
    additive, hidden = additive_mask(mask, embedded.dtype), embedded
    *earlier, last = layers_of(network)
    for layer in earlier:
        hidden = layer(hidden, additive)
    attention, first = last.attention, hidden[:, :1]
    inner = attention.self

    def by_head(projected: Tensor) -> Tensor:
        return projected.unflatten(-1, (inner.num_attention_heads, -1)).transpose(1, 2)

    attended = F.scaled_dot_product_attention(
        by_head(inner.query(first)),
        by_head(inner.key(hidden)),
        by_head(inner.value(hidden)),
        attn_mask=additive,
        dropout_p=inner.dropout.p if inner.training else 0.0,
    )
    return last.feed_forward_chunk(attention.output(attended.transpose(1, 2).flatten(2), first))


def additive_mask(mask: Bool[Tensor, "B L"], dtype: torch.dtype) -> Float[Tensor, "B 1 1 L"]:
    """Return 0 where a key may be attended to, the lowest number of `dtype` elsewhere."""
    additive = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
    return additive.masked_fill(~mask, torch.finfo(dtype).min)[:, None, None, :]


@in_single_precision
def unit(vectors: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows D"]:
    """Return `vectors` scaled to length 1."""
    return F.normalize(vectors, dim=-1)


@in_single_precision
def dual_scores(
    text: Float[Tensor, "Q D"], video: Float[Tensor, "C T D"], temperature: float | Float[Tensor, ""]
) -> Float[Tensor, "Q C"]:
    """Return the dual-encoder score of each caption with each clip: log-sum-exp over the clip's frames of cosine /
    temperature."""
    return torch.logsumexp(torch.einsum("qd,ctd->qct", text, video) / temperature, dim=-1)
