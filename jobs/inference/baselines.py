"""Score a run and baselines on the same clips with the same queries: `snps3 evaluate RUN --baselines`.

rows of the split ─ decoded once for the run, once per public model ─► scorers, clip by clip ─► scores ─► one table
"""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cluster.world import World
from jobs.evaluation import baselines as scorers
from jobs.evaluation.baselines import Baselines, WordModel
from jobs.evaluation.cards import RETRIEVAL, Protocol
from jobs.evaluation.scoring import EvaluateConfig, out_folder, protocol_of, refuse_given
from jobs.inference.clip_match import shown_frames
from jobs.inference.model import Model, folder_to_score, load
from jobs.inference.mteb_evaluation import overlap_of
from jobs.inference.public_dual import PublicDual, load_public
from jobs.run import run_files
from jobs.run.config import DataConfig
from jobs.run.fields import as_dict
from jobs.run.run_identity import config_of, with_decoder
from jobs.tasks import retrieval
from jobs.tasks.captions import pairs_to_score, texts_of
from jobs.tasks.retrieval import Gallery
from jobs.tasks.task import hash_of_ids
from jobs.tracking import machine
from pipeline.corpus.manifest import open_manifest
from pipeline.decode.clip_frames import clip_frames
from pipeline.decode.config import Limits
from pipeline.nearest import did_you_mean
from pipeline.records import DecodeError, Kind
from pipeline.stream.source import split_rows
from snps3_model import metrics

NAMES = ("random", "words", "frames", "scenes")
"""Baselines without weights of others, in the order of the table."""
HUB = "hub="
"""Before the folder of a public model."""
WITHOUT_EFFECT = ("task", "mteb", "questions", "queries", "dual_softmax", "card")
CLIPS_AT_ONCE = 16
MOST_FITTED = 5_000
"""Most training clips, the first by clip_id, that `words` is fitted to."""
FILE = "baselines.json"
Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """The baselines of a command line."""

    names: tuple[str, ...]
    folders: tuple[str, ...]
    may_omit: bool
    """Whether a baseline that the corpus does not allow is left out instead of refused: none was named."""

    @classmethod
    def read(cls, named: Sequence[str]) -> Wanted:
        """Return the named baselines, or all of `NAMES`. ValueError for an unknown one."""
        for name in named:
            if name not in NAMES and name.removeprefix(HUB) in ("", name):
                hint = did_you_mean(name, [*NAMES, HUB]) or "name one of them"
                raise ValueError(f"--baselines {name} is no baseline; {hint} ({', '.join(NAMES)}, {HUB}FOLDER)")
        folders = tuple(dict.fromkeys(name.removeprefix(HUB) for name in named if name.startswith(HUB)))
        return cls(names=tuple(dict.fromkeys(named or NAMES)), folders=folders, may_omit=not named)


@dataclass(kw_only=True)
class Encoded:
    """What was read and encoded of the clips that could be decoded, in the order of the manifest's rows."""

    rows: list[Row] = field(default_factory=list)
    colours: list[np.ndarray] = field(default_factory=list)
    run: list[Gallery] = field(default_factory=list)
    still: list[Gallery] = field(default_factory=list)
    public: dict[str, list[Tensor]] = field(default_factory=dict)
    num_undecoded: int = 0


def compare_with_baselines(config: EvaluateConfig) -> Baselines:
    """Score a run and its baselines, write them as JSON into the folder of the run's card, and return them.

    `random`: drawn scores. `words`: `WordModel`. `frames`: the run itself, shown the mean image of a clip's frames in
    place of each, so that neither motion nor order is left. `scenes`: the generator's own scenes. `hub=FOLDER`: mean of
    the frame vectors of a CLIP or SigLIP. ValueError for what cannot be scored.
    """
    wanted = Wanted.read(config.baselines or ())
    refuse_given(config, WITHOUT_EFFECT, "has no effect with --baselines")
    if not config.run:
        raise ValueError("name the folder of a run or of an exported model")
    folder = folder_to_score(config.run, config.out)
    run = config_of(folder)
    protocol = protocol_of(dataclasses.replace(config, task=RETRIEVAL), run.data, run.task, folder)
    overlap = overlap_of(config, run.data, protocol)
    manifest = open_manifest(protocol.manifest)
    rows = rows_of(protocol.manifest, protocol.split, protocol.max_clips)
    device = "cuda" if config.placement.use_gpu else "cpu"
    data = with_decoder(dataclasses.replace(run.data, num_frames=protocol.num_frames), manifest.fastest_decoder)
    public = {place: load_public(place, device) for place in wanted.folders}
    omitted = dict(find_omitted(wanted, protocol, rows, run.data.train_split))
    names = [name for name in wanted.names if name not in omitted]
    words, num_fitted = fit_words(protocol.manifest, data) if "words" in names else (None, 0)
    model = load(folder, device)
    encoded = encode(rows, model, data, public, shows_still="frames" in names)
    refuse_too_few(encoded, run.data.max_rejected_share)
    texts = [texts_of(row["captions"], "first")[0] for row in encoded.rows]
    measured = Baselines(
        protocol=protocol,
        weights=run_files.weights_hash(folder),
        manifest_hash=manifest.hash,
        ids_hash=hash_of_ids([*(row["clip_id"] for row in encoded.rows), *texts]),
        num_videos=len(encoded.rows),
        num_queries=len(texts),
        num_undecoded=encoded.num_undecoded,
        num_fitted_on=num_fitted,
        num_trained_on=overlap["train"],
        num_selected_on=overlap["validation"],
        scores=score(names, encoded, texts, protocol, model, words, public),
        omitted=omitted,
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        hardware=machine.hardware(),
        commit=machine.git_commit(),
    )
    out = out_folder(config, protocol, run.data, run.task, run.selection.rerank)
    run_files.write_json(f"{out}/{FILE}", as_dict(measured))
    print(f"baselines: {out}/{FILE}")
    return measured


def rows_of(manifest: str, split: str, most: int | None) -> list[Row]:
    """Return the videos of a split in order of clip_id, at most `most`."""
    return split_rows(manifest, split)[Kind.VIDEO].slice(0, most).to_pylist()


def find_omitted(
    wanted: Wanted, protocol: Protocol, rows: Sequence[Row], train_split: str
) -> Iterator[tuple[str, str]]:
    """Yield each baseline that the corpus does not allow, and why; ValueError where it was named."""
    for name in wanted.names:
        try:
            if name == "scenes":
                scorers.generated_clips(protocol.manifest, rows)
            if name == "words" and not open_manifest(protocol.manifest).splits.get(train_split):
                raise ValueError(
                    f"{protocol.manifest} has no clips in the split {train_split!r}, to which the baseline words is "
                    "fitted; leave it out, or take a manifest with training clips"
                )
        except ValueError as error:
            if not wanted.may_omit:
                raise
            yield name, str(error)


def fit_words(manifest: str, data: DataConfig) -> tuple[WordModel, int]:
    """Return the words that colours predict, fitted to the training clips that can be decoded, and their number."""
    kept, of_clips = [], []
    for row in rows_of(manifest, data.train_split, MOST_FITTED):
        try:
            of_clips.append(scorers.colours(shown_frames(row, data, Limits())[None]))
        except DecodeError:
            continue
        kept.append(row["captions"])
    if not kept:
        raise ValueError("none of the training clips could be decoded: leave the baseline words out")
    return WordModel.fit(np.concatenate(of_clips), kept), len(kept)


def encode(
    rows: Sequence[Row], model: Model, data: DataConfig, public: Mapping[str, PublicDual], *, shows_still: bool
) -> Encoded:
    """Decode the clips, a few at a time, and keep what each scorer makes of them, never their frames."""
    encoded = Encoded(public={place: [] for place in public})
    for start in range(0, len(rows), CLIPS_AT_ONCE):
        shown = []
        for row in rows[start : start + CLIPS_AT_ONCE]:
            try:
                own = shown_frames(row, data, Limits())
                of_public = {place: dual.embed_clip(frames_for(dual, row, data)) for place, dual in public.items()}
            except DecodeError:
                encoded.num_undecoded += 1
                continue
            shown.append(own)
            encoded.rows.append(row)
            for place, vector in of_public.items():
                encoded.public[place].append(vector)
        if shown:
            frames = np.stack(shown)
            encoded.colours.append(scorers.colours(frames))
            encoded.run.append(gallery_of(model, frames))
            if shows_still:
                encoded.still.append(gallery_of(model, still(frames)))
    return encoded


def frames_for(dual: PublicDual, row: Row, data: DataConfig) -> np.ndarray:
    """Return the frames of a clip, uint8 (T, H, W, 3), as large as a public model takes them."""
    return clip_frames(
        dict(row),
        num_frames=data.num_frames,
        size_px=dual.long_side_px(row["width"], row["height"]),
        limits=Limits(),
        sampling=data.sampling,
        decoder=data.decoder,
    )


def still(frames: np.ndarray) -> np.ndarray:
    """Return clips, uint8 (N, T, S, S, 4), whose every frame is the mean of all."""
    mean = frames.mean(1, keepdims=True).round().astype(np.uint8)
    return np.broadcast_to(mean, frames.shape)


def gallery_of(model: Model, frames: np.ndarray) -> Gallery:
    """Return the encoded clips, with their places in the batch as ids."""
    videos = model.embed_frames(frames)
    ids = torch.arange(len(frames))
    return Gallery(clip_ids=ids, frame_tokens=videos.tokens, frame_vectors=videos.vectors)


def joined(parts: Sequence[Gallery]) -> Gallery:
    """Return one gallery of all parts, with clips numbered from 0."""
    tokens, vectors = (torch.cat([getattr(part, name) for part in parts]) for name in ("frame_tokens", "frame_vectors"))
    return Gallery(clip_ids=torch.arange(len(vectors)), frame_tokens=tokens, frame_vectors=vectors)


def refuse_too_few(encoded: Encoded, share: float) -> None:
    """Raise ValueError if nothing could be decoded, or so little that the rest is another test set."""
    count = len(encoded.rows) + encoded.num_undecoded
    if not count:
        raise ValueError("the split has no video: name another --split or --manifest")
    if not encoded.rows or encoded.num_undecoded > share * count:
        raise ValueError(
            f"{encoded.num_undecoded} of {count} clips did not decode, more than data.max_rejected_share={share}: "
            "the rest is a different test set: mend these files"
        )


def score(
    names: Sequence[str],
    encoded: Encoded,
    texts: Sequence[str],
    protocol: Protocol,
    model: Model,
    words: WordModel | None,
    public: Mapping[str, PublicDual],
) -> dict[str, Mapping[str, float]]:
    """Return the recalls of each row of the table; one matrix of scores is in memory at a time."""
    relevant = retrieval.true_of(texts, [row["captions"] for row in encoded.rows])

    def rank(scores: Float[np.ndarray, "Q N"]) -> Mapping[str, float]:
        return metrics.direction_metrics(scores, relevant, "", seed=protocol.seed)

    results: dict[str, Mapping[str, float]] = {}
    for name in names:
        if name == "random":
            results[name] = rank(scorers.random_scores(len(texts), len(encoded.rows), protocol.seed))
        elif name == "words" and words:
            results[name] = rank(words.scores(texts, np.concatenate(encoded.colours)))
        elif name == "frames":
            results |= run_scores("frames", encoded.still, texts, protocol, model, relevant)
        elif name == "scenes":
            results[name] = rank(scorers.scene_scores(texts, scorers.generated_clips(protocol.manifest, encoded.rows)))
        else:
            place = name.removeprefix(HUB)
            results[name] = rank(public[place].scores(texts, torch.stack(encoded.public[place])))
    return results | run_scores("run", encoded.run, texts, protocol, model, relevant)


def run_scores(
    name: str,
    parts: Sequence[Gallery],
    texts: Sequence[str],
    protocol: Protocol,
    model: Model,
    relevant: Bool[np.ndarray, "Q N"],
) -> dict[str, Mapping[str, float]]:
    """Return the recalls of a run by its dual encoder, and by both encoders, on clips as in `parts`."""
    scored = retrieval.score(
        model.network,
        model.embed_texts(texts),
        joined(parts),
        World(rank=0, size=1, device=model.device),
        temperature=model.temperature,
        choose=pairs_to_score(None, protocol.rerank),
    )
    rows = retrieval.reranked_rows(scored, protocol.rerank or max(relevant.shape), protocol.fusion)
    placed = {"dual": metrics.placements(scored.dual, relevant), "fused": metrics.placements_of(rows, relevant)}
    return {
        f"{name}, {encoder}": metrics.placed_metrics(of_encoder, "", seed=protocol.seed)
        for encoder, of_encoder in placed.items()
    }
