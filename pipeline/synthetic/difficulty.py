"""Upper bounds on the metrics of a corpus, computed from scenes and from the statements of captions.

`oracle` knows the true scenes. `single_frame` knows everything in the middle frame but nothing about time.
`bag_of_frames` knows all frames of a clip but not their order. Each breaks ties at random, so every figure is an
expectation. Keys are those of a run's results, such as `test/t2v/r1`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

from pipeline.synthetic.choices import Choice
from pipeline.synthetic.clips import SceneClip
from pipeline.synthetic.questions import QUESTION_TYPES, Question, single_frame_accuracy
from pipeline.synthetic.scenes import Scene, poses, tau_at
from pipeline.synthetic.statements import Statement, agrees, agrees_with_frame, meaning_of

RECALL_RANKS = (1, 5, 10)
Agreement = Callable[[Statement, Statement], bool]
Figures = dict[str, float]


def expected_recall(num_equal: int, rank: int) -> float:
    """Return the expected recall at `rank` of the correct item if it ties with `num_equal` − 1 others for the top."""
    return min(rank / num_equal, 1.0)


def retrieval_ceilings(clips: Sequence[SceneClip], may_agree: Agreement) -> Figures:
    """Return the recall in both directions, and within groups if there are any; one caption per clip."""
    claims = [clip.captions[0].statement for clip in clips]
    meanings = [meaning_of(clip.scene) for clip in clips]
    table = [[may_agree(claim, meaning) for meaning in meanings] for claim in claims]
    assert all(table[index][index] for index in range(len(clips))), "a caption that does not agree with its own clip"
    figures: Figures = {}
    for direction, rows in (("t2v", table), ("v2t", [list(row) for row in zip(*table, strict=True)])):
        for rank in RECALL_RANKS:
            figures[f"{direction}/r{rank}"] = fmean(expected_recall(sum(row), rank) for row in rows)
        if clips[0].group is not None:
            figures[f"{direction}/group_r1"] = fmean(
                1 / sum(agreed for agreed, other in zip(row, clips, strict=True) if other.group == clip.group)
                for row, clip in zip(rows, clips, strict=True)
            )
    return figures


def bag_of_frames_ceilings(clips: Sequence[SceneClip], num_frames: int) -> Figures:
    """Return the in-group recall of `bag_of_frames`; the captions must name everything that distinguishes clips."""
    bags: dict[str | None, list[frozenset[object]]] = defaultdict(list)
    for clip in clips:
        bags[clip.group].append(frames_shown(clip.scene, num_frames))
    in_group = fmean(1 / group.count(bag) for group in bags.values() for bag in group)
    return {"t2v/group_r1": in_group, "v2t/group_r1": in_group}


def frames_shown(scene: Scene, num_frames: int) -> frozenset[object]:
    """Return the set of distinct frames of a clip; clips with equal sets differ only in the order of frames."""
    frames = (poses(scene, tau_at(frame, num_frames)) for frame in range(num_frames))
    looks = tuple((thing.colour, thing.shape) for thing in scene.things)
    shown = (
        tuple((*(round(value, 6) for value in pose[:-1]), True) if pose.visible else None for pose in frame)
        for frame in frames
    )
    return frozenset((scene.background, looks, frame) for frame in shown)


def choice_ceilings(
    choices: Mapping[str, Sequence[Choice]], scenes: Mapping[str, Scene], may_agree: Agreement
) -> Figures:
    """Return the accuracy by difficulty; `choices` and `scenes` are by clip name."""
    rows: dict[str, list[float]] = defaultdict(list)
    for clip_name, of_clip in choices.items():
        meaning = meaning_of(scenes[clip_name])
        for choice in of_clip:
            num_equal = sum(may_agree(option.statement, meaning) for option in choice.options)
            rows[f"choice/{choice.difficulty}"].append(1 / num_equal)
    return {key: fmean(values) for key, values in sorted(rows.items())}


def question_ceilings(
    asked: Sequence[Question], train: Sequence[Question], answers: Sequence[str]
) -> dict[str, Figures]:
    """Return the accuracy by type of `oracle`, which only gives answers of the closed list, and of `single_frame`."""
    ceilings: dict[str, Figures] = {"oracle": {}, "single_frame": {}}
    for kind in QUESTION_TYPES:
        if rows := [question for question in asked if question.question_type == kind]:
            ceilings["oracle"][f"qa/{kind}"] = fmean(question.answer in answers for question in rows)
            ceilings["single_frame"][f"qa/{kind}"] = single_frame_accuracy(rows, train)
    return ceilings


def corpus_ceilings(
    clips: Sequence[SceneClip],
    questions: Mapping[str, Mapping[str, Sequence[Question]]],
    choices: Mapping[str, Mapping[str, Sequence[Choice]]],
    *,
    answers: Sequence[str],
    num_frames: int,
) -> dict[str, Figures]:
    """Return all figures by scorer; `questions` and `choices` are by split and clip name."""
    ceilings: dict[str, Figures] = {"oracle": {}, "single_frame": {}}
    agreements: dict[str, Agreement] = {"oracle": agrees, "single_frame": agrees_with_frame}
    train = [question for of_clip in questions["train"].values() for question in of_clip]
    for split in ("val", "test", "temporal"):
        of_split = [clip for clip in clips if clip.split == split]
        scenes = {clip.clip_name: clip.scene for clip in of_split}
        asked = [question for of_clip in questions[split].values() for question in of_clip]
        by_scorer = question_ceilings(asked, train, answers)
        for scorer, may_agree in agreements.items():
            figures = retrieval_ceilings(of_split, may_agree) | choice_ceilings(choices[split], scenes, may_agree)
            figures |= by_scorer[scorer]
            ceilings[scorer] |= {f"{split}/{key}": round(value, 4) for key, value in figures.items()}
    bag = bag_of_frames_ceilings([clip for clip in clips if clip.split == "temporal"], num_frames)
    ceilings["bag_of_frames"] = {f"temporal/{key}": round(value, 4) for key, value in bag.items()}
    return ceilings
