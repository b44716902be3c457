"""The downstream jobs, whole: fine-tune, evaluate and repeat, embed and search, export and load, and the table."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from jobs import finetune
from jobs.benchmarks.support.one_process import in_one_process
from jobs.command_line.entry import exit_status
from jobs.corpus.preparation import PrepareConfig, prepare
from jobs.evaluate import main
from jobs.evaluation.cards import Card, read_card
from jobs.evaluation.leaderboard import TableConfig, table
from jobs.evaluation.scoring import EvaluateConfig, evaluate
from jobs.experiments.suite import EvaluateAllConfig, FineTuned, evaluate_all, evaluations
from jobs.inference.hub_folder import ExportConfig, export
from jobs.inference.index import EmbedConfig, embed
from jobs.inference.model import TINY, load
from jobs.inference.query import SearchConfig, search
from jobs.launch.driver import pretrain
from jobs.reports.run_report import PROTOCOLS, refresh_protocols
from jobs.run import recipes, run_files
from jobs.run.config import Placement, PretrainConfig, SelectionConfig
from jobs.run.datasets import CHOICES, DATASETS, MSRVTT_FULL, known_recipes
from jobs.run.recipes import fine_tuning
from jobs.run.run_identity import config_of
from pipeline.corpus.ledger import read_ledger
from pipeline.records import Kind
from pipeline.stream.source import split_rows
from snps3_model import metrics

pytestmark = pytest.mark.ray
NUM_STEPS = 4


def placement(folder: Path) -> Placement:
    return Placement(storage=str(folder / "runs"), num_workers=1, cpus_per_worker=0.5, decode_cpus=1, log_every=2)


def short(config: PretrainConfig, folder: Path, metric: str | None = None) -> PretrainConfig:
    optim = dataclasses.replace(config.optim, num_steps=NUM_STEPS, global_batch=8, warmup_steps=1)
    selection = SelectionConfig(evaluate_every=NUM_STEPS, **({"metric": metric} if metric else {}))
    return dataclasses.replace(config, optim=optim, selection=selection, placement=placement(folder))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("downstream")


@pytest.fixture(scope="module")
def manifest(small_manifest: str) -> str:
    return small_manifest


@pytest.fixture(scope="module")
def run(toy_run: str) -> str:
    """Folder of a run that has seen a few steps."""
    return toy_run


def questions(manifest: str, folder: str) -> dict[str, str]:
    corpus = Path(manifest).parent.parent
    return {
        name: str(corpus / folder / f"{file}.jsonl") for name, file in {"validation": "val", "test": "test"}.items()
    }


@pytest.fixture(scope="module")
def qa_run(folder: Path, manifest: str, run: str) -> str:
    """Folder of a run that was fine-tuned on questions for a few steps, in this process."""
    recipe = fine_tuning(known_recipes()["tiny_qa"], config_of(run), os.path.relpath(run))  # as a person may write it
    files = questions(manifest, "questions")
    train = str(Path(files["test"]).with_name("train.jsonl"))
    task = dataclasses.replace(recipe.task, train=train, temporal=None, **files)
    with in_one_process():
        results = pretrain(short(dataclasses.replace(recipe, name="qa", task=task), folder, recipes.ACCURACY))
    assert 0 <= results["test/accuracy_low"] <= results["test/accuracy"] <= results["test/accuracy_high"] <= 1
    assert {"test/accuracy/colour", "test/accuracy/order", "test/num_asked"} <= results.keys()
    assert protocols_of(str(folder / "runs" / "qa")) == {"question answering on test"}
    return str(folder / "runs" / "qa")


def wish(folder: Path, run: str, **changes: object) -> EvaluateConfig:
    return EvaluateConfig(run=run, placement=placement(folder), **changes)  # type: ignore[arg-type]


def evaluated(folder: Path, run: str, **changes: object) -> Card:
    """Evaluate in this process: the ways through Ray are those of retrieval and of all evaluations."""
    with in_one_process():
        return evaluate(wish(folder, run, **changes))


@pytest.mark.slow
def test_a_recipe_begins_where_the_run_ended_and_with_its_words(run: str, qa_run: str) -> None:
    config = config_of(qa_run)
    assert config.model.initial_weights == os.path.relpath(f"{run}/best/model.safetensors")
    assert Path(qa_run, "tokenizer.json").read_bytes() == Path(run, "tokenizer.json").read_bytes()
    assert len(run_files.read_json(f"{qa_run}/answers.json")) > 5


def protocols_of(run: str) -> set[str]:
    """The cards that a run's report shows."""
    refresh_protocols(run)
    page = Path(run, "report.html").read_text()
    section = page.split(PROTOCOLS[0])[1].split(PROTOCOLS[1])[0]
    return {title.strip() for title in re.findall(r"<h3>(.*?)</h3>", section)}


def test_retrieval_is_scored_and_the_card_repeats_it(
    folder: Path, run: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = f"{run}/evaluation/retrieval-test/card.json"
    own = read_card(path)  # of what the run itself measured at its end
    assert protocols_of(run) == {"retrieval on test"}
    card = evaluate(wish(folder, run, dual_softmax=True))
    assert {name: card.scores[name] for name in own.scores} == pytest.approx(dict(own.scores))
    assert dataclasses.replace(card, protocol=own.protocol, scores=own.scores, date=own.date) == own
    results = run_files.read_json(f"{run}/results.json")
    assert {name: results[name] for name in own.scores} == own.scores
    assert card.num_videos == card.num_queries == 12
    assert read_card(path) == own  # another protocol has a folder of its own
    (path,) = Path(run).glob("evaluation/retrieval-test-*/card.json")
    assert read_card(str(path)) == card
    assert protocols_of(run) == {"retrieval on test"}
    assert "t2v/dual_softmax_r1" in Path(run, "report.html").read_text()
    capsys.readouterr()
    arguments = ["--placement.storage", str(folder / "runs"), "--placement.num-workers", "1"]
    assert exit_status(lambda: main(["--card", str(path), *arguments])) == 0
    assert "every score is that of the card" in capsys.readouterr().out
    assert read_card(str(path)) == card
    assert exit_status(lambda: main(["--card", str(path), "--rerank", "3"])) == 2
    assert "--rerank 3 conflicts with --card" in capsys.readouterr().err


def test_the_released_model_is_scored_though_its_corpus_is_not_here(manifest: str, tmp_path: Path) -> None:
    arguments = [TINY, "--manifest", manifest, "--placement.storage", str(tmp_path / "runs")]
    with pytest.raises(ValueError, match=r"snps3-tiny is the name of a model, .*: set --out"):
        main(arguments)
    with in_one_process():
        assert main([*arguments, "--out", str(tmp_path)]) == 0
    model, rows = load(TINY), split_rows(manifest, "test")[Kind.VIDEO].to_pylist()
    dual = model.dual_scores(
        model.embed_texts([row["captions"][0] for row in rows]), model.embed_videos([row["uri"] for row in rows])
    )
    own = metrics.direction_metrics(dual.numpy(), np.eye(len(rows), dtype=bool), "")
    assert read_card(f"{tmp_path}/card.json").scores["test/t2v/dual_r1"] == pytest.approx(own["r1"])


@pytest.mark.slow
def test_two_stages_over_all_clips_are_exhaustive_and_over_few_ask_less(folder: Path, run: str) -> None:
    every = evaluated(folder, run, out=str(folder / "every"))
    all_again = evaluated(folder, run, rerank=12, out=str(folder / "twelve"))
    few = evaluated(folder, run, rerank=2, out=str(folder / "two"))
    assert all_again.scores["test/t2v/mean_recall"] == pytest.approx(every.scores["test/t2v/mean_recall"])
    with np.load(folder / "two" / "scores.npz", allow_pickle=False) as saved:
        asked = ~np.isnan(saved["cross"])
        assert asked.sum(1).min() >= 2
        assert asked.mean() < 0.5
        assert len(json.loads(str(saved["texts"]))) == 12
    assert few.protocol.rerank == 2


@pytest.mark.slow
def test_choices_are_scored_from_a_run_that_was_never_trained_on_any(folder: Path, manifest: str, run: str) -> None:
    path = questions(manifest, "multiple_choice")["test"]
    card = evaluated(folder, run, task="multiple_choice", questions=path)
    assert card.num_queries == 24
    assert {"test/accuracy", "test/accuracy/random", "test/accuracy/hard"} <= card.scores.keys()


@pytest.mark.slow
def test_questions_are_scored_as_the_run_scored_them_and_unknown_answers_count_as_wrong(
    folder: Path, manifest: str, qa_run: str, tmp_path: Path
) -> None:
    own = read_card(f"{qa_run}/evaluation/question_answering-test/card.json")
    card = evaluated(folder, qa_run)
    results = run_files.read_json(f"{qa_run}/results.json")
    assert card.scores["test/accuracy"] == pytest.approx(results["test/accuracy"])
    assert card.ids_hash == own.ids_hash
    lines = Path(questions(manifest, "questions")["test"]).read_text().splitlines()
    odd = json.dumps(json.loads(lines[0]) | {"label": "a walrus"})
    gone = json.dumps(json.loads(lines[0]) | {"clip_name": "nowhere.mp4"})
    path = tmp_path / "odd.jsonl"
    path.write_text("\n".join([odd, gone]))
    card = evaluated(folder, qa_run, questions=str(path), out=str(tmp_path / "odd"))
    assert (card.num_queries, card.num_missing, card.scores["test/num_outside_list"]) == (1, 1, 1)
    assert card.scores["test/accuracy"] == 0.0


@pytest.mark.slow
def test_questions_of_another_corpus_are_refused(folder: Path, qa_run: str, tmp_path: Path) -> None:
    path = tmp_path / "other.jsonl"
    path.write_text('{"caption": "who ?", "clip_name": "video1", "label": "man"}\n')
    with pytest.raises(ValueError, match="none of them is a clip of"):
        evaluated(folder, qa_run, questions=str(path))


def test_an_exported_model_gives_the_same_vectors_and_scores(run: str, manifest: str, tmp_path: Path) -> None:
    out = export(ExportConfig(run=run, out=str(tmp_path / "model")))
    here, there = load(run), load(out)
    clips = [row["uri"] for row in split_rows(manifest, "test")[Kind.VIDEO].slice(0, 3).to_pylist()]
    texts = ["a red ring rises", "two shapes meet"]
    for one in (here, there):
        videos, asked = one.embed_videos(clips), one.embed_texts(texts)
        assert videos.vectors.shape == (3, 2, 96)
        torch.testing.assert_close(videos.vectors.norm(dim=-1), torch.ones(3, 2))
        assert one.match(asked, videos).shape == one.dual_scores(asked, videos).shape == (2, 3)
    pairs = [
        (here.embed_videos(clips).vectors, there.embed_videos(clips).vectors),
        (here.embed_texts(texts).vectors, there.embed_texts(texts).vectors),
        (
            here.match(here.embed_texts(texts), here.embed_videos(clips)),
            there.match(there.embed_texts(texts), there.embed_videos(clips)),
        ),
    ]
    for own, other in pairs:
        assert (own - other).abs().max() <= 1e-6
    card = Path(out, "README.md").read_text()
    assert "from snps3 import load" in card
    from transformers import AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(out, trust_remote_code=True)(texts[0])["input_ids"]
    assert tokens == here.text.tokenizer.encode(texts[:1])[0].tolist()
    with pytest.raises(ValueError, match="holds a model already"):
        export(ExportConfig(run=run, out=out))


@pytest.mark.filterwarnings("ignore:::mlflow", "ignore:::pandas")  # MLflow's own checks of what it logs
def test_a_registered_model_gives_the_same_vectors_from_mlflow(run: str, folder: Path, tmp_path: Path) -> None:
    import mlflow
    import pandas as pd

    before = dict(os.environ)
    out = export(ExportConfig(run=run, out=str(tmp_path / "model"), register="small"))
    assert dict(os.environ) == before  # MLflow would have the later runs of this process go where this model went
    assert not list(Path(run).parent.rglob("*.pkl"))
    served = mlflow.pyfunc.load_model("models:/small/1")
    vectors = served.predict(pd.DataFrame({"text": ["a red ring rises", "two shapes meet"]}))
    own = load(out).embed_texts(["a red ring rises", "two shapes meet"]).vectors.numpy()
    np.testing.assert_allclose(vectors, own, atol=1e-6)


def test_a_folder_that_lacks_a_tensor_is_refused_with_its_name(run: str, tmp_path: Path) -> None:
    import safetensors.torch

    out = Path(export(ExportConfig(run=run, out=str(tmp_path / "model"))))
    weights = safetensors.torch.load_file(out / "model.safetensors")
    del weights["model.bert.encoder.layer.0.output.dense.weight"]
    safetensors.torch.save_file(weights, out / "model.safetensors")
    with pytest.raises(ValueError, match=r"bert\.encoder\.layer\.0\.output\.dense\.weight"):
        load(str(out))


def test_an_index_answers_goes_on_where_it_was_and_lists_what_it_could_not_read(
    folder: Path, run: str, manifest: str, tmp_path: Path
) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    sources = [Path(row["uri"]) for row in split_rows(manifest, "test")[Kind.VIDEO].to_pylist()]
    for source in sources[:5]:
        (videos / source.name).write_bytes(source.read_bytes())
    (videos / "broken.mp4").write_bytes(b"no video")
    wanted = EmbedConfig(run=run, videos=str(videos), out=str(tmp_path / "index"), videos_per_part=2)
    assert embed(wanted) == {"videos": 6, "embedded": 5, "rejected": 1}
    assert embed(wanted) == {"videos": 6, "embedded": 0, "rejected": 0}
    (videos / sources[5].name).write_bytes(sources[5].read_bytes())
    assert embed(wanted) == {"videos": 7, "embedded": 1, "rejected": 0}
    assert [Path(one.uri).name for one in read_ledger(f"{tmp_path}/index/rejected.parquet")] == ["broken.mp4"]
    found = search(SearchConfig(index=wanted.out, text="a red ring rises", num_results=3))
    model = load(run)
    asked, every = model.embed_texts(["a red ring rises"]), model.embed_videos([str(s) for s in sources[:6]])
    order = model.match(asked, every)[0].argsort(descending=True)[:3].tolist()
    assert [Path(one.uri).name for one in found] == [sources[i].name for i in order]
    with pytest.raises(ValueError, match="another videos"):
        embed(dataclasses.replace(wanted, videos=str(Path(manifest).parent.parent)))


def test_the_table_shows_own_scores_and_says_what_was_not_run(run: str) -> None:
    text = table(TableConfig(runs=(run,)))
    assert "## small, retrieval on test" in text
    assert "| **small** |" in text
    assert "| ours | not run | not run | not run | |" in text
    assert "SNP-S3-VST | 31.5 | 61.3 | 73.2 | published" in text


def everything(folder: Path, run: str, **changes: object) -> EvaluateAllConfig:
    wanted = EvaluateAllConfig(run=run, corpora=str(folder / "corpora"), placement=placement(folder))
    return dataclasses.replace(wanted, **changes)  # type: ignore[arg-type]


def test_all_evaluations_are_planned_and_what_is_not_at_hand_is_named(folder: Path, run: str) -> None:
    planned = {evaluation.name: evaluation for evaluation in evaluations(everything(folder, run, rerank=100))}
    assert len(planned) == len(DATASETS) + 1 + len(known_recipes()) + 1
    at_hand = {name for name, evaluation in planned.items() if not evaluation.obstacles()}
    assert at_hand == {"tiny_retrieval", "tiny_qa", "tiny_multiple_choice"}  # the run's own corpus
    tuned = {name: evaluation for name, evaluation in planned.items() if isinstance(evaluation, FineTuned)}
    assert "msrvtt_qa" in tuned
    for name, evaluation in tuned.items():  # as the command of fine-tuning would have it with these options
        training = evaluation.training()
        assert training.placement.num_workers == evaluation.scoring.placement.num_workers == 1
        assert evaluation.folder == f"{training.placement.storage}/{training.name}"
        words = [name, "--run", run, "--name", training.name, "--placement.storage", str(folder / "runs")]
        typed = finetune.parse([*words, "--data.manifest", training.data.manifest]).config
        assert (typed.model, typed.optim, typed.selection) == (training.model, training.optim, training.selection)
    answers = tuned["msrvtt_qa"]
    assert answers.obstacles()[0].startswith(f"{folder}/corpora/msrvtt_full/")
    assert answers.training().task.train == f"{folder}/corpora/msrvtt_full/train_qa.json"
    assert (planned["msvd_retrieval"].scoring.rerank, answers.scoring.rerank) == (100, None)
    assert "max_positions must be at least 64" in planned["didemo_retrieval"].obstacles()[0]
    assert planned["MSRVTT-MC with small-msrvtt-retrieval"].folder == planned["msrvtt_retrieval"].folder
    assert len(evaluations(everything(folder, run, is_zero_shot_only=True))) == len(DATASETS) + 1


@pytest.mark.slow
def test_real_clips_go_through_retrieval_and_multiple_choice_into_the_table(
    run: str, real_files: Path, tmp_path: Path, local_ray: None, capsys: pytest.CaptureFixture[str]
) -> None:
    captions, root = f"test={real_files / 'annotations' / 'msrvtt_test.jsonl'}", str(real_files / "videos")
    for corpus in ("msrvtt", MSRVTT_FULL):
        out = str(tmp_path / "corpora" / corpus)
        prepare(PrepareConfig(corpus=corpus, root=root, annotations=(captions,), out=out))
    shutil.copy(real_files / "annotations" / CHOICES, out)
    wanted = everything(tmp_path, run, is_zero_shot_only=True, out=str(tmp_path / "table.md"))
    assert evaluate_all(wanted) == []
    text = (tmp_path / "table.md").read_text()
    assert "## MSR-VTT 7K, text to video\n\n| | R@1 | R@5 | R@10 | protocol |" in text
    assert "2 videos, 2 queries" in text
    assert "2 of 1,000 videos: another test set than theirs" in text
    assert "2 of 2,990 questions: another test set than theirs" in text
    capsys.readouterr()
    assert evaluate_all(wanted) == []
    assert capsys.readouterr().out.count(": done") == 2  # not a second time


@pytest.mark.slow
def test_an_evaluation_that_fails_says_why(folder: Path, run: str, tmp_path: Path) -> None:
    broken = tmp_path / "corpora" / "msvd" / "manifest.parquet"
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"no manifest")
    lines = evaluate_all(everything(tmp_path, run, is_zero_shot_only=True, out=str(tmp_path / "table.md")))
    assert len(lines) == 1
    assert lines[0].startswith("msvd retrieval, zero-shot failed: ")
    assert "is no Parquet file" in lines[0]
