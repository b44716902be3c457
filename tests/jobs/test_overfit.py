"""Sixteen pairs learned by heart, through the whole way from files to scores: a model that cannot do this learns
nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from cluster.world import World
from jobs.run.presets import tiny
from jobs.tasks import retrieval
from jobs.training.step import Clock, make_state, training_steps
from pipeline.decode.codec import decode_clip, encode_video
from pipeline.records import Batch, ClipRows, Kind
from pipeline.stream.collate import collate
from pipeline.synthetic.clips import CorpusConfig, clips_of
from pipeline.synthetic.render import render_video
from pipeline.text.significance import mine_significant_words
from pipeline.text.tokenizer import Tokenizer, train_wordpiece
from snps3_model import metrics
from snps3_model.config import ObjectiveConfig
from snps3_model.gather import local_gather
from snps3_model.objective import Pretraining
from snps3_model.snps3 import SNPS3

NUM_PAIRS, SIZE_PX, NUM_FRAMES = 16, 64, 2
REAL_CLIPS = (
    ("video1.mp4", 0.0, 5.0, "a scene of the first half"),
    ("video1.mp4", 5.0, 10.0, "another scene of the second half"),
    ("video9770.mp4", 0.0, 3.7, "a person is connecting something to system"),
    ("video9771.mp4", 0.0, 3.2, "a little girl does gymnastics"),
)
UNSEEN_EPOCH = 10_000
"""Its masks are no training step's."""


def clips(folder: Path) -> tuple[np.ndarray, list[str]]:
    """Frames (16, 4, 64, 64, 3) of four real and twelve generated videos, decoded from their files, and a caption of
    each."""
    files = [((folder / "videos" / name).read_bytes(), start, end) for name, start, end, _ in REAL_CLIPS]
    scenes = clips_of(CorpusConfig(num_train_videos=NUM_PAIRS - len(files)))[: NUM_PAIRS - len(files)]
    drawn = [render_video(clip.scene, num_frames=12, size_px=SIZE_PX) for clip in scenes]
    files += [(encode_video(frames, fps=6), None, None) for frames in drawn]
    decoded = [
        decode_clip(data, kind=Kind.VIDEO, num_frames=NUM_FRAMES, size_px=SIZE_PX, start_seconds=start, end_seconds=end)
        for data, start, end in files
    ]
    captions = [caption for *_, caption in REAL_CLIPS] + [clip.captions[0].text for clip in scenes]
    return np.stack([clip.frames for clip in decoded]), captions


@pytest.fixture
def tokenizer_and_batches(real_files: Path) -> tuple[Tokenizer, Iterator[Batch], Batch]:
    """The vocabulary, the same pairs again and again under new masks, and once under masks that are none of these."""
    frames, captions = clips(real_files)
    tokenizer = train_wordpiece(captions, 400)
    table = mine_significant_words(captions, tokenizer.pieces)
    config = tiny()

    def batch(epoch: int) -> Batch:
        rows = ClipRows(
            clip_ids=np.arange(NUM_PAIRS),
            weight=np.ones(NUM_PAIRS, np.float32),
            epoch=epoch,
            captions=captions,
            frames=frames,
            frame_pad_mask=np.zeros(frames.shape[:4], bool),
            num_frames=np.full(NUM_PAIRS, NUM_FRAMES),
        )
        return collate(rows, tokenizer=tokenizer, table=table, masking=config.masking, num_words=3, seed=0)

    return tokenizer, (batch(epoch) for epoch in range(UNSEEN_EPOCH)), batch(UNSEEN_EPOCH)


def answers(network: Pretraining, batch: Batch) -> tuple[float, float, float]:
    """In-batch R@1 through level 1 and through level 2, and the share of masked words that are filled in right."""
    alone = World(rank=0, size=1, device=torch.device("cpu"))
    gallery = retrieval.encode_clips(network.model, [batch], local_gather)
    queries = retrieval.encode_texts(network.model, batch.token_ids, batch.token_mask, alone)
    scored = retrieval.score(network.model, queries, gallery, alone, temperature=network.temperature)
    right = np.eye(NUM_PAIRS, dtype=bool)
    words = retrieval.fill_masked_words(network.model, batch, gallery.frame_tokens)
    filled = [answer for row in words for answer in row]
    share = np.mean([true == guesses[0][0] for _, true, guesses in filled])
    return metrics.recall_at(1, scored.dual, right), metrics.recall_at(1, scored.cross, right), float(share)


@pytest.mark.slow
def test_sixteen_real_and_generated_pairs_are_learned_by_heart(
    tokenizer_and_batches: tuple[Tokenizer, Iterator[Batch], Batch],
) -> None:
    tokenizer, stream, unseen = tokenizer_and_batches
    optim = dataclasses.replace(tiny().optim, num_steps=1000, global_batch=NUM_PAIRS, warmup_steps=20)
    # all losses at weight 1 from the first step: `tiny` trains by level 1 alone at first
    objective = ObjectiveConfig(num_hard_negatives=4)
    config = dataclasses.replace(tiny(), optim=optim, objective=objective)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = SNPS3(
            config.model,
            vocabulary_size=tokenizer.vocabulary_size,
            pad_id=tokenizer.special.pad,
            separator_id=tokenizer.special.sep,
        )
        network = Pretraining(model, config.objective)
        state = make_state(network, network, config.optim)
        dual, cross, words = answers(network, unseen)
        assert max(dual, cross, words) < 0.4
        for _ in training_steps(state, stream, config.optim, seed=config.seed, rank=0, clock=Clock()):
            if state.progress.step % 25 == 0:
                dual, cross, words = answers(network, unseen)
                if (dual, cross) == (1.0, 1.0) and words > 0.9:
                    break
    assert (dual, cross) == (1.0, 1.0)
    assert words > 0.9
