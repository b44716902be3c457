"""The task of matching captions and clips: pre-training, and retrieval in both directions."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Self, cast

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor

from jobs.tasks import retrieval
from jobs.tasks.examples import NUM_FIRST, pictures_of, shown_clips, thumbnails
from jobs.tasks.network import Network, NetworkOptions
from jobs.tasks.retrieval import ChoosePairs, OnEncoded, RetrievalOptions, Scored
from jobs.tasks.task import Evaluation, Examples, Measured, SavedScores, Task, TaskInputs, measured
from pipeline.records import Batch
from snps3_model.config import ObjectiveConfig
from snps3_model.loss_table import Loss
from snps3_model.objective import Pretraining
from snps3_model.snps3 import SNPS3

if TYPE_CHECKING:
    from pipeline.stream.loader import ClipSource


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """The scores of all texts of a dataset with all its clips."""

    scored: Scored
    texts: list[str]
    relevant: Bool[np.ndarray, "Q N"]
    """Whether a text is a caption of a clip."""
    owners: Int[np.ndarray, " Q"] | None = None
    """The clip of each text, if clips can have several texts."""
    groups: Int[np.ndarray, " N"] | None = None
    """Group of each clip in the temporal test, which ranks clips within their groups."""


@dataclass(frozen=True, kw_only=True)
class CaptionTask(Task):
    """Pre-training with the losses of `objective`, measured by retrieval."""

    score_name: ClassVar[str] = "retrieval"
    scores_all_pairs: ClassVar[bool] = True
    needs_own_head: ClassVar[bool] = False

    objective: ObjectiveConfig
    extra: Mapping[Loss, float] = field(default_factory=dict)
    """Losses of other packages with their weights; only for training."""
    options: RetrievalOptions = field(default_factory=RetrievalOptions)

    @classmethod
    def create(cls, inputs: TaskInputs) -> Self:
        """Return the task, without reading files."""
        return cls(objective=inputs.objective, extra=inputs.extra, options=inputs.retrieval)

    @classmethod
    def metric_names(cls, rerank: int | None) -> list[str]:
        """Return all recalls, and the accuracy of masked words."""
        return retrieval.selectable_metrics("validation", rerank)

    def network(self, model: SNPS3, options: NetworkOptions) -> Network:
        """Return the network with its losses."""
        network = Pretraining(
            model,
            self.objective,
            options.gather,
            options.rank,
            mask_id=options.mask_id,
            rows_at_once=options.rows_at_once,
            extra=self.extra,
        )
        return cast(Network, network)

    def summary(self, metrics: Mapping[str, float]) -> str:
        """Return R@1 of the final score and of each encoder."""
        keys = {name: f"validation/t2v/{name}_r1" for name in ("dual", "cross")}
        parts = ", ".join(f"{name} {metrics[key]:.3f}" for name, key in keys.items() if key in metrics)
        return f"validation R@1 {metrics['validation/t2v/r1']:.3f} ({parts})"

    def measure(self, evaluation: Evaluation) -> dict[str, float]:
        """Return recalls and ranks in both directions and, for validation, the accuracy of masked words."""
        counts: list[Tensor] = []
        are_words_asked = self.objective.masked_words_cross and evaluation.name == "validation"

        def count(batch: Batch, tokens: Tensor) -> None:
            counts.append(retrieval.masked_words_right(evaluation.network.model, batch, tokens))

        metrics = self.results(self.ranked(evaluation, [count] if are_words_asked else []), evaluation.name)
        if are_words_asked:
            share = retrieval.share_right(counts, evaluation.world.gather)
            metrics[f"{evaluation.name}/{retrieval.MASKED_WORDS}"] = share
        return metrics

    def results(self, ranked: Ranked, name: str) -> dict[str, float]:
        """Return the metrics of a dataset: over all clips, or within groups in the temporal test."""
        if ranked.groups is not None:
            return retrieval.group_results(ranked.scored, ranked.groups, name)
        return retrieval.retrieval_results(ranked.scored, ranked.relevant, name, self.options, ranked.owners)

    def ranked(self, evaluation: Evaluation, on_encoded: Sequence[OnEncoded] = ()) -> Ranked:
        """Score the texts of a dataset with its clips: the dual score of all pairs, and the cross score of the pairs of
        `pairs_to_score`. `on_encoded` is called with each batch."""
        network, world = cast(Pretraining, evaluation.network), evaluation.world
        gallery = retrieval.encode_clips(network.model, evaluation.batches, world.gather, on_encoded)
        clip_ids = gallery.clip_ids.cpu().numpy()
        texts, relevant, owners = queries_of(evaluation.source, clip_ids, self.options.queries)
        ids, mask = (part.to(world.device) for part in evaluation.text.tokens(texts))
        groups = evaluation.source.groups(clip_ids) if evaluation.name == "temporal" else None
        scored = retrieval.score(
            network.model,
            retrieval.encode_texts(network.model, ids, mask, world),
            gallery,
            world,
            temperature=network.temperature,
            choose=pairs_to_score(groups, self.options.rerank),
            alive=evaluation.alive,
        )
        if groups is not None:
            within = groups[:, None] == groups[None, :]
            scored = dataclasses.replace(scored, cross=np.where(within, scored.cross, 0.0))
        owners = owners if self.options.queries == "each" else None
        return Ranked(scored=scored, texts=texts, relevant=relevant, owners=owners, groups=groups)

    def score(self, evaluation: Evaluation, folder: str) -> Measured:
        """Return the results for the protocol card of a split, and write all scores to `folder`/scores.npz."""
        ranked = self.ranked(evaluation)
        if evaluation.world.is_first:
            retrieval.save_scores(f"{folder}/scores.npz", ranked.scored, texts={"texts": ranked.texts})
        metrics = self.results(ranked, evaluation.name)
        return measured(ranked.scored.clip_ids.tolist(), ranked.texts, evaluation.source, metrics)

    def save_scores(self, evaluation: Evaluation, folder: str) -> None:
        """Write scores, captions, predictions of masked words and thumbnails of a test split to `folder`/NAME.npz."""
        model, world = evaluation.network.model, evaluation.world
        pictures: dict[int, np.ndarray] = {}
        words: list[retrieval.Filled] = []
        masked_ids: list[np.ndarray] = []

        def look(batch: Batch, tokens: Tensor) -> None:
            usable = (batch.weight > 0.5).cpu().numpy()
            clip_ids = batch.clip_ids.cpu().numpy()[usable].tolist()
            pictures.update(zip(clip_ids, thumbnails(batch.frames)[usable], strict=True))
            if not masked_ids:
                filled = itertools.compress(retrieval.fill_masked_words(model, batch, tokens), usable)
                words.extend(itertools.islice(filled, NUM_FIRST))
                masked_ids.append(batch.masked_token_ids.cpu().numpy()[usable][:NUM_FIRST])

        ranked = self.ranked(evaluation, [look])
        clip_ids = ranked.scored.clip_ids
        scores = next(iter(self.scores_of(ranked).values()))
        num_filled = len(words) if evaluation.name == "test" else 0
        shown = shown_clips(scores, ranked.relevant, ranked.groups, num_filled)
        shown_ids = {int(clip_ids[column]) for column in shown}
        known = world.gather_objects([{name: pictures[name] for name in shown_ids & pictures.keys()}])
        if world.is_first:
            retrieval.save_scores(
                f"{folder}/{evaluation.name}.npz",
                ranked.scored,
                texts={"captions": ranked.texts, "filled": words},
                groups=evaluation.source.groups(clip_ids),
                relevant=ranked.relevant,
                shown=np.array(shown),
                thumbnails=pictures_of(shown, clip_ids, known),
                token_ids=masked_ids[0],
            )

    def scores_of(self, ranked: Ranked) -> dict[str, Float[np.ndarray, "Q N"]]:
        """Return the scores of a report by name; the report ranks by the first."""
        scored = ranked.scored
        if ranked.groups is not None:
            return {"cross": scored.cross, "dual": scored.dual}
        if self.options.rerank:
            return {"fused": retrieval.reranked(scored, self.options.rerank), "dual": scored.dual}
        return {"fused": scored.fused, "dual": scored.dual, "cross": scored.cross}

    def read_scores(self, name: str, source: ClipSource, folder: str) -> SavedScores:
        """Return the metrics and the examples of the scores in `folder`/NAME.npz."""
        saved = retrieval.load_scores(f"{folder}/{name}.npz")
        scored = Scored(clip_ids=saved["clip_ids"], dual=saved["dual"], cross=saved["cross"])
        groups = saved["groups"] if name == "temporal" else None
        ranked = Ranked(scored=scored, texts=saved["captions"], relevant=saved["relevant"], groups=groups)
        metrics = self.results(ranked, name)
        return SavedScores(
            metrics=metrics,
            measured=measured(scored.clip_ids.tolist(), ranked.texts, source, metrics),
            examples=Examples(
                captions=ranked.texts,
                clips=dict(zip(saved["shown"].tolist(), saved["thumbnails"], strict=True)),
                relevant=ranked.relevant,
                scores=self.scores_of(ranked),
                groups=groups,
                filled=saved["filled"],
                token_ids=saved["token_ids"],
            ),
        )


def pairs_to_score(groups: Int[np.ndarray, " N"] | None, rerank: int | None) -> ChoosePairs | None:
    """Return the choice of pairs for the cross encoder: within `groups`, the `rerank` best of each text and clip, or
    None for all."""
    if groups is not None:
        return lambda _: groups[:, None] == groups[None, :]
    return functools.partial(retrieval.first_of_both, k=rerank) if rerank else None


def queries_of(
    source: ClipSource, clip_ids: Int[np.ndarray, " N"], queries: str
) -> tuple[list[str], Bool[np.ndarray, "Q N"], Int[np.ndarray, " Q"]]:
    """Return the query texts of these clips, which clips each text matches, and the clip that each belongs to."""
    rows = source.rows()
    captions = dict(zip(rows["clip_id"].to_pylist(), rows["captions"].to_pylist(), strict=True))
    every = [captions[clip_id] for clip_id in clip_ids.tolist()]
    of_clips = [texts_of(captions, queries) for captions in every]
    texts = [text for texts in of_clips for text in texts]
    owners = np.repeat(np.arange(len(of_clips)), [len(texts) for texts in of_clips])
    return texts, retrieval.true_of(texts, of_clips if queries == "paragraph" else every), owners


def texts_of(captions: Sequence[str], queries: str) -> list[str]:
    """Return the query texts of a clip with these captions: the `first`, `each` once, or all as one `paragraph`."""
    return {"first": list(captions[:1]), "each": list(dict.fromkeys(captions)), "paragraph": [" ".join(captions)]}[
        queries
    ]
