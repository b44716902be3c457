"""The shared network, its heads and the losses against numbers recorded from the published code.

Sizes, temperatures and case names are read from each file, so that SNPS3_GOLDEN can name another recording.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from golden import Recording, golden
from torch import Tensor, nn

from pipeline.records import IGNORED_LABEL
from snps3_model import losses
from snps3_model.gather import local_gather
from snps3_model.importance import attention_map, words_importance
from snps3_model.negatives import easy_weights, mined_clips, with_true_clip
from snps3_model.queues import Keys, enqueued, move_towards
from snps3_model.snps3 import SNPS3, WordHead, dual_scores

PAD, SEP, MASK = 0, 102, 103


def close(found: Tensor, expected: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(found.detach(), expected, rtol=tolerance, atol=tolerance)


def network(file: Recording, bert: dict[str, Tensor], cross_pooler: dict[str, Tensor]) -> SNPS3:
    """The network of a recording, with its recorded weights."""
    model = SNPS3(
        file.network_config(),
        vocabulary_size=file.settings["vocab"],
        pad_id=PAD,
        separator_id=file.settings.get("sep_id", SEP),
    )
    missing, unexpected = model.bert.load_state_dict(bert, strict=False)
    assert set(missing) <= {"embeddings.position_ids", "embeddings.token_type_ids"}
    assert not unexpected
    model.cross_pooler.load_state_dict(cross_pooler)
    return model


def recorded_network(file: Recording) -> SNPS3:
    return network(file, file.tensors("w/bert"), file.tensors("w/cross_pooler"))


def test_golden_text_pass() -> None:
    file = golden("text_network")
    model, ids, mask = recorded_network(file), file.tensor("in/input_ids"), file.tensor("in/attention_mask").bool()
    text = model.encode_text(ids, mask)
    close(torch.stack(text.layers), file.tensor("out/text/hidden_states"), 1e-5)
    close(text.hidden, file.tensor("out/text/sequence_output"), 1e-5)
    close(text.vector, file.tensor("out/text/text_vector"), 1e-5)
    close(model.text_pooler(text.hidden), file.tensor("out/text/pooler_tanh"), 1e-5)


def test_golden_attention_and_words_importance() -> None:
    file = golden("text_network")
    model, ids, mask = recorded_network(file), file.tensor("in/input_ids"), file.tensor("in/attention_mask").bool()
    text = model.encode_text(ids, mask)
    for number, layer in enumerate(model.bert.encoder.layer):
        found = attention_map(layer, text.layers[number], mask)
        close(found, file.tensor("out/text/attentions")[number], 1e-5)
    close(words_importance(model.bert, text, mask, "all"), file.tensor("out/text/words_importance"), 1e-5)
    last = file.tensor("out/text/attentions")[-1].mean(1).sum(1)
    close(words_importance(model.bert, text, mask, "last"), last, 1e-5)


@pytest.mark.parametrize("case", golden("text_network").cases("in", ("clip_tokens",)))
def test_golden_cross_pass(case: str) -> None:
    file = golden("text_network")
    model, ids, mask = recorded_network(file), file.tensor("in/input_ids"), file.tensor("in/attention_mask").bool()
    tokens, pad_mask = file.tensor(f"in/{case}/clip_tokens"), file.tensor(f"in/{case}/clip_pad_mask")
    close(model.embed_caption(ids), file.tensor(f"out/{case}/text_embedding"), 1e-5)
    close(model.embed_frames(tokens), file.tensor(f"out/{case}/visual_embedding"), 1e-5)
    fused = model.fuse(ids, mask, tokens, pad_mask)
    close(fused.text_hidden, file.tensor(f"out/{case}/text_part"), 1e-5)
    close(fused.frame_hidden, file.tensor(f"out/{case}/visual_part"), 1e-5)
    close(fused.pooled, file.tensor(f"out/{case}/cross_pooled"), 1e-5)
    if not pad_mask.any():
        torch.testing.assert_close(model.fuse(ids, mask, tokens).pooled, fused.pooled, rtol=0, atol=0)


def test_golden_text_network_at_full_size() -> None:
    file = golden("text_network_full_size")
    weights = file.rebuilt_weights()
    pooler = {name: weights.pop(name) for name in ("dense.weight", "dense.bias")}
    model = network(file, weights, pooler)
    ids, mask = file.tensor("in/input_ids"), file.tensor("in/attention_mask").bool()
    with torch.no_grad():
        text, fused = model.encode_text(ids, mask), model.fuse(ids, mask, file.tensor("in/clip_tokens"))
    close(text.vector, file.tensor("out/text_vector"), 2e-5)
    close(text.hidden[..., ::8], file.tensor("out/sequence_output_every_8th_channel"), 2e-5)
    close(fused.pooled, file.tensor("out/cross_pooled"), 2e-5)
    close(fused.text_hidden[..., ::8], file.tensor("out/cross_text_part_every_8th_channel"), 2e-5)
    close(fused.frame_hidden, file.tensor("out/cross_visual_part"), 2e-5)


def word_head(file: Recording) -> WordHead:
    table = file.tensor("w/word_embeddings.weight")
    head = WordHead(table.shape[1], len(table))
    for part, name in ((head.dense, "transform.dense"), (head.norm, "transform.LayerNorm")):
        part.load_state_dict({k: file.tensor(f"w/{name}.{k}") for k in ("weight", "bias")})
    with torch.no_grad():
        head.bias.copy_(file.tensor("w/decoder.bias"))
    return head


def test_golden_word_head() -> None:
    file = golden("mlm_head")
    head, table = word_head(file), file.tensor("w/word_embeddings.weight").requires_grad_()
    hidden, labels = file.tensor("in/hidden").requires_grad_(), file.tensor("in/labels")
    close(head.norm(F.gelu(head.dense(hidden))), file.tensor("out/transformed"), 1e-5)
    close(head(hidden.flatten(0, 1), table).view(*labels.shape, -1), file.tensor("out/logits"), 1e-5)
    chosen = labels != IGNORED_LABEL
    logits = head(hidden[chosen], table)
    loss = losses.masked_words(logits, labels[chosen], gather=local_gather)
    close(loss, file.tensor("out/loss"), 1e-5)
    hits = (logits.argmax(1) == labels[chosen]).sum()
    close(hits / (chosen.sum() + 1e-6), file.tensor("out/accuracy"), 1e-5)
    loss.backward()
    assert hidden.grad is not None
    assert table.grad is not None
    close(hidden.grad, file.tensor("out/grad_hidden"), 1e-5)
    close(table.grad, file.tensor("out/grad_word_embeddings"), 1e-5)


def test_golden_word_head_of_small_states_shows_its_epsilon() -> None:
    file = golden("mlm_head")
    head, hidden = word_head(file), file.tensor("in/hidden_small")
    nn.init.zeros_(head.dense.bias)
    logits = head(hidden.flatten(0, 1), file.tensor("w/word_embeddings.weight"))
    close(logits.view(*hidden.shape[:2], -1), file.tensor("out/logits_small_without_dense_bias"), 1e-5)


def test_golden_itm_head() -> None:
    file = golden("itm_head")
    pooled, labels = file.tensor("in/pooled").requires_grad_(), file.tensor("in/labels")
    weights = file.tensors("w")
    weight, bias = (next(v for k, v in weights.items() if k.endswith(end)) for end in ("weight", "bias"))
    logits = F.linear(pooled, weight, bias)
    close(logits, file.tensor("out/logits"), 1e-5)
    # the recording has unequal numbers of true and false pairs: each class alone, with the mean of its own
    parts, count = [], len(labels)
    for label, place in ((1, 0), (0, 1)):
        some = logits[labels == label]
        pairs = [torch.tensor([[-1e9, 1e9]]).expand_as(some), torch.tensor([[1e9, -1e9]]).expand_as(some)]
        pairs[place] = some
        parts.append(2 * len(some) * losses.itm(*pairs, torch.ones(len(some)), gather=local_gather))
    loss = torch.stack(parts).sum() / count
    close(loss, file.tensor("out/loss"), 1e-5)
    close((logits.argmax(1) == labels).sum() / (count + 1e-6), file.tensor("out/accuracy"), 1e-5)
    loss.backward()
    assert pooled.grad is not None
    close(pooled.grad, file.tensor("out/grad_pooled"), 1e-5)


@pytest.mark.parametrize("case", golden("mil_nce").cases("in", ("similarity",)))
def test_golden_mil_nce(case: str) -> None:
    file = golden("mil_nce")
    scores = file.tensor(f"in/{case}/similarity").requires_grad_()
    importance = file.tensor(f"in/{case}/weights") if f"in/{case}/weights" in file else None
    loss = losses.mil_nce_of_middle_frames(scores, torch.ones(len(scores)), importance)
    loss.backward()
    assert scores.grad is not None
    close(loss, file.tensor(f"out/{case}/loss"), 1e-5)
    close(scores.grad, file.tensor(f"out/{case}/grad_similarity"), 1e-6)
    if scores.shape[2] == 1:
        close(
            losses.mil_nce(scores[..., 0], torch.ones(len(scores)), importance), file.tensor(f"out/{case}/loss"), 1e-5
        )


def scorer(file: Recording) -> SNPS3:
    """The network of the cross-pair recordings, with its matching head."""
    model = recorded_network(file)
    head = file.tensors("w/similarity_dense")
    model.similarity.load_state_dict({f"{int(k[0]) + 1}{k[1:]}": v for k, v in head.items()})
    return model.eval()


def test_golden_cross_pairs() -> None:
    file = golden("cross_pairs")
    model, ids, mask = scorer(file), file.tensor("in/input_ids"), file.tensor("in/attention_mask").bool()
    tokens, size = file.tensor("in/clip_tokens"), len(file["in/input_ids"])
    caption = torch.arange(size).repeat_interleave(size)
    fused = model.fuse_embedded(
        model.embed_caption(ids)[caption], mask[caption], model.embed_frames(tokens).repeat(size, 1, 1)
    )
    logits = model.match(fused.pooled).view(size, size)
    close(logits, file.tensor("out/logits"), 1e-5)
    close(losses.mil_nce(logits, torch.ones(size)), file.tensor("out/loss"), 1e-5)
    matched = model.match(model.fuse(ids, mask, tokens).pooled)
    close(matched[:, None], file.tensor("out/matched_logits_only"), 1e-5)


@pytest.mark.parametrize("case", golden("hard_mining").cases("out", ("row_weights",)))
def test_golden_hard_mining(case: str) -> None:
    file, weights = golden("hard_mining"), golden("cross_pairs")
    method, _, which = case.rpartition("_")
    ids, mask = file.tensor("in/input_ids"), file.tensor("in/attention_mask").bool()
    b = len(ids)
    own = torch.arange(b) + (b * int(which.removeprefix("rank")) if which.startswith("rank") else 0)
    pool = file.tensor("in/level1")
    rows = pool[own] if which != "single" else pool[:b, :b]
    chosen = mined_clips(rows, own, method)
    assert torch.equal(chosen.sort(1).values, file.tensor(f"out/{case}/topk_sorted"))
    selected = file.tensor(f"out/{case}/selected_recorded_order")
    assert torch.equal(with_true_clip(file.tensor(f"out/{case}/topk_recorded_order"), own), selected)
    model, tokens = scorer(weights), file.tensor("in/pool_clip_tokens")
    caption = torch.arange(b).repeat_interleave(b)
    fused = model.fuse(ids[caption], mask[caption], tokens[selected.flatten()])
    logits = model.match(fused.pooled).view(b, b)
    close(logits, file.tensor(f"out/{case}/logits"), 1e-5)
    importance = easy_weights(rows[torch.arange(b), own], torch.ones(b))
    close(importance, file.tensor(f"out/{case}/row_weights"), 1e-4)
    close(losses.mil_nce(logits, torch.ones(b)), file.tensor(f"out/{case}/loss_unweighted"), 1e-5)
    weighted = losses.mil_nce(logits, torch.ones(b), importance)
    close(weighted, file.tensor(f"out/{case}/loss_weighted"), 1e-5 if method == "nearest" else 1e-4)


@pytest.mark.parametrize("case", golden("lvwm").cases("in", ("word_vectors",)))
def test_golden_lvwm(case: str) -> None:
    file = golden("lvwm")
    words = file.tensor(f"in/{case}/word_vectors").requires_grad_()
    flat = file.tensor(f"in/{case}/clip_vectors")
    video = flat.view(len(words), -1, flat.shape[1]).requires_grad_()
    loss = losses.lvwm(words, video, torch.ones(len(words)), frames="middle", gather=local_gather)
    loss.backward()
    assert words.grad is not None
    assert video.grad is not None
    close(loss, file.tensor(f"out/{case}/loss"), 1e-5)
    close(words.grad, file.tensor(f"out/{case}/grad_word_vectors"), 1e-5)
    close(video.grad.flatten(0, 1), file.tensor(f"out/{case}/grad_clip_vectors"), 1e-5)
    similarity = torch.einsum("ikd,jtd->ijkt", words, video).logsumexp(2)
    close(similarity, file.tensor(f"out/{case}/similarity_ijc"), 1e-5)
    close(similarity.logsumexp(2), file.tensor(f"out/{case}/similarity_lse_over_clips"), 1e-5)


def test_golden_lvwm_word_vectors_are_states_of_the_text_pass() -> None:
    file = golden("lvwm")
    model = network(file, file.tensors("w/bert"), golden("text_network").tensors("w/cross_pooler"))
    mask = file.tensor("in/positions/attention_mask").bool()
    hidden = model.encode_text(file.tensor("out/positions/rebuilt_raw_ids"), mask).hidden
    found = hidden[torch.arange(len(hidden))[:, None], file.tensor("in/gather/positions")]
    close(found, file.tensor("out/gather/word_vectors"), 1e-5)


@pytest.mark.parametrize("case", golden("moco").cases("in", ("q_v",)))
def test_golden_level_1_over_queues(case: str) -> None:
    file = golden("moco")
    text = file.tensor(f"in/{case}/q_t").requires_grad_()
    b, hidden = text.shape
    video = file.tensor(f"in/{case}/q_v").view(b, -1, hidden).requires_grad_()
    keys = Keys(text=file.tensor(f"in/{case}/k_t"), video=file.tensor(f"in/{case}/k_v").view(b, -1, hidden))
    queue_t, queue_v = file.tensor(f"in/{case}/queue_t").T, file.tensor(f"in/{case}/queue_v").T
    temperature, weight = file.settings["temperature"], torch.ones(b)
    loss = losses.gvtm_level1_queued(
        text, video, keys.text, keys.video, queue_t, queue_v, weight, temperature=temperature, gather=local_gather
    )
    loss.backward()
    assert text.grad is not None
    assert video.grad is not None
    close(loss, file.tensor(f"out/{case}/loss"), 1e-5)
    close(text.grad, file.tensor(f"out/{case}/grad_q_t"), 1e-5)
    close(video.grad.flatten(0, 1), file.tensor(f"out/{case}/grad_q_v"), 1e-5)
    close(torch.einsum("qd,ctd->qct", text, video), file.tensor(f"out/{case}/similarity_clip"), 1e-5)
    close(dual_scores(text, video, 1.0), file.tensor(f"out/{case}/similarity_lse"), 1e-5)
    without = losses.gvtm_level1(text, video, weight, temperature=1.0, frames="middle", gather=local_gather)
    close(without, file.tensor(f"out/{case}/loss_without_queue"), 1e-5)
    for kind, queue, new in (("t", queue_t, keys.text), ("v", queue_v, keys.video.flatten(0, 1))):
        after, position = enqueued(queue, torch.tensor(0), new, torch.ones(len(new), dtype=torch.bool), "shifted")
        assert torch.equal(after.T, file.tensor(f"out/{case}/queue_{kind}_after"))
        assert position == file.tensor(f"out/{case}/ptr_{kind}_after")


def test_golden_queue_shifts_back_at_its_end_and_leaves_a_batch_with_a_nan_out() -> None:
    file = golden("moco")
    queue, position = file.tensor("in/queue/initial").T, torch.tensor(0)
    for step, keys in enumerate(file.tensor("in/queue/keys")):
        usable = torch.ones(len(keys), dtype=torch.bool)
        queue, position = enqueued(queue, position, keys, usable, "shifted")
        assert torch.equal(queue.T, file.tensor("out/queue/content_after_each_step")[step])
        assert position == file.tensor("out/queue/pointer_after_each_step")[step]


@pytest.mark.parametrize("which", sorted({name.partition("/")[0] for name in golden("moco").tensors("in/momentum")}))
def test_golden_momentum(which: str) -> None:
    file = golden("moco")
    slow, fast = (file.tensors(f"in/momentum/{which}/{part}") for part in ("key_before", "query"))
    after = file.tensors(f"out/momentum/{which}/key_after_steps_1_2_3")
    assert slow.keys() == fast.keys() == after.keys()
    for step in range(3):
        move_towards(slow, fast, float(which.removeprefix("m")))
        for name, tensor in slow.items():
            close(tensor, after[name][step], 1e-6)
