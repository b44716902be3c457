"""What every rank does: restore, train, evaluate. Ray starts this function again after a lost worker."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import Enum
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Bool, Float

from cluster.run import Runtime
from jobs.run import run_files
from jobs.tasks import retrieval
from jobs.tasks.tasks import AskingTask, Network, Predicted
from jobs.tracking import telemetry
from jobs.tracking.journal import Journal
from jobs.tracking.mlflow_runs import Tracker
from jobs.training import checkpoints
from jobs.training.ema import averaged
from jobs.training.job import Job
from jobs.training.optimizer import learning_rate
from jobs.training.step import (
    Clock,
    DivergedError,
    RunError,
    TrainState,
    commit,
    make_state,
    non_finite,
    non_finite_error,
    training_steps,
)
from jobs.training.watchdog import Watchdog
from pipeline import storage
from pipeline.corpus.ledger import read_ledger, refuse_above_share, write_ledger
from pipeline.records import Batch, Rejected, Stage
from pipeline.stream.augmentation import draw_augmentation
from pipeline.stream.loader import clip_rows, in_plan_order, rejected_rows, segments
from pipeline.stream.transforms import augment
from pipeline.text.config import MaskingConfig
from snps3_model.loading import initialise
from snps3_model.objective import Pretraining
from snps3_model.visual_weights import load_visual_weights

PROBES = ("validation/t2v/mean_recall", f"validation/{retrieval.MASKED_WORDS}")
"""What runs of any weights and ratios can be compared by."""
PROBE = MaskingConfig(top_k=None, min_masked=1)
"""How the words of evaluation captions are masked, whatever the run trains with: runs can be compared by them."""
STOP_FILE = "stop"
"""A file of this name in the run's folder asks the run to write a checkpoint and end."""
LOOK_SECONDS = 2.0
"""Pause between two looks for that file, and for nodes that are about to go: a look is a request to the run's storage
and a barrier."""


def pretrain_rank(job: Job, runtime: Runtime) -> None:
    """Pre-train from the last committed checkpoint to the end, then evaluate the best weights on the test splits."""
    storage.be_patient(job.config.placement.storage_patience_seconds)
    journal = Journal(job.run_folder, f"rank-{runtime.world.rank}")

    def tell(stood_seconds: float) -> None:
        journal.note("hang", seconds=stood_seconds, limit_seconds=job.config.placement.hang_seconds)
        journal.flush()

    watchdog = Watchdog(job.config.placement.hang_seconds, tell)
    rank = Rank(job, runtime, journal, watchdog.alive)
    try:
        with rank.tracker.machine_watched() if runtime.world.is_first else contextlib.nullcontext():
            run_rank(rank)
    except RunError as error:  # on all ranks alike
        journal.note("failed", error=str(error))
        if runtime.world.is_first:
            told = {"error": str(error), "has_diverged": isinstance(error, DivergedError)}
            run_files.write_json(f"{job.run_folder}/{run_files.FAILURE}", told)
    finally:
        watchdog.stop()
        journal.flush()


def run_rank(rank: Rank) -> None:
    """Train and evaluate, as far as the last checkpoint left something to do."""
    job, world = rank.job, rank.world
    state = rank.restore()
    rank.runtime.open(["validation", *[name for name, _, _ in rank.segments(state.progress.step)[:1]]])
    validation = list(rank.evaluation_batches("validation"))
    rank.say(f"{sum(p.numel() for p in state.network.parameters()) / 1e6:.2f} M parameters, {world.size} ranks")
    if not state.progress.is_finished:
        rank.train(state, validation)
    if state.progress.is_finished:
        best = f"{job.run_folder}/best/{run_files.WEIGHTS}"
        checkpoints.load_weights(storage.read_bytes(best), state.network)
        for name in ("test", "temporal"):
            if name in job.sources:
                with rank.clock("evaluation"):
                    rank.save_scores(name, state.network)
        if world.is_first:
            run_files.write_json(f"{job.run_folder}/{run_files.SECONDS}", rank.clock.seconds)
    rank.write_rejected()


class Wish(Enum):
    """What a look may find."""

    NONE = "none"
    COMMIT = "commit"
    STOP = "stop"


class Rank:
    """One rank of a run, with what it has to keep between steps."""

    def __init__(
        self, job: Job, runtime: Runtime, journal: Journal | None = None, alive: Callable[[], None] = lambda: None
    ) -> None:
        self.job, self.runtime, self.world, self.config = job, runtime, runtime.world, job.config
        self.journal, self.alive = journal or Journal(job.run_folder, f"rank-{runtime.world.rank}"), alive
        self.tracker = Tracker(job.tracking_uri, job.tracking_run_id)
        self.rejected: list[Rejected] = []
        self.num_seen = self.num_retries = 0
        self.last_look_seconds = float("-inf")
        self.has_seen_preemption = False
        self.clock = Clock()

    def say(self, line: str) -> None:
        """A line of progress, from the first rank only."""
        if self.world.is_first:
            sys.stderr.write(line + "\n")  # Ray Train shows what is printed twice
            sys.stderr.flush()

    def restore(self) -> TrainState:
        """The state of the last committed checkpoint, or a new one from the seed."""
        config = self.config
        torch.manual_seed(config.seed)
        with self.runtime.restored() as folder:
            network = self.network(is_new=folder is None)
            state = make_state(network, self.world.wrap(network), config.optim)
            if folder:
                state.progress = checkpoints.load(folder, network, state.optimizer, state.average)
                self.clock = Clock(state.progress.seconds)
                self.say(f"continuing at step {state.progress.step} of {config.optim.num_steps}")
        self.journal.note("start", step=state.progress.step, num_ranks=self.world.size, device=str(self.world.device))
        return state

    def network(self, *, is_new: bool) -> Network:
        """The network with what it is trained on; a new one has the first weights that its configuration names."""
        config, tokenizer, world = self.config, self.job.language.tokenizer, self.world
        model = self.job.language.network()
        if is_new:
            earlier = config.model.initial_weights
            content = storage.read_bytes(earlier) if earlier else None
            for report in initialise(model, config.model, content):
                self.say(str(report))
            if path := config.model.visual.pretrained:
                self.say(str(load_visual_weights(model.visual, path)))
        network = self.job.task.network(model, config, world.gather, world.rank, tokenizer.special.mask)
        return network.to(world.device)

    def batches(self, name: str, tables: Iterator[pa.Table], start_step: int) -> Iterator[Batch]:
        """This rank's shares of the steps from `start_step` on of the source `name`, as the network is to see them."""
        source, stage = self.job.sources[name], Stage.TRAIN if name == "train" else Stage.EVALUATE
        shares = in_plan_order(
            tables,
            start_step=start_step,
            rank=self.world.rank,
            num_ranks=self.world.size,
            share=source.share(self.world.size),
        )
        for step, table in enumerate(shares, start_step):
            self.alive()
            self.rejected += rejected_rows(table, stage)
            with self.clock("plan"):
                epoch = source.planned(step).epoch
            rows = clip_rows(table, source=source, epoch=epoch)
            self.num_seen += int((table["clip_id"].to_numpy() >= 0).sum())
            self.num_retries += sum(table["num_retries"].to_pylist())
            language = self.job.language
            batch = self.job.task.batch(rows, language) if stage == Stage.TRAIN else language.batch(rows, PROBE)
            drawn = draw_augmentation(
                rows, self.config.data.augmentation, seed=self.config.seed, is_training=stage == Stage.TRAIN
            )
            yield augment(batch.to(self.world.device), drawn)

    def training_batches(self, start_step: int) -> Iterator[Batch]:
        """The batches of the run from `start_step` to its end, over all segments of the data."""
        for name, start, _ in self.segments(start_step):
            tables = self.runtime.tables(name, self.job.sources["train"].share(self.world.size))
            yield from self.batches("train", tables, max(start, start_step))

    def segments(self, start_step: int) -> list[tuple[str, int, int]]:
        """Name and step range of each dataset that is left of the run from `start_step` on."""
        num_steps, most_ranks = self.config.optim.num_steps, self.config.placement.most_workers
        return [one for one in segments(self.job.sources["train"], num_steps, most_ranks) if one[2] > start_step]

    def evaluation_batches(self, name: str) -> Iterator[Batch]:
        """One pass over an evaluation split."""
        source = self.job.sources[name]
        return self.batches(name, self.runtime.tables(name, source.share(self.world.size)), 0)

    def train(self, state: TrainState, validation: list[Batch]) -> None:
        """Steps until the last one, early stopping or a request to stop; the latter leaves the run unfinished."""
        config, progress = self.config, state.progress
        meter = Meter(progress.step, self.clock, config.optim)
        batches = self.training_batches(progress.step)
        for metrics, batch in training_steps(state, batches, config, rank=self.world.rank, clock=self.clock):
            self.alive()
            step = progress.step
            is_last = step == config.optim.num_steps
            is_due = is_last or config.selection.is_due(step)
            with self.clock("look"):
                is_time_to_look = not is_due and self.world.any(self.world.is_first and self.is_time_to_look())
                wish = self.look() if is_time_to_look else Wish.NONE
            if is_due or wish != Wish.NONE or step % config.placement.log_every == 0 or step == meter.first_step + 1:
                self.log(meter, metrics, batch, step)
            if is_due:
                with self.clock("evaluation"), averaged(state.network, state.average):
                    is_last |= self.validate(state, validation)
                progress.is_finished = is_last
            if is_due or wish != Wish.NONE:
                self.commit(state, (progress.probes or {}) if is_due else {})
            if wish == Wish.STOP:
                self.say(f"stopped on request at step {step}; the same command goes on from here")
            if is_last or wish == Wish.STOP:
                return

    def is_time_to_look(self) -> bool:
        """True once in a while."""
        now = time.monotonic()
        if now - self.last_look_seconds < LOOK_SECONDS:
            return False
        self.last_look_seconds = now
        return True

    def look(self) -> Wish:
        """What somebody wants of the run: a person that it stops, the cloud that it is prepared to lose a node."""
        is_asked = self.world.is_first and storage.exists(f"{self.job.run_folder}/{STOP_FILE}")
        if self.world.any(is_asked):
            return Wish.STOP
        if self.has_seen_preemption or not self.runtime.is_preempted():
            return Wish.NONE
        self.has_seen_preemption = True
        self.say("a node of this run is about to be taken away: writing a checkpoint")
        self.journal.note("preempted")
        return Wish.COMMIT

    def log(self, meter: Meter, metrics: dict[str, torch.Tensor], batch: Batch, step: int) -> None:
        """The one place that waits for the device: losses, speed, and what was rejected so far.

        RunError, on all ranks, when there is no use in going on.
        """
        values = {name: value.item() for name, value in metrics.items()}
        with self.clock("telemetry"):
            self.tell(meter, values, batch, step)

    def tell(self, meter: Meter, values: dict[str, float], batch: Batch, step: int) -> None:
        """`values` and the counts of all ranks, to MLflow, Prometheus, the journal and the terminal."""
        wrong = non_finite(values)
        own = [[len(self.rejected), self.num_seen, self.num_retries, bool(wrong)]]
        counted = self.world.gather(torch.tensor(own, device=self.world.device)).sum(0).tolist()
        num_rejected, num_seen, num_retries, is_wrong = counted
        if is_wrong:
            clip_ids = self.world.gather_objects(batch.clip_ids[batch.weight > 0.5].tolist())
            raise non_finite_error(wrong or ["a metric of another rank"], step, clip_ids, self.job.run_folder)
        self.refuse_too_many(num_rejected, num_seen)
        counts = {"rejected": num_rejected, "store_retries": num_retries}
        speed = meter.read(step)
        values |= speed | counts | {"lr": meter.rate(step)}
        memory = {"memory_mib": telemetry.memory_mib(), "gpu_memory_mib": telemetry.gpu_memory_mib(self.world.device)}
        self.journal.note("step", step=step, loss=values["loss/total"], **speed, **memory, **counts)
        telemetry.publish(
            speed | memory | counts | {"step": step, "loss": values["loss/total"]}, self.config.name, self.world.rank
        )
        if self.world.is_first:
            self.tracker.log(values, step)
            self.say(meter.line(step, values))

    def refuse_too_many(self, num_rejected: int, num_seen: int) -> None:
        """Stops the run, after the ledger was written, when too large a share of the clips could not be decoded."""
        share = self.config.data.max_rejected_share
        if num_rejected <= share * num_seen or num_rejected < 3:
            return
        rejected = self.world.gather_objects(self.rejected)
        path = f"{self.job.run_folder}/ledger.parquet"
        if self.world.is_first:
            write_ledger(unique(rejected), path)
        try:
            refuse_above_share(rejected, num_seen, share, path)
        except ValueError as error:
            raise RunError(str(error)) from error

    def validate(self, state: TrainState, validation: list[Batch]) -> bool:
        """The task's metrics on the validation split; True if the run should stop early. Keeps the best weights."""
        progress, selection = state.progress, self.config.selection
        results = self.measure(validation, state.network)
        progress.score = results[selection.metric]
        progress.probes = {name: results[name] for name in (*PROBES, selection.metric) if name in results}
        if progress.score > progress.best_score:
            progress.best_score, progress.best_step, progress.num_stale = progress.score, progress.step, 0
            if self.world.is_first:
                checkpoints.save_best(self.job.run_folder, state.network, progress)
        else:
            progress.num_stale += 1
        if self.world.is_first:
            self.tracker.log(results, progress.step)
        self.say(
            f"step {progress.step}: {self.job.task.summary(results)}, "
            f"{selection.metric} {progress.score:.3f}, best {progress.best_score:.3f} at step {progress.best_step}"
        )
        return selection.patience is not None and progress.num_stale >= selection.patience

    def measure(self, validation: list[Batch], network: Network) -> dict[str, float]:
        """The task's metrics on the validation split."""
        if isinstance(self.job.task, AskingTask):
            return self.job.task.results(self.answers(validation, network, name="validation"), "validation")
        scored = self.score(validation, network, name="validation")
        relevant = self.relevant(scored.clip_ids, "validation")
        rerank = self.config.selection.rerank
        results = retrieval.retrieval_results(scored, relevant, "validation", rerank=rerank)
        if self.config.objective.masked_words_cross:
            filled = retrieval.masked_word_accuracy(network.model, validation, self.world.gather)
            results[f"validation/{retrieval.MASKED_WORDS}"] = filled
        return results

    def answers(self, batches: list[Batch], network: Network, *, name: str) -> list[Predicted]:
        """What is answered to the questions about all ranks' clips."""
        assert isinstance(self.job.task, AskingTask), "only such a task asks"
        return self.world.gather_objects(list(self.job.task.predictions(network, batches, self.job.language, name)))

    def score(self, batches: list[Batch], network: Network, *, name: str) -> retrieval.Scored:
        """Both scores of a split's pairs, the cross one of all or of the first; within groups for the temporal test."""
        assert isinstance(network, Pretraining), "the other tasks ask"
        gallery = retrieval.encode_clips(network.model, batches, self.world.gather)
        clip_ids = gallery.clip_ids.cpu().numpy()
        captions = self.captions(clip_ids, name)
        if name != "temporal":
            k = self.config.selection.rerank
            first = functools.partial(retrieval.first_of_both, k=k) if k else None
            return self.pair_scores(network, gallery, captions, asked=first)
        groups = self.job.sources[name].groups(clip_ids)
        within = groups[:, None] == groups[None, :]
        scored = self.pair_scores(network, gallery, captions, asked=lambda _: within)
        return dataclasses.replace(scored, cross=np.where(within, scored.cross, 0.0))

    def pair_scores(
        self,
        network: Pretraining,
        gallery: retrieval.Gallery,
        texts: Sequence[str],
        asked: Callable[[Float[np.ndarray, "Q N"]], Bool[np.ndarray, "Q N"]] | None = None,
    ) -> retrieval.Scored:
        """Both scores of texts and clips, of which each rank computes a share: the dual one of all pairs, the cross
        one of those that `asked` chooses by it."""
        world = self.world
        share = {"rank": world.rank, "num_ranks": world.size}
        ids, mask = (part.to(world.device) for part in self.job.language.tokens(texts))
        queries = retrieval.encode_texts(network.model, ids, mask, world.gather, **share)
        return retrieval.score(
            network.model,
            queries,
            gallery,
            world.gather,
            **share,
            temperature=network.temperature,
            asked=asked,
            alive=self.alive,
        )

    def captions(self, clip_ids: np.ndarray, name: str) -> list[str]:
        """The caption that each clip is queried by: its first."""
        return [captions[0] for captions in self.all_captions(clip_ids, name)]

    def all_captions(self, clip_ids: np.ndarray, name: str) -> list[list[str]]:
        """Those of each clip of a split."""
        rows = self.job.sources[name].rows()
        captions = dict(zip(rows["clip_id"].to_pylist(), rows["captions"].to_pylist(), strict=True))
        return [captions[clip_id] for clip_id in clip_ids.tolist()]

    def relevant(self, clip_ids: np.ndarray, name: str) -> Bool[np.ndarray, "N N"]:
        """True where the caption that queries for one clip is a caption of another, or the same."""
        every = self.all_captions(clip_ids, name)
        return retrieval.true_of([captions[0] for captions in every], every)

    def commit(self, state: TrainState, probes: Mapping[str, float]) -> None:
        """A checkpoint of where the run is. `probes`: what was measured there, if anything."""
        with self.clock("checkpoint"):
            state.progress.seconds = self.clock.seconds
            commit(state, self.runtime, probes)
            self.write_rejected()
            self.journal.note("checkpoint", step=state.progress.step)
            self.journal.flush()

    def write_rejected(self) -> None:
        """The ledger of the run: every clip that failed since this group of workers started, and before it."""
        rejected = self.world.gather_objects(self.rejected)
        if not self.world.is_first:
            return
        path = f"{self.job.run_folder}/ledger.parquet"
        write_ledger(unique(rejected, path), path)

    def save_scores(self, name: str, network: Network) -> None:
        """Answers, or scores, captions, thumbnails and filled-in words of a test split, as files for the report."""
        batches = list(self.evaluation_batches(name))
        if isinstance(self.job.task, AskingTask):
            if name in self.job.task.asked:
                answers = self.answers(batches, network, name=name)
                if self.world.is_first:
                    path = f"{self.job.run_folder}/evaluation/{name}.json"
                    run_files.write_json(path, [dataclasses.asdict(answer) for answer in answers])
            return
        scored = self.score(batches, network, name=name)
        frames = self.world.gather_objects([retrieval.thumbnails([batch]) for batch in batches])
        words = retrieval.fill_masked_words(network.model, batches[0])
        if self.world.is_first:
            order = [part for step in zip(*chunks(frames, self.world.size), strict=True) for part in step]
            retrieval.save_scores(
                f"{self.job.run_folder}/evaluation/{name}.npz",
                scored,
                texts={"captions": self.captions(scored.clip_ids, name), "filled": words},
                groups=self.job.sources[name].groups(scored.clip_ids),
                relevant=self.relevant(scored.clip_ids, name),
                thumbnails=np.concatenate(order),
                token_ids=batches[0].masked_token_ids.cpu().numpy(),
            )


def unique(rejected: list[Rejected], path: str | None = None) -> list[Rejected]:
    """Each clip once per stage and reason, together with what already stands in the ledger at `path`."""
    before = read_ledger(path) if path and storage.exists(path) else []
    return list({(one.clip_id, one.stage, one.reason): one for one in before + rejected}.values())


def chunks(values: list[Any], count: int) -> list[list[Any]]:
    """`values` in `count` equal runs."""
    size = len(values) // count
    return [values[start * size : (start + 1) * size] for start in range(count)]


class Meter:
    """Speed since the start of this group of workers, and over the last logged steps."""

    def __init__(self, first_step: int, clock: Clock, optim: Any) -> None:
        self.first_step, self.clock, self.optim = first_step, clock, optim
        self.start = time.perf_counter()
        self.last_step, self.last_seconds = first_step, dict(clock.seconds)

    def rate(self, step: int) -> float:
        """Learning rate at `step`."""
        return learning_rate(step, self.optim)

    def read(self, step: int) -> dict[str, float]:
        """Clips per second, step and data-wait seconds per step, since the last reading."""
        seconds, num_steps = dict(self.clock.seconds), max(1, step - self.last_step)
        spent = {name: seconds.get(name, 0.0) - self.last_seconds.get(name, 0.0) for name in ("data_wait", "step")}
        elapsed = max(1e-9, spent["data_wait"] + spent["step"])
        self.last_step, self.last_seconds = step, seconds
        return {
            "clips_per_second": num_steps * self.optim.global_batch / elapsed,
            "data_wait_share": spent["data_wait"] / elapsed,
            "seconds_per_step": elapsed / num_steps,
        }

    def line(self, step: int, values: dict[str, float]) -> str:
        """A line for people: where the run is, how it does, how long it will take."""
        per_step = (time.perf_counter() - self.start) / max(1, step - self.first_step)
        left = int(per_step * (self.optim.num_steps - step))
        return (
            f"step {step}/{self.optim.num_steps} · loss {values['loss/total']:.3f} · "
            f"{values['clips_per_second']:.0f} clips/s · waiting for data {100 * values['data_wait_share']:.0f} % · "
            f"{left // 60}:{left % 60:02d} left"
        )
