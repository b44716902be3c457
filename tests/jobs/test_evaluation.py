"""Two-stage retrieval against exhaustive retrieval, and the texts that ask."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cluster.world import World
from jobs.benchmarks.retrieval_memory import drawn_scores
from jobs.corpus.planning import Outline, Plan
from jobs.corpus.preparation import MARKER, PrepareResult, mark_done
from jobs.evaluation import cards
from jobs.evaluation.cards import Protocol, find_differences, read_card, refuse_other, write_card
from jobs.evaluation.leaderboard import rows
from jobs.evaluation.scoring import (
    EvaluateConfig,
    protocol_of,
    refuse_overlap,
    refuse_too_many_rejected,
    relocate,
    run_manifest,
    table,
)
from jobs.run.config import TaskConfig
from jobs.run.datasets import published_test_set
from jobs.run.presets import tiny
from jobs.tasks import retrieval
from jobs.tasks.captions import queries_of
from jobs.tasks.retrieval import (
    RetrievalOptions,
    Scored,
    dual_softmax,
    first_of_both,
    highest,
    reranked,
    retrieval_results,
)
from pipeline.corpus.caption_readers import Annotation
from pipeline.corpus.manifest import clip_id, make_manifest, read_manifest, write_manifest
from pipeline.corpus.sources import open_source
from pipeline.records import Kind
from pipeline.stream.transforms import normalise
from snps3_model import metrics
from snps3_model.config import ObjectiveConfig
from snps3_model.gather import local_gather
from snps3_model.objective import Pretraining
from snps3_model.snps3 import SNPS3
from tests.batches import PAD, SEP, VOCABULARY, random_batch, tiny_network
from tests.cards import card

NUM_TEXTS, NUM_CLIPS = 9, 7
ALONE = World(rank=0, size=1, device=torch.device("cpu"))


def scored(seed: int = 0) -> Scored:
    rng = np.random.default_rng(seed)
    dual, cross = rng.normal(size=(2, NUM_TEXTS, NUM_CLIPS)).astype(np.float32)
    return Scored(clip_ids=np.arange(NUM_CLIPS), dual=dual, cross=cross)


def test_all_clips_ordered_anew_is_exhaustive_scoring() -> None:
    np.testing.assert_allclose(reranked(scored(), NUM_CLIPS), scored().fused)
    np.testing.assert_array_equal(reranked(scored(), NUM_CLIPS, "cross"), scored().cross)


@pytest.mark.parametrize("k", [1, 3, 6])
@pytest.mark.parametrize("fusion", ["sum", "cross"])
def test_the_first_k_are_ordered_anew_and_the_others_stay_behind_in_their_order(k: int, fusion: Any) -> None:
    both = scored()
    before, after = np.argsort(-both.dual, axis=1), np.argsort(-reranked(both, k, fusion), axis=1)
    np.testing.assert_array_equal(np.sort(before[:, :k]), np.sort(after[:, :k]))
    np.testing.assert_array_equal(before[:, k:], after[:, k:])
    if fusion == "cross":
        kept = np.take_along_axis(both.cross, after[:, :k], axis=1)
        assert (np.diff(kept, axis=1) <= 0).all()


def test_clips_that_the_cross_encoder_was_not_asked_about_cannot_be_ordered_by_it() -> None:
    both = scored()
    cross = np.where(highest(both.dual, 2), both.cross, np.nan)
    asked = dataclasses.replace(both, cross=cross)
    np.testing.assert_array_equal(reranked(asked, 2), reranked(both, 2))
    with pytest.raises(ValueError, match="not asked"):
        reranked(asked, 3)


def test_highest_takes_the_first_of_equal_ones() -> None:
    assert highest(np.array([[1.0, 2.0, 2.0, 2.0]]), 2).tolist() == [[False, True, True, False]]


def test_pairs_that_are_asked_for_have_the_scores_of_all_pairs() -> None:
    network, batch = tiny_network(dtype=torch.float32).eval(), random_batch(6, empty=(3,))
    gallery = retrieval.encode_clips(network.model, [batch], local_gather)
    assert gallery.clip_ids.tolist() == [int(batch.clip_ids[row]) for row in (0, 1, 2, 4, 5)]
    queries = retrieval.encode_texts(network.model, batch.token_ids, batch.token_mask, ALONE)

    def found(choose: Any) -> Scored:
        return retrieval.score(network.model, queries, gallery, ALONE, temperature=0.05, choose=choose)

    every, some = found(None), found(lambda dual: highest(dual, 2))
    chosen = highest(every.dual, 2)
    np.testing.assert_allclose(some.cross[chosen], every.cross[chosen], rtol=1e-4, atol=1e-5)
    assert np.isnan(some.cross[~chosen]).all()
    with torch.no_grad():
        pairs = [
            network.model.score(
                batch.token_ids[q : q + 1], batch.token_mask[q : q + 1], gallery.frame_tokens[c : c + 1]
            )
            for q in range(6)
            for c in range(5)
        ]
    np.testing.assert_allclose(every.cross.ravel(), torch.cat(pairs).numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cross_network", ["shared", "separate"])
def test_evaluation_predicts_masked_words_as_the_loss_does(cross_network: Any) -> None:
    config = dataclasses.replace(tiny_network().model.config, cross_network=cross_network)
    torch.manual_seed(0)
    model = SNPS3(config, vocabulary_size=VOCABULARY, pad_id=PAD, separator_id=SEP)
    only = ObjectiveConfig(gvtm_level1=0.0, gvtm_level2=0.0, masked_words_text=0.0, lvwm=0.0)
    network, batch = Pretraining(model, only).eval(), random_batch(6)
    tokens = model.encode_video(normalise(batch.frames), batch.frame_pad_mask).tokens.detach()
    filled = retrieval.fill_masked_words(model, batch, tokens, num_guesses=VOCABULARY)
    blanks = [(true_id, guesses) for row in filled for _, true_id, guesses in row]
    entropy = -np.mean([np.log(dict(guesses)[true_id]) for true_id, guesses in blanks])
    loss = network(batch, normalise(batch.frames))["masked_words_cross"].item()
    assert entropy == pytest.approx(loss, rel=1e-5)
    first = np.mean([guesses[0][0] == true_id for true_id, guesses in blanks])
    counts = [retrieval.masked_words_right(model, batch, tokens)]
    assert retrieval.share_right(counts, local_gather) == pytest.approx(first)


def test_scores_in_bfloat16_are_near_those_in_single_precision() -> None:
    network, batch = tiny_network(dtype=torch.float32).eval(), random_batch(6)
    found = []
    for is_bf16 in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=is_bf16):
            gallery = retrieval.encode_clips(network.model, [batch], local_gather)
            queries = retrieval.encode_texts(network.model, batch.token_ids, batch.token_mask, ALONE)
            found.append(retrieval.score(network.model, queries, gallery, ALONE, temperature=1.0))
            assert retrieval.fill_masked_words(network.model, batch, gallery.frame_tokens)
    exact, rounded = found
    assert rounded.cross.dtype == rounded.dual.dtype == np.float32
    np.testing.assert_allclose(rounded.dual, exact.dual, atol=0.05)
    np.testing.assert_allclose(rounded.cross, exact.cross, atol=0.05 * np.ptp(exact.cross) + 0.02)


class Clips:
    """A split of three clips, of which two have a caption in common."""

    def rows(self) -> Any:
        import pyarrow as pa

        return pa.table({"clip_id": [5, 6, 7], "captions": [["a dog", "it runs"], ["a cat"], ["a dog", "a cat"]]})


@pytest.mark.parametrize(
    ("queries", "texts"),
    [
        ("first", ["a dog", "a cat", "a dog"]),
        ("each", ["a dog", "it runs", "a cat", "a dog", "a cat"]),
        ("paragraph", ["a dog it runs", "a cat", "a dog a cat"]),
    ],
)
def test_a_text_is_true_of_every_clip_that_has_it(queries: str, texts: list[str]) -> None:
    found, relevant, owners = queries_of(Clips(), np.array([5, 6, 7]), queries)  # type: ignore[arg-type]
    assert found == texts
    assert owners.tolist() == ([0, 0, 1, 2, 2] if queries == "each" else [0, 1, 2])
    own = {
        text: {column for q, column in zip(*np.nonzero(relevant), strict=True) if found[q] == text} for text in found
    }
    if queries == "each":
        assert own == {"a dog": {0, 2}, "it runs": {0}, "a cat": {1, 2}}
    if queries == "first":
        assert own == {"a dog": {0, 2}, "a cat": {1, 2}}


def test_a_clip_that_could_not_be_decoded_shifts_no_column() -> None:
    found, relevant, _ = queries_of(Clips(), np.array([5, 7]), "first")  # type: ignore[arg-type]
    assert found == ["a dog", "a dog"]
    assert relevant.all()


def test_scores_of_two_stages_and_of_the_prior_stand_in_columns_of_their_own() -> None:
    both = Scored(clip_ids=np.arange(6), dual=np.eye(6), cross=np.eye(6))
    relevant = np.eye(6, dtype=bool)
    plain = retrieval_results(both, relevant, "test", RetrievalOptions())
    assert plain["test/t2v/r1"] == plain["test/v2t/cross_r1"] == 1.0
    assert not any("softmax" in name for name in plain)
    two = retrieval_results(both, relevant, "test", RetrievalOptions(rerank=2, prior="dual_softmax"))
    assert "test/t2v/cross_r1" not in two
    assert {name for name in two if name.endswith("t2v/dual_softmax_r1")} == {"test/t2v/dual_softmax_r1"}


@pytest.mark.parametrize("k", [1, 3, 12])
def test_matrices_are_worked_on_in_parts_as_in_one(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    dual = rng.integers(0, 4, (40, 13)).astype(np.float32)  # with ties
    both = Scored(clip_ids=np.arange(13), dual=dual, cross=rng.normal(size=dual.shape).astype(np.float32))
    relevant = rng.random(dual.shape) < 0.2
    relevant[np.arange(40), np.arange(40) % 13] = True
    whole = first_of_both(dual, k), retrieval_results(both, relevant, "test", RetrievalOptions(rerank=k))
    for matrix in (dual, dual.T):
        order = np.argsort(-matrix, axis=1, kind="stable")[:, :k]
        assert all(set(np.flatnonzero(row)) == {*first} for row, first in zip(highest(matrix, k), order, strict=True))
    monkeypatch.setattr(retrieval, "ROWS_AT_ONCE", 7)
    monkeypatch.setattr(metrics, "QUERIES_AT_ONCE", 7)
    np.testing.assert_array_equal(first_of_both(dual, k), whole[0])
    assert retrieval_results(both, relevant, "test", RetrievalOptions(rerank=k)) == whole[1]


def test_texts_are_scored_in_parts_as_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = drawn_scores(30, k=5, num_frames=2, width=8)
    monkeypatch.setattr(retrieval, "ROWS_AT_ONCE", 7)
    parts = drawn_scores(30, k=5, num_frames=2, width=8)
    np.testing.assert_allclose(parts.dual, whole.dual, atol=1e-5)
    np.testing.assert_array_equal(parts.cross, whole.cross)
    assert np.isfinite(parts.cross).sum(axis=1).min() >= 5


@pytest.mark.parametrize("k", [1, 3, 9])
def test_a_run_that_asks_about_the_first_pairs_only_measures_what_it_would_have_measured_of_them(k: int) -> None:
    both, relevant = scored(), np.eye(NUM_TEXTS, NUM_CLIPS, dtype=bool)
    relevant[NUM_CLIPS:, 0] = True
    asked = dataclasses.replace(both, cross=np.where(first_of_both(both.dual, k), both.cross, np.nan))
    found = retrieval_results(asked, relevant, "validation", RetrievalOptions(rerank=k))
    assert found == retrieval_results(both, relevant, "validation", RetrievalOptions(rerank=k))
    whole = retrieval_results(both, relevant, "validation", RetrievalOptions())
    assert {name: value for name, value in found.items() if "dual" in name}.items() <= whole.items()
    if k == NUM_TEXTS:  # all of both
        assert found.items() <= whole.items()
    assert not any("cross" in name for name in found)
    assert set(retrieval.selectable_metrics("validation", k)) < set(retrieval.selectable_metrics("validation"))


def test_captions_of_one_clip_are_one_unit_of_the_interval() -> None:
    # every clip asks three times, and is found each time or never
    dual, relevant = np.repeat(np.eye(40), 3, axis=0), np.repeat(np.eye(40, dtype=bool), 3, axis=0)
    dual[: 3 * 20] = np.roll(dual[: 3 * 20], 1, axis=1)
    both, owners = Scored(clip_ids=np.arange(40), dual=dual, cross=dual), np.repeat(np.arange(40), 3)
    options = RetrievalOptions()
    alone, together = (retrieval_results(both, relevant, "test", options, some) for some in (None, owners))
    assert alone["test/t2v/r1"] == together["test/t2v/r1"] == 0.5

    def width(found: dict[str, float]) -> float:
        return found["test/t2v/r1_high"] - found["test/t2v/r1_low"]

    assert width(together) == pytest.approx(3**0.5 * width(alone), rel=0.15)


def test_a_run_is_scored_with_the_file_of_the_split_that_it_is_scored_on() -> None:
    task = TaskConfig(kind="question_answering", train="a", validation="b", test="c", temporal="d")
    run = dataclasses.replace(tiny(), task=task)
    for split, name in (("val", "b"), ("test", "c"), ("temporal", "d")):
        asked = protocol_of(EvaluateConfig(run="x", split=split), run.data, run.task, "x")
        assert asked.questions
        assert asked.questions.endswith(f"/{name}")
    with pytest.raises(ValueError, match="on the split train needs --questions"):
        protocol_of(EvaluateConfig(run="x", split="train"), run.data, run.task, "x")
    with pytest.raises(ValueError, match="--rerank 5 has no effect with --task question_answering"):
        protocol_of(EvaluateConfig(run="x", rerank=5), run.data, run.task, "x")


@pytest.mark.parametrize("name", ["rerank", "num_frames", "max_clips"])
def test_numbers_below_one_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="must be at least 1, got 0; leave it out for all"):
        EvaluateConfig(**{name: 0})  # type: ignore[arg-type]


def test_the_prior_prefers_clips_that_prefer_the_query() -> None:
    # clip 0 is everybody's first; with the prior it goes to the text that it fits best
    scores = np.array([[3.0, 1.0], [2.5, 2.4]])
    assert np.argmax(scores, axis=1).tolist() == [0, 0]
    assert np.argmax(dual_softmax(scores), axis=1).tolist() == [0, 1]


def test_a_card_comes_back_as_it_was_written(tmp_path: Path) -> None:
    path = str(tmp_path / "card.json")
    write_card(card(), path)
    assert read_card(path) == card()
    Path(path).write_text('{"protocol": {"task": "retrieval"}}')
    with pytest.raises(ValueError, match="no protocol card"):
        read_card(path)


def test_the_card_of_other_weights_is_refused_with_what_differs() -> None:
    refuse_other(card(), {"weights": "w", "manifest_hash": "h"})
    with pytest.raises(ValueError, match="weights is v, the card has w"):
        refuse_other(card(), {"weights": "v", "manifest_hash": "h"})


def test_a_card_is_repeated_where_its_files_lie_now_and_as_it_says(tmp_path: Path) -> None:
    asked = Protocol(task="question_answering", run="/there/x", manifest="/there/m", split="test", questions="/there/q")
    path = tmp_path / "q.jsonl"
    path.write_text("a question")
    wish = EvaluateConfig(card="card.json", run="/here/x", questions=str(path))
    moved = relocate(wish, asked)
    assert moved == dataclasses.replace(asked, run="/here/x", questions=str(path))
    own = card(protocol=asked, questions_hash=cards.hash_of_questions(moved))
    refuse_other(own, {"questions_hash": cards.hash_of_questions(moved)})
    path.write_text("another answer")
    with pytest.raises(ValueError, match="questions_hash is"):
        refuse_other(own, {"questions_hash": cards.hash_of_questions(moved)})
    refuse_other(card(protocol=asked), {"questions_hash": cards.hash_of_questions(moved)})  # of before there was one
    with pytest.raises(ValueError, match="--rerank 3 conflicts with --card"):
        relocate(dataclasses.replace(wish, rerank=3), asked)
    with pytest.raises(ValueError, match="is not asked by the card"):
        relocate(wish, card().protocol)


def manifest_of(folder: Path, name: str, **clips: str) -> str:
    """Of clips in splits by the name of each, which is its content too."""
    rows = [
        {
            "clip_id": clip_id(name, clip),
            "uri": f"/{name}/{clip}.mp4",
            "captions": ["a dog"],
            "kind": "video",
            "split": split,
            "width": 8,
            "height": 8,
            "num_frames": 4,
            "bytes": 1,
            "checksum": clip,
        }
        for clip, split in clips.items()
    ]
    write_manifest(make_manifest(name, f"/{name}", rows), path := str(folder / f"{name}.parquet"))
    return path


def test_clips_that_prepare_could_not_use_are_missing_from_retrieval(tmp_path: Path) -> None:
    path = manifest_of(tmp_path, "msrvtt", a="test", b="test")
    assert cards.num_missing(path, "test") == 0  # nothing tells
    found = read_manifest(path)
    done = PrepareResult(
        manifest_path=path,
        ledger_path="",
        manifest_hash=found.hash,
        num_clips=found.splits,
        num_rejected={},
        seconds=1.0,
        num_annotated={"test": 5},
    )
    mark_done(str(tmp_path / MARKER), "", done)
    assert cards.num_missing(path, "test") == 3
    mark_done(str(tmp_path / MARKER), "", dataclasses.replace(done, manifest_hash="another"))
    assert cards.num_missing(path, "test") == 0


def test_the_list_of_a_split_has_a_hash_that_does_not_depend_on_its_order() -> None:
    def clip(path: str, split: str, start: float | None = None) -> Annotation:
        return Annotation(relative_path=path, captions=("x",), kind=Kind.VIDEO, split=split, start_seconds=start)

    clips = [clip("b.mp4", "test"), clip("a.mp4", "train"), clip("a.mp4", "test", 1.0)]
    hashes = []
    for order in (clips, clips[::-1], [*clips[:2], clip("a.mp4", "test")]):
        outline = Outline()
        outline.add(Plan(clips=tuple(order), source=open_source("/v", files=[]), wrong=()))
        hashes.append(outline.list_hashes)
    assert hashes[0] == hashes[1]
    assert hashes[0]["train"] == hashes[2]["train"] != hashes[0]["test"] != hashes[2]["test"]


def test_a_score_over_another_number_of_clips_than_published_ones_says_so(tmp_path: Path) -> None:
    path = manifest_of(tmp_path, "msrvtt", a="test", b="test")
    asked = Protocol(task="retrieval", run="runs/x", manifest=path, split="test", queries="each", prior="dual_softmax")
    lines = table(card(protocol=asked)).splitlines()
    assert "2 of 1,000 videos: another test set than theirs" in lines
    assert "asked by: each; re-ranked: all, by sum; prior: dual_softmax" in lines
    answered = dataclasses.replace(asked, task="multiple_choice", questions="q")
    assert "re-ranked" not in table(card(protocol=answered))


def test_scores_with_a_prior_are_in_a_row_of_their_own() -> None:
    scores = {
        f"test/t2v/{prior}r1{end}": value + more
        for prior, value in (("", 0.4), ("dual_softmax_", 0.5))
        for end, more in (("", 0.0), ("_low", -0.1), ("_high", 0.1))
    }
    protocol = Protocol(task="retrieval", run="runs/x", manifest="m", split="test", prior="dual_softmax")
    plain, prior, *_ = rows(
        published_test_set("msrvtt", "retrieval", 7000), [("mine", card(protocol=protocol, scores=scores))]
    )[2:]
    assert plain.startswith("| **mine** | 40.0 [30.0, 50.0] | not run |")
    assert prior.startswith("| **mine**, **all queries as a prior** (dual softmax) | 50.0 [40.0, 60.0] | not run |")
    assert not any(
        "prior" in line for line in rows(published_test_set("msrvtt", "retrieval", 7000), [("mine", card())])
    )
    answered = card(protocol=Protocol(task="question_answering", run="runs/x", manifest="m", split="test"))
    assert (
        sum(
            "**mine**" in line
            for line in rows(published_test_set("MSR-VTT_full", "question_answering", 6513), [("mine", answered)])
        )
        == 1
    )


def test_a_score_is_repeated_or_said_to_be_inside_or_outside_its_interval() -> None:
    assert find_differences(card(), card().scores) == []
    (inside,) = find_differences(card(), {"test/t2v/r1": 0.55})
    (outside,) = find_differences(card(), {"test/t2v/r1": 0.7})
    assert ", inside [" in inside
    assert ", outside [" in outside


def test_a_share_that_could_not_be_decoded_is_of_what_was_asked_for() -> None:
    protocol = Protocol(task="question_answering", run="runs/x", manifest="m", split="test")
    ten_each = card(protocol=protocol, num_videos=98, num_queries=980, num_undecoded=20)  # questions about two clips
    refuse_too_many_rejected(ten_each, "rejected.parquet", 0.05)
    with pytest.raises(ValueError, match="20 clips or questions could not be scored"):
        refuse_too_many_rejected(ten_each, "rejected.parquet", 0.01)
    refuse_too_many_rejected(card(num_videos=95, num_queries=950, num_undecoded=5), "rejected.parquet", 0.05)
    with pytest.raises(ValueError, match="a different test set"):
        refuse_too_many_rejected(card(num_videos=94, num_queries=940, num_undecoded=6), "rejected.parquet", 0.05)


def test_a_hash_of_ids_depends_on_their_order() -> None:
    assert cards.hash_of_ids([1, 2]) != cards.hash_of_ids([2, 1])


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"task": "question_answering"}, "has no answers"),
        ({"task": "multiple_choice"}, "needs --questions"),
        ({"questions": "x.jsonl"}, "choose a task"),
        ({"rerank": 0}, "at least 1"),
    ],
)
def test_what_cannot_be_scored_is_refused(asked: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        protocol_of(EvaluateConfig(run="runs/tiny", **asked), tiny().data, tiny().task, "runs/tiny")


@pytest.mark.parametrize(
    ("name", "said", "option"),
    [
        ("validation", "was chosen on the split val, which shares 3 clips", "allow_selection_on_test"),
        ("train", "was trained on the split train, which shares 3 clips", "allow_training_on_test"),
    ],
)
def test_a_score_on_clips_that_the_run_has_seen_is_refused_unless_it_is_asked_for(
    name: str, said: str, option: str
) -> None:
    run = tiny()
    wish = EvaluateConfig(run="runs/tiny")
    protocol = protocol_of(wish, run.data, run.task, "runs/tiny")
    seen = {"validation": 0, "train": 0}
    refuse_overlap(wish, run.data, protocol, seen, None)
    with pytest.raises(ValueError, match=said):
        refuse_overlap(wish, run.data, protocol, seen | {name: 3}, None)
    refuse_overlap(dataclasses.replace(wish, **{option: True}), run.data, protocol, seen | {name: 3}, None)
    told = card(is_selected_on_test=name == "validation", num_trained_on=3 * (name == "train"))
    refuse_overlap(wish, run.data, protocol, seen | {name: 3}, told)  # it is to be repeated, and says so
    assert len(told.caveats) == 1


def test_clips_that_a_run_has_seen_are_known_in_other_splits_and_manifests(tmp_path: Path) -> None:
    own = manifest_of(tmp_path, "own", a="val", b="val", c="test")
    other = manifest_of(tmp_path, "other", a="test", d="test", c="train")
    assert cards.num_shared((own, "val"), (own, "val")) == 2
    assert cards.num_shared((own, "test"), (own, "val")) == 0
    assert cards.num_shared((other, "test"), (own, "val")) == 1  # under another name
    assert cards.num_shared((own, "test"), (other, "train")) == 1
    run = dataclasses.replace(tiny(), data=dataclasses.replace(tiny().data, manifest=own))
    protocol = Protocol(task="retrieval", run="runs/x", manifest=other, split="test")
    assert run_manifest(run.data, protocol, read_manifest(own).hash) == own
    assert run_manifest(run.data, protocol, read_manifest(other).hash) == other  # the run's own has moved there
    assert run_manifest(run.data, protocol, "0" * 32) == ""
