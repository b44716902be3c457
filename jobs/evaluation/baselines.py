"""What a retrieval score is measured against: scorers without a trained network, and their table beside a run.

`random` knows nothing, `words` maps the colours of a clip to the words of captions, and `scenes` knows what the
generator drew. Each gives a score of every text (row) with every clip (column), as a run does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from pydantic import TypeAdapter, ValidationError

from jobs.evaluation.cards import Protocol
from jobs.run.generated_corpus import summary_beside
from pipeline.synthetic.clips import CorpusConfig, SceneClip, clips_of
from pipeline.synthetic.corpus import FORMAT_VERSION
from pipeline.synthetic.statements import agrees, meaning_of

GRID = 8
"""Cells per side in which `colours` averages a clip."""
LEAST_CLIPS = 2
"""Training clips that a word must describe to be in the vocabulary."""
RIDGE = 0.1
"""Penalty of the regression, per training clip and standardised colour."""
WORD = re.compile(r"\w+")
COLUMNS = {"R@1": "r1", "R@5": "r5", "R@10": "r10", "median rank": "median_rank"}
"""Column title → score."""


@dataclass(frozen=True, kw_only=True)
class Baselines:
    """The scores of a run and of baselines on the same clips with the same queries, text to video."""

    protocol: Protocol
    weights: str
    """BLAKE2b of the weights' file of the run."""
    manifest_hash: str
    ids_hash: str
    """Hash of the clip ids and the query texts, in order."""
    num_videos: int
    num_queries: int
    num_undecoded: int
    num_fitted_on: int
    """Training clips of `words`; 0 without it."""
    num_trained_on: int | None
    """Scored clips that the run was trained on; None: not known."""
    num_selected_on: int | None
    """Scored clips by which its checkpoint was selected; None: not known."""
    scores: Mapping[str, Mapping[str, float]]
    """Row → `r1`, `r5`, `r10`, each with its bootstrap 95 % interval as `_low` and `_high`, and `median_rank`."""
    omitted: Mapping[str, str]
    """Baselines that this corpus does not allow, and why."""
    date: str
    hardware: str
    commit: str


def random_scores(num_texts: int, num_clips: int, seed: int) -> Float[np.ndarray, "Q N"]:
    """Return scores drawn uniformly from [0, 1): R@k is k over the number of clips, on average over seeds."""
    return np.random.default_rng(seed).random((num_texts, num_clips), np.float32)


def colours(frames: UInt8[np.ndarray, "N T S S C"]) -> Float[np.ndarray, "N d"]:
    """Return the mean colour of clips over time in `GRID` × `GRID` cells, in [0, 1]; the first 3 of C are RGB."""
    still = torch.from_numpy(np.ascontiguousarray(frames[..., :3])).float().mean(1).permute(0, 3, 1, 2) / 255
    return F.adaptive_avg_pool2d(still, GRID).flatten(1).numpy()


@dataclass(frozen=True, kw_only=True)
class WordModel:
    """A linear map from the colours of a clip to its words: ridge regression on the training split.

    A text is its bag of words, each weighted by the logarithm of its inverse share of training clips, less the mean of
    the training captions. A clip's score is the cosine of the text and the bag that the map predicts. No caption of a
    scored clip is read, and the order of words and of frames is not either.
    """

    vocabulary: Mapping[str, int]
    weights: Float[np.ndarray, " V"]
    mean_bag: Float[np.ndarray, " V"]
    mean_colour: Float[np.ndarray, " d"]
    colour_scale: Float[np.ndarray, " d"]
    matrix: Float[np.ndarray, "d V"]

    @classmethod
    def fit(cls, clip_colours: Float[np.ndarray, "N d"], captions: Sequence[Sequence[str]]) -> WordModel:
        """Fit the map to training clips with all their captions. ValueError if no word describes two clips."""
        of_clips = [[set(WORD.findall(caption.lower())) for caption in of_clip] for of_clip in captions]
        counts: dict[str, int] = {}
        for of_clip in of_clips:
            for word in set().union(*of_clip):
                counts[word] = counts.get(word, 0) + 1
        words = sorted(word for word, count in counts.items() if count >= LEAST_CLIPS)
        if not words:
            raise ValueError(
                f"the baseline words needs a word that describes {LEAST_CLIPS} training clips, and none of "
                f"{len(counts)} words does; leave the baseline out, or take a manifest with more training clips"
            )
        vocabulary = {word: place for place, word in enumerate(words)}
        weights = np.log(len(captions) / np.array([counts[word] for word in words])) + 1.0
        bags = np.stack([np.mean([bag_of(text, vocabulary) for text in of_clip], axis=0) for of_clip in of_clips])
        bags *= weights
        mean_bag, mean_colour = bags.mean(0), clip_colours.mean(0)
        scale = np.maximum(clip_colours.std(0), 1e-6)
        inputs = (clip_colours - mean_colour) / scale
        gram = inputs.T @ inputs + RIDGE * len(inputs) * np.eye(inputs.shape[1])
        matrix = np.linalg.solve(gram, inputs.T @ (bags - mean_bag))
        return cls(
            vocabulary=vocabulary,
            weights=weights,
            mean_bag=mean_bag,
            mean_colour=mean_colour,
            colour_scale=scale,
            matrix=matrix,
        )

    def scores(self, texts: Sequence[str], clip_colours: Float[np.ndarray, "N d"]) -> Float[np.ndarray, "Q N"]:
        """Return the cosine of the bag of each text and the predicted bag of each clip."""
        bags = np.stack([bag_of(set(WORD.findall(text.lower())), self.vocabulary) for text in texts])
        predicted = (clip_colours - self.mean_colour) / self.colour_scale @ self.matrix
        return unit(bags * self.weights - self.mean_bag) @ unit(predicted).T


def bag_of(words: set[str], vocabulary: Mapping[str, int]) -> Int[np.ndarray, " V"]:
    """Return 1 for each word of the vocabulary that is among `words`, else 0."""
    bag = np.zeros(len(vocabulary), int)
    bag[[vocabulary[word] for word in words if word in vocabulary]] = 1
    return bag


def unit(rows: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    """Return rows of length 1; a row of zeros stays."""
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def generated_clips(manifest: str, rows: Sequence[Mapping[str, Any]]) -> list[SceneClip]:
    """Return what the generator drew in each clip of `rows` of a manifest.

    ValueError unless the corpus is the embedded one, as this version draws it.
    """
    remedy = "leave the baseline scenes out, or make the corpus and its manifest with snps3 make_corpus and prepare"
    summary = summary_beside(manifest)
    try:
        config = TypeAdapter(CorpusConfig).validate_python(summary["config"])
    except (KeyError, ValidationError) as error:
        raise ValueError(f"{manifest} has no corpus.json of the embedded corpus beside it; {remedy}") from error
    if (version := summary.get("format_version")) != FORMAT_VERSION:
        raise ValueError(f"{manifest} is of format {version}, and this version draws {FORMAT_VERSION}; {remedy}")
    known = {clip.clip_name: clip for clip in clips_of(config)}
    clips = []
    for row in rows:
        clip = known.get("/".join(row["uri"].split("/")[-3:]))
        if clip is None or {caption.text for caption in clip.captions} != set(row["captions"]):
            raise ValueError(f"{row['uri']} with its captions is not as the generator drew it; {remedy}")
        clips.append(clip)
    return clips


def scene_scores(texts: Sequence[str], clips: Sequence[SceneClip]) -> Float[np.ndarray, "N N"]:
    """Return 1 where a caption agrees with the scene of a clip, else 0: the ceiling `oracle` of corpus.json.

    `texts`: a caption of each clip, in the order of the clips.
    """
    statements = [
        next(caption.statement for caption in clip.captions if caption.text == text)
        for text, clip in zip(texts, clips, strict=True)
    ]
    meanings = [meaning_of(clip.scene) for clip in clips]
    table = [[agrees(statement, meaning) for meaning in meanings] for statement in statements]
    return np.array(table, np.float32)


def table(measured: Baselines) -> str:
    """Return all rows as Markdown, with intervals, for the terminal and for a page."""
    protocol = measured.protocol
    lines = [
        f"{protocol.task}, text to video, on {protocol.split} of {protocol.manifest} ({measured.manifest_hash})",
        f"{measured.num_videos} videos, {measured.num_queries} queries, {measured.num_undecoded} not decoded; "
        f"{protocol.num_frames} frames",
    ]
    for name, count in (("trained on", measured.num_trained_on), ("chosen by", measured.num_selected_on)):
        if count:
            lines.append(f"the run was {name} {count} of these clips: its scores are too optimistic")
        elif count is None:
            lines.append(f"whether the run was {name} these clips is not known")
    lines += ["", "| | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    lines += [
        f"| {name} | " + " | ".join(cell(scores, key) for key in COLUMNS.values()) + " |"
        for name, scores in measured.scores.items()
    ]
    lines += [f"without {name}: {why}" for name, why in measured.omitted.items()]
    return "\n".join(lines)


def cell(scores: Mapping[str, float], key: str) -> str:
    """Return a score, with its interval if it has one."""
    if f"{key}_low" not in scores:
        return f"{scores[key]:g}"
    return f"{scores[key]:.3f} [{scores[f'{key}_low']:.3f}, {scores[f'{key}_high']:.3f}]"
