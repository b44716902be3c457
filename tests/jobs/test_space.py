from __future__ import annotations

import contextlib
import dataclasses
import functools
from pathlib import Path

import pytest
from toy import run_of

from cluster.domains import Choice, Domain, Range
from cluster.trials import Trial
from jobs.command_line import parsing
from jobs.experiments import space, sweeps
from jobs.experiments.sweep_table import describe, row_of, summary
from jobs.experiments.sweeps import SweepConfig, evaluated_at, identity_hash, rungs_of
from jobs.launch import driver, preflight
from jobs.run import run_files, run_identity
from jobs.run.config import PretrainConfig
from jobs.run.fields import as_dict, flat
from jobs.run.presets import tiny
from jobs.run.run_identity import identity, in_steps
from jobs.training.job import make_plan
from jobs.training.step import DivergedError, RunError
from jobs.training.trainer import PROBES
from pipeline.corpus.manifest import read_manifest
from pipeline.synthetic.corpus import CorpusConfig, clips_of
from pipeline.text.significance import mine_significant_words
from pipeline.text.tokenizer import train_wordpiece


def corners_of(parsed: dict[str, Domain], base: PretrainConfig | None = None) -> list[space.Corner]:
    base = base or tiny()
    return space.corners(parsed, flat(as_dict(base)), functools.partial(run_identity.with_values, base))


def steps_of(base: PretrainConfig) -> int:
    return sweeps.steps_of(base.optim, functools.partial(make_plan, base.data, base.optim.global_batch, base.seed))


def test_domains_are_read_from_words() -> None:
    found = space.parse(["masking.ratio=0.1..0.6", "optim.lr=1e-4..3e-3:log", "text.num_words=1..5:int"])
    assert found == {
        "masking.ratio": Range(low=0.1, high=0.6),
        "optim.lr": Range(low=1e-4, high=3e-3, is_log=True),
        "text.num_words": Range(low=1, high=5, is_integer=True),
    }
    assert space.domain("after,None,True,3,0.5") == Choice(values=("after", None, True, 3, 0.5))
    assert space.domain("s3://a/m,s3://b/m") == Choice(values=("s3://a/m", "s3://b/m"))


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("optim.lr", "FIELD=LOW..HIGH"),
        ("optim.lr=3..1", "optim.lr: a range needs a lower and a higher number, got 3..1"),
        ("optim.lr=1..1", "a lower and a higher"),
        ("optim.lr=0..1:log", "begins above 0"),
        ("optim.lr=a..b", "between two numbers, got 'a..b'"),
        ("optim.lr=1..2:square", "may be :log or :int, got :square"),
        ("optim.lr=1", "needs two values"),
        ("optim.lr=1e-3,0.001", "0.001 stands twice"),
        ("text.num_words=0.4..3:int", "whole numbers ends at whole numbers, got 0.4..3:int"),
        ("text.num_words=0.4..3:log:int", "whole numbers ends at whole numbers"),
    ],
)
def test_what_is_no_domain_is_refused_with_what_it_needs(text: str, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        space.parse([text])


def test_points_of_a_grid_go_from_end_to_end() -> None:
    assert Range(low=1, high=100, is_log=True).points(3) == pytest.approx((1, 10, 100))
    assert Range(low=1, high=5, is_integer=True).points(3) == (1, 3, 5)
    assert Range(low=1, high=2, is_integer=True).points(5) == (1, 2)
    assert Choice(values=("a", "b")).points(7) == ("a", "b")


@pytest.mark.parametrize("name", space.SPACES)
def test_every_ready_space_fits_the_configuration(name: str) -> None:
    found = space.parse(space.SPACES[name])
    corners_of(found)


def test_values_are_set_in_their_parts_and_all_else_stays() -> None:
    base = tiny()
    made = run_identity.with_values(base, {"masking.ratio": 0.3, "objective.lvwm": 0.0, "seed": 4}, name="x")
    assert (made.masking.ratio, made.objective.lvwm, made.seed, made.name) == (0.3, 0.0, 4, "x")
    back = {"masking.ratio": base.masking.ratio, "objective.lvwm": base.objective.lvwm, "seed": base.seed}
    assert run_identity.with_values(made, back, name=base.name) == base


def test_an_unknown_field_is_refused_with_the_nearest_and_an_impossible_value_with_its_rule() -> None:
    with pytest.raises(ValueError, match=r"no field 'masking\.rato'; did you mean masking\.ratio\?"):
        corners_of(space.parse(["masking.rato=0.1..0.2"]))
    with pytest.raises(ValueError, match=r"masking\.ratio cannot be 2"):
        corners_of(space.parse(["masking.ratio=0.1..2"]))


def test_a_range_of_whole_numbers_must_say_so() -> None:
    corners_of(space.parse(["text.num_words=1..5:int"]))
    with pytest.raises(ValueError, match=r"text\.num_words cannot be 2\.27.* is it a range of whole numbers"):
        corners_of(space.parse(["text.num_words=1..5"]))


def test_values_that_go_only_together_can_be_varied_together() -> None:
    """`tiny` has neither a step at which its rate falls, nor a width that five heads can share."""
    falls = ["optim.decay=cosine,step", "optim.decay_step=100,200"]
    heads = ["model.hidden=80,160", "model.num_heads=5,10"]
    for texts in (falls, heads):
        parsed = space.parse(texts)
        assert len(corners_of(parsed)) == 4
        (first, _), *_ = parsed.items()
        with pytest.raises(ValueError, match=r"optim\.decay cannot be step|model\.num_heads cannot be 5"):
            corners_of({name: one for name, one in parsed.items() if (name == first) == (texts is falls)})


@pytest.mark.parametrize("text", ["name=a,b", "placement.storage=runs,other"])
def test_where_a_run_lies_cannot_be_varied(text: str) -> None:
    with pytest.raises(ValueError, match="changes nothing that is computed, so it cannot be varied"):
        corners_of(space.parse([text]))


def test_a_small_corpus_has_as_many_significant_words_as_the_ready_space_asks_for() -> None:
    clips = clips_of(CorpusConfig(num_train_videos=80, num_train_images=0, num_val=1, num_test=1))
    captions = [caption.text for clip in clips for caption in clip.captions]
    pieces = train_wordpiece(captions, tiny().text.vocabulary_size).pieces
    table = mine_significant_words(captions, pieces)
    (top_k,) = [values for name, values in space.parse(space.SPACES["significant_words"]).items() if "top_k" in name]
    for value in top_k.corners:
        masking = run_identity.with_values(tiny(), {"masking.top_k": value}, name="x").masking
        driver.refuse_too_few_words(masking, table)


def wish(**changes: object) -> SweepConfig:
    return SweepConfig(**{"space": "masking_ratio", "name": "s"} | changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"scheduler": "pbt"}, "Ray Train 2.60 does not hand its checkpoints to Tune"),
        ({"space": "ratios"}, "there is no space 'ratios'"),
        ({"space": None}, "name a space"),
        ({"metric": "loss/total"}, "which every run logs, got 'loss/total'"),
        ({"num_trials": 0}, "num_trials must be at least 1"),
        ({"num_at_once": 0}, "num_at_once must be at least 1"),
    ],
)
def test_a_sweep_that_cannot_be_is_refused(changes: dict[str, object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        wish(**changes)


def test_trials_are_evaluated_at_the_rungs(capsys: pytest.CaptureFixture[str]) -> None:
    base = run_identity.with_values(tiny(), {"optim.num_steps": 320, "selection.evaluate_every": 240}, name="x")
    rungs = rungs_of(wish(), 320)
    assert rungs == (20, 80)
    made = evaluated_at(rungs, base.selection, base.optim.warmup_steps)
    assert [step for step in range(1, 321) if made.is_due(step)] == [20, 80, 240]
    told = capsys.readouterr().out
    assert "after steps 20, 80 too" in told
    assert "at step 20 the learning rate still rises" in told
    often = dataclasses.replace(base, selection=dataclasses.replace(base.selection, evaluate_every=20))
    assert evaluated_at(rungs, often.selection, 50) == often.selection
    assert evaluated_at(rungs_of(wish(scheduler="none"), 180), base.selection, 50) == base.selection
    assert rungs_of(wish(), tiny().optim.num_steps) == (66, 264)  # the preset as it is can be swept
    with pytest.raises(ValueError, match=r"180 / 4\^5 steps, less than one; take more steps or fewer --num-rungs"):
        rungs_of(wish(num_rungs=5), 180)


def corners(*texts: str, base: PretrainConfig | None = None) -> list[space.Corner]:
    return corners_of(space.parse(texts), base)


def lengths(*texts: str, base: PretrainConfig | None = None) -> list[tuple[str, int]]:
    return [(corner.field, steps_of(corner.run)) for corner in corners(*texts, base=base)]


def test_trials_of_other_lengths_are_not_compared_early(tmp_path: Path) -> None:
    steps = lengths("optim.num_steps=90,180")
    assert steps == [("optim.num_steps", 90), ("optim.num_steps", 180)]
    with pytest.raises(ValueError, match=r"optim\.num_steps cannot be varied: .* after equal steps"):
        sweeps.refuse_other_rungs(wish(), steps, 90)
    sweeps.refuse_other_rungs(wish(scheduler="none"), steps, 90)
    base = run_of(tmp_path)
    optim = dataclasses.replace(base.optim, num_epochs=2, warmup_steps=1, global_batch=32)
    base = dataclasses.replace(base, optim=optim)
    num_steps = steps_of(base)
    plan = make_plan(base.data, base.optim.global_batch, base.seed)
    assert num_steps == in_steps(base.optim, plan.first_step).num_steps < base.optim.num_steps
    sweeps.refuse_other_rungs(wish(), lengths("optim.lr=1e-4..1e-3", base=base), num_steps)
    with pytest.raises(ValueError, match=r"optim\.global_batch cannot be varied"):
        sweeps.refuse_other_rungs(wish(), lengths("optim.global_batch=16,32", base=base), num_steps)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("selection.patience=1,2", ""),
        ("selection.metric=validation/t2v/r1,validation/t2v/r_1", "cannot be validation/t2v/r_1: .*did you mean"),
        ("data.train_split=train,trian", "cannot be trian: data.train_split"),
        ("text.vocabulary=None,/no/vocab.txt", "cannot be /no/vocab.txt: text.vocabulary: .*/no/vocab.txt"),
    ],
)
def test_a_value_that_a_run_would_refuse_before_its_start_is_refused(tmp_path: Path, text: str, why: str) -> None:
    base = run_of(tmp_path)
    manifest, machine = read_manifest(base.data.manifest), preflight.this_machine()
    problems = [
        (f"{corner.field} cannot be {corner.value}", preflight.value_problems(corner.run, manifest, machine))
        for corner in corners(text, base=base)
    ]
    with pytest.raises(ValueError, match=why) if why else contextlib.nullcontext():
        sweeps.refuse_problems(problems)


def refuse_unmeasured(metric: str, varied: dict[str, Domain], base: PretrainConfig) -> None:
    weight = base.objective.masked_words_cross
    sweeps.refuse_unmeasured(metric, varied, kind=base.task.kind, words_weight=weight)


@pytest.mark.parametrize("metric", PROBES)
def test_what_changes_the_question_is_not_varied(metric: str) -> None:
    refuse_unmeasured(metric, space.parse(["masking.ratio=0.1..0.6"]), tiny())
    with pytest.raises(ValueError, match=r"data\.max_evaluation_clips cannot be varied: .* ask each something else"):
        refuse_unmeasured(metric, space.parse(["data.max_evaluation_clips=8,1000"]), tiny())
    seeds = space.parse(["seed=0,1,2"])  # by which words are hidden
    with contextlib.nullcontext() if metric == PROBES[0] else pytest.raises(ValueError, match="seed cannot be varied"):
        refuse_unmeasured(metric, seeds, tiny())


def test_trials_keep_the_weights_that_they_are_compared_by(capsys: pytest.CaptureFixture[str]) -> None:
    assert sweeps.selected_by(PROBES[0], tiny().selection) == tiny().selection
    assert not capsys.readouterr().out
    made = dataclasses.replace(tiny(), selection=sweeps.selected_by(PROBES[1], tiny().selection))
    assert made.selection.metric == PROBES[1]
    assert preflight.metric_problems(made.task.kind, made.selection) == []
    assert f"highest {PROBES[1]}" in capsys.readouterr().out


def test_a_trial_that_was_asked_to_stop_is_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = dataclasses.replace(tiny(), placement=dataclasses.replace(tiny().placement, storage=str(tmp_path)))
    monkeypatch.setattr(driver, "pretrain", lambda *_, **__: {})
    monkeypatch.setattr(sweeps.trials, "report", lambda _: pytest.fail("was reported"))
    make = functools.partial(run_identity.with_values, base)
    with pytest.raises(RuntimeError, match="s-t was asked to stop"):
        sweeps.run_trial("t", {}, None, make=make, sweep_name="s", parent="p", server=None)


def test_what_no_trial_could_be_compared_by_is_refused() -> None:
    base, words = tiny(), "validation/masked_word_accuracy"
    refuse_unmeasured(words, {}, base)
    silent = dataclasses.replace(base, objective=dataclasses.replace(base.objective, masked_words_cross=0.0))
    refuse_unmeasured(wish().metric, {}, silent)
    with pytest.raises(ValueError, match=r"masked_words_cross=0 fills in no words"):
        refuse_unmeasured(words, {}, silent)
    with pytest.raises(ValueError, match=r"masked_words_cross=0 fills in no words"):
        refuse_unmeasured(words, space.parse(["objective.masked_words_cross=0..1"]), base)
    task = dataclasses.replace(base.task, kind="multiple_choice", validation="v", test="t")
    with pytest.raises(ValueError, match=r"task\.kind=multiple_choice do not measure"):
        refuse_unmeasured(wish().metric, {}, dataclasses.replace(base, task=task))


def test_a_sweep_that_is_refused_does_not_take_its_name(tmp_path: Path) -> None:
    base = dataclasses.replace(tiny(), placement=dataclasses.replace(tiny().placement, storage=str(tmp_path)))
    with pytest.raises(ValueError, match="fewer --num-rungs"):
        sweeps.sweep(wish(num_rungs=6), base)
    assert not list(tmp_path.iterdir())


def test_another_search_corpus_or_number_at_a_time_makes_another_sweep_and_another_place_does_not() -> None:
    """Tune goes on with as many at a time as it began with."""
    own = identity_hash(wish(), identity(tiny(), "h"))
    moved = dataclasses.replace(tiny(), placement=dataclasses.replace(tiny().placement, storage="s3://bucket"))
    assert identity_hash(wish(), identity(moved, "h")) == own
    for other in (wish(seed=1), wish(num_at_once=3)):
        assert identity_hash(other, identity(tiny(), "h")) != own
    assert identity_hash(wish(), identity(tiny(), "another")) != own


def test_a_trial_counts_by_its_best_and_one_that_diverged_is_no_result() -> None:
    metric, num_steps = wish().metric, 80  # stopped by its own patience
    highest = {metric: 0.5, "step": 60.0}
    stopped = row_of(Trial(trial_id="a", values={}, highest=highest), wish().name, wish().metric)
    assert (stopped.score, stopped.num_steps, stopped.status) == (0.5, 60, "stopped")
    ended = {metric: 0.6, "step": num_steps, "finished": 1.0}
    whole = row_of(Trial(trial_id="b", values={}, highest=ended), wish().name, wish().metric)
    assert (whole.num_steps, whole.status) == (num_steps, "finished")
    odd = highest | {"step": 70.0, "diverged": 1.0}
    diverged = row_of(Trial(trial_id="c", values={}, highest=odd), wish().name, wish().metric)
    assert (diverged.score, diverged.status) == (None, "diverged")
    failed = row_of(Trial(trial_id="d", values={}, highest=highest, error="out of memory"), wish().name, wish().metric)
    assert (failed.score, failed.status) == (None, "failed")
    found = summary([whole, stopped, diverged, failed])
    assert (found["best"], found["num_steps"]) == (0.6, num_steps + 60 + 70 + 60)


@pytest.mark.parametrize(("has_diverged", "error"), [(True, DivergedError), (False, RunError)])
def test_a_run_that_stopped_for_good_says_whether_it_diverged(
    tmp_path: Path, has_diverged: bool, error: type[RunError], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A corpus of which too much could not be decoded says nothing of the values: that trial failed."""
    run_files.write_json(f"{tmp_path}/failure.json", {"error": "why", "has_diverged": has_diverged})
    with pytest.raises(error, match=r"^why$") as raised:
        driver.has_ended(str(tmp_path))
    failure = raised.value
    assert type(failure) is error

    def stopped(*_: object, **__: object) -> None:
        raise failure

    reported: list[dict[str, float]] = []
    monkeypatch.setattr(driver, "pretrain", stopped)
    monkeypatch.setattr(sweeps.trials, "report", reported.append)
    base = dataclasses.replace(tiny(), placement=dataclasses.replace(tiny().placement, storage=str(tmp_path)))
    make = functools.partial(run_identity.with_values, base)
    with contextlib.nullcontext() if has_diverged else pytest.raises(RunError, match="why"):
        sweeps.run_trial("t", {}, None, make=make, sweep_name="s", parent="p", server=None)
    assert [line["diverged"] for line in reported] == [1] * has_diverged


def test_the_best_can_be_run_once_more_by_the_command_that_is_told() -> None:
    values = {"optim.lr": 0.1 + 0.2, "masking.top_k": None, "masking.whole_words": True, "placement.use_gpu": False}
    row = row_of(
        Trial(trial_id="a", values=values, highest={wish().metric: 0.5, "step": 1.0}), wish().name, wish().metric
    )
    words = ["tiny", "--optim.num-steps", "20", "--selection.evaluate-every", "10"]  # and evaluated at the rungs
    config = parsing.parse(
        describe([row], wish().name, wish().metric, words, {"selection.evaluate_also": (1, 5)})
        .partition("jobs/pretrain.py ")[2]
        .split()
    ).config
    assert (config.name, config.optim.num_steps, config.optim.lr) == ("s-best", 20, 0.1 + 0.2)
    assert [step for step in range(1, 21) if config.selection.is_due(step)] == [1, 5, 10, 20]
    assert (config.masking.top_k, config.masking.whole_words, config.placement.use_gpu) == (None, True, False)
