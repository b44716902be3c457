"""Buckets: the same as folders where all is well, and clear words where it is not.

Tests with the fixture `bucket` need a real S3 server; the others need none.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pytest

from jobs.benchmarks.support.faulty_store import Faults, faulty_store
from pipeline import storage
from pipeline.corpus import fetching
from pipeline.corpus.fetching import fetch
from pipeline.corpus.ledger import read_ledger, write_ledger
from pipeline.corpus.manifest import checksum, clip_id, make_manifest, write_manifest
from pipeline.decode.clip_media import fetch_part
from pipeline.decode.codec import encode_video
from pipeline.decode.config import Limits
from pipeline.offline.stages import KNOWN, probe_batch
from pipeline.records import DecodeError, Kind, Reason, Rejected, Stage
from pipeline.stream.epoch_plan import Plan
from pipeline.stream.loader import ClipSource, decode_block
from pipeline.stream.source import split_clips
from pipeline.text.tokenizer import SPECIAL_TOKENS, Tokenizer

NOBODY = "http://127.0.0.1:9"
"""The discard port: nobody answers."""
SECRET = "a-secret-that-appears-nowhere"
NUM_CLIPS = 12

At = Callable[..., None]


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Iterator[At]:
    """From its call on, stores are reached with these variables, and asked again without a pause."""
    s3 = fsspec.get_filesystem_class("s3")

    def go(**variables: str) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        s3.clear_instance_cache()

    monkeypatch.setattr(storage, "FIRST_PAUSE_SECONDS", 0.0)
    storage.pop_retry_count()
    yield go
    monkeypatch.undo()
    s3.clear_instance_cache()


@pytest.fixture
def nobody(at: At, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that does not answer."""
    monkeypatch.setattr(storage, "TRIES", 2)
    at(AWS_ENDPOINT_URL=NOBODY, AWS_ACCESS_KEY_ID="someone", AWS_SECRET_ACCESS_KEY=SECRET)


def video_row(root: str, number: int, data: bytes = b"") -> dict[str, Any]:
    """The manifest row of a small video, as prepare would write it."""
    return {
        "clip_id": clip_id("tiny", f"{number}.mp4"),
        "uri": f"{root}/{number}.mp4",
        "captions": [f"clip {number}"],
        "kind": Kind.VIDEO.value,
        "split": "train",
        "width": 32,
        "height": 16,
        "fps": 8.0,
        "duration_seconds": 1.0,
        "num_frames": 8,
        "bytes": len(data),
        "checksum": checksum(data),
    }


def write_clips(root: str) -> ClipSource:
    """Twelve small videos and their manifest below `root`."""
    rows = []
    for number in range(NUM_CLIPS):
        frames = np.full((8, 16, 32, 3), 20 * number, np.uint8)
        data = encode_video(frames, fps=8)
        storage.write_bytes_atomic(f"{root}/{number}.mp4", data)
        rows.append(video_row(root, number, data))
    write_manifest(make_manifest("tiny", root, rows), f"{root}/manifest.parquet")
    return source_of(f"{root}/manifest.parquet")


def source_of(manifest_path: str) -> ClipSource:
    return ClipSource(
        manifest_path=manifest_path,
        split="train",
        num_frames=2,
        frame_size_px=16,
        decoder="decord",
        seed=0,
        plan=Plan(seed=0, num_videos=NUM_CLIPS, num_images=0, global_batch=4),
        batch=4,
    )


def epoch(source: ClipSource) -> pa.Table:
    """The rows of one epoch, as a decode worker makes them."""
    blocks = [
        decode_block(pa.table({"id": [number]}), source=source, start_step=0, stop_step=3, num_ranks=1)
        for number in range(source.num_groups(3, num_ranks=1))
    ]
    return pa.concat_tables(blocks)


def what_is_seen(root: str) -> list[object]:
    """The results of reading, listing and removing a few files below `root`."""
    files = {"a.bin": b"0123456789", "b/1.bin": b"", "b/2.bin": b"x" * 100_000, ".hidden": b"", "b/.cache/3": b"y"}
    for name, data in files.items():
        storage.write_bytes_atomic(f"{root}/{name}", data)
    before = storage.file_versions(root)
    storage.write_bytes_atomic(f"{root}/a.bin", b"98765")
    after = storage.file_versions(root)
    seen: list[object] = [sorted(before), [name for name in before if before[name] != after[name]]]
    seen += [storage.list_files(root), storage.list_files(f"{root}/b"), storage.list_files(f"{root}/none")]
    seen += [storage.read_bytes(f"{root}/{name}") for name in files]
    seen += [storage.read_bytes(f"{root}/a.bin", 1, 3), storage.read_bytes(f"{root}/b/2.bin", 99_990)]
    seen += [before["b/2.bin"].split()[0], before["b/1.bin"].split()[0]]
    storage.remove(f"{root}/b/1.bin")
    storage.remove(f"{root}/b/1.bin")
    names = ("a.bin", "b", "b/1.bin", "b/2.bin", "none")
    seen += [(storage.exists(f"{root}/{name}"), storage.is_folder(f"{root}/{name}")) for name in names]
    lost = [Rejected(clip_id=1, uri="u", stage=Stage.TRAIN, reason=Reason.UNAVAILABLE, detail="503")]
    write_ledger(lost, f"{root}/ledger.parquet")
    seen += read_ledger(f"{root}/ledger.parquet")
    storage.write_bytes_atomic(f"{root}/bert/vocab.txt", "\n".join(SPECIAL_TOKENS).encode())
    seen += Tokenizer.load(f"{root}/bert").pieces
    for check in (storage.check_readable, storage.check_writable):
        check(root)
    return [*seen, storage.list_files(root)]


def test_a_bucket_and_a_folder_are_the_same_to_everyone(bucket, tmp_path):
    assert what_is_seen(f"{bucket}/files") == what_is_seen(str(tmp_path / "files"))


def test_what_another_process_has_written_is_seen_at_once(bucket):
    path = f"{bucket}/run/stop"
    assert not storage.exists(path)
    assert storage.list_files(f"{bucket}/run") == []
    fsspec.filesystem("s3", use_listings_cache=False, skip_instance_cache=True).pipe_file(path, b"")
    assert storage.exists(path)
    assert storage.list_files(f"{bucket}/run") == ["stop"]


def test_an_epoch_through_a_store_with_faults_is_the_epoch_of_a_store_without(bucket, at):
    source = write_clips(bucket)
    whole = epoch(source)
    assert whole["weight"].to_pylist() == [1.0] * NUM_CLIPS
    assert sum(whole["num_retries"].to_pylist()) == 0
    names = storage.list_files(bucket)
    with faulty_store(os.environ["AWS_ENDPOINT_URL"], Faults(slow_down_every=3, cut_every=6)) as store:
        at(AWS_ENDPOINT_URL=store.endpoint)
        faulty = epoch(source)
        assert storage.list_files(bucket) == names
        num_listing = storage.pop_retry_count()
    assert faulty.drop_columns("num_retries").equals(whole.drop_columns("num_retries"))
    assert sum(faulty["num_retries"].to_pylist()) + num_listing == store.counts["slow_down"] + store.counts["cut"]
    assert min(store.counts["slow_down"], store.counts["cut"]) > 1


@pytest.mark.parametrize(
    ("faults", "answer"),
    [(Faults(slow_down_every=1), "SlowDown for GetObject"), (Faults(cut_every=1), "ClientPayloadError")],
)
def test_a_store_is_asked_a_stated_number_of_times_and_then_the_sample_is_unavailable(bucket, at, faults, answer):
    data = b"0123456789" * 1000
    storage.write_bytes_atomic(f"{bucket}/0.mp4", data)
    storage.write_bytes_atomic(f"{bucket}/elsewhere", data)
    with faulty_store(os.environ["AWS_ENDPOINT_URL"], faults) as store:
        at(AWS_ENDPOINT_URL=store.endpoint)
        for limits in ((None, None), (5, 5000)):
            store.counts.clear()
            with pytest.raises(storage.UnavailableError, match=f"failed {storage.TRIES} times, at last with {answer}"):
                storage.read_bytes(f"{bucket}/0.mp4", *limits)
            assert store.counts.total() == storage.TRIES
        assert storage.pop_retry_count() == 2 * (storage.TRIES - 1)
        (finding,) = probe_batch(known_clips(bucket), "decord", Limits()).to_pylist()
    assert finding["reason"] == Reason.UNAVAILABLE
    assert f"{bucket}/0.mp4" in finding["detail"]


def test_bytes_behind_the_end_are_none_and_an_empty_file_is_empty(bucket, at):
    at()
    storage.write_bytes_atomic(f"{bucket}/0.mp4", b"")
    storage.write_bytes_atomic(f"{bucket}/ten", b"0123456789")
    assert [storage.read_bytes(f"{bucket}/ten", start, start + 4) for start in (0, 8, 10, 99)] == [
        b"0123",
        b"89",
        b"",
        b"",
    ]
    with pytest.raises(DecodeError, match=r"wrong_checksum: .* has become shorter"):
        fetch_part(f"{bucket}/ten", 8, 12)
    (finding,) = probe_batch(known_clips(bucket), "pyav", Limits()).to_pylist()
    assert finding["reason"] == Reason.EMPTY
    assert storage.pop_retry_count() == 0


def test_a_long_video_in_a_bucket_is_prepared_and_trained_on_in_parts(bucket, at, monkeypatch):
    """Faults on the way change nothing; what is fetched is an index and less than the file for each clip."""
    monkeypatch.setattr(fetching, "IN_MEMORY_BYTES", 20_000)
    frames = np.random.default_rng(0).integers(0, 256, (200, 8, 12, 3), np.uint8).repeat(8, 1).repeat(8, 2)
    data = encode_video(frames, fps=8, gop=8)
    storage.write_bytes_atomic(f"{bucket}/0.mp4", data)
    known = [known_clips(bucket).to_pylist()[0] | {"clip_id": n, "start_seconds": 2.0 * n} for n in range(12)]
    known = [row | {"end_seconds": row["start_seconds"] + 2.0} for row in known]
    endpoint = os.environ["AWS_ENDPOINT_URL"]
    with faulty_store(endpoint, Faults(slow_down_every=5, cut_every=7)) as store:
        at(AWS_ENDPOINT_URL=store.endpoint)
        clips = pa.Table.from_pylist(known, schema=KNOWN)
        rows = probe_batch(clips, "pyav", Limits(), f"{bucket}/packets").drop_columns(["reason", "detail"]).to_pylist()
        assert store.num_bytes < 4 * len(data)  # checksum, index, clips, and what was cut short
        source = dataclasses.replace(source_of(write_rows(bucket, rows)), decoder="pyav")
        store.num_bytes = 0
        by_parts = epoch(source)
        assert 0 < store.num_bytes < 2.5 * len(data)
        assert store.counts["cut"] > 1
    at(AWS_ENDPOINT_URL=endpoint)
    write_rows(bucket, [row | {"packets": None} for row in rows])
    split_clips.cache_clear()
    assert by_parts.drop_columns("num_retries").equals(epoch(source).drop_columns("num_retries"))
    assert set(by_parts["weight"].to_pylist()) == {1.0}


def write_rows(bucket: str, rows: list[dict[str, Any]]) -> str:
    """Write a manifest and return its path."""
    write_manifest(make_manifest("tiny", bucket, rows), f"{bucket}/manifest.parquet")
    return f"{bucket}/manifest.parquet"


def test_distant_files_are_fetched_while_those_before_them_are_used(bucket, at):
    write_clips(bucket)
    with faulty_store(os.environ["AWS_ENDPOINT_URL"], Faults(latency_seconds=0.1)) as store:
        at(AWS_ENDPOINT_URL=store.endpoint)
        paths = [f"{bucket}/{name}" for name in (*(f"{number}.mp4" for number in range(NUM_CLIPS)), "none")]
        reads = storage.prefetched((path, partial(fetch, path)) for path in paths)
        first = next(reads)
        assert first() == storage.read_bytes(f"{bucket}/0.mp4")
        assert 1 < store.most_at_once <= storage.NUM_PREFETCHED + 1
        *others, missing = reads
        assert [read() for read in others][-1] == storage.read_bytes(f"{bucket}/{NUM_CLIPS - 1}.mp4")
        with pytest.raises(DecodeError, match=f"missing: {bucket}/none does not exist"):
            missing()


def known_clips(root: str) -> pa.Table:
    """One clip as it is known before its file is opened."""
    return pa.Table.from_pylist([{name: video_row(root, 0).get(name) for name in KNOWN.names}], schema=KNOWN)


def test_a_store_that_does_not_answer_costs_samples_and_ends_calls(nobody, tmp_path):
    with pytest.raises(storage.UnavailableError, match=r"s3://bucket/x: .* check AWS_ENDPOINT_URL"):
        storage.read_bytes("s3://bucket/x")
    rows = [video_row("s3://bucket", number) for number in range(NUM_CLIPS)]
    write_manifest(make_manifest("tiny", "s3://bucket", rows), str(tmp_path / "manifest.parquet"))
    clips = epoch(source_of(str(tmp_path / "manifest.parquet")))
    assert set(clips["reason"].to_pylist()) == {Reason.UNAVAILABLE}
    assert sum(clips["num_retries"].to_pylist()) == NUM_CLIPS + 1  # and one of the call above
    (finding,) = probe_batch(known_clips("s3://bucket"), "decord", Limits()).to_pylist()
    assert finding["reason"] == Reason.UNAVAILABLE


def test_a_vanished_clip_is_missing_at_once(bucket, at):
    source = write_clips(bucket)
    storage.remove(f"{bucket}/7.mp4")
    at()
    clips = epoch(source)
    (lost,) = [row for row in clips.to_pylist() if row["reason"]]
    assert (lost["uri"], lost["reason"]) == (f"{bucket}/7.mp4", Reason.MISSING)
    assert sum(clips["num_retries"].to_pylist()) == 0


@pytest.mark.parametrize("variable", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_a_wrong_key_is_an_error_of_the_run_and_named_without_the_secret(bucket, at, variable):
    source = write_clips(bucket)
    epoch(source)  # the manifest is known
    at(**{variable: SECRET})
    calls: list[Callable[[], object]] = [
        lambda: storage.read_bytes(f"{bucket}/0.mp4"),
        lambda: storage.list_files(bucket),
        lambda: storage.write_bytes_atomic(f"{bucket}/new", b""),
        lambda: storage.exists(f"{bucket}/0.mp4"),
        lambda: epoch(source),
    ]
    for call in calls:
        with pytest.raises(PermissionError, match=f"no permission for {bucket}.* check .*{variable}") as caught:
            call()
        assert SECRET not in str(caught.value)
    assert storage.pop_retry_count() == 0


def deny(bucket: str, action: str, resource: str) -> None:
    """A policy of the bucket that takes one right away from everybody."""
    name = bucket.removeprefix("s3://")
    statement = {"Effect": "Deny", "Principal": "*", "Action": action, "Resource": f"arn:aws:s3:::{name}{resource}"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    fsspec.filesystem("s3").call_s3("put_bucket_policy", Bucket=name, Policy=policy)


def test_a_missing_right_is_named_with_the_call_that_wanted_it(bucket):
    storage.write_bytes_atomic(f"{bucket}/closed/a", b"x")
    cases: list[tuple[str, str, Callable[[], object], str]] = [
        (
            "s3:GetObject",
            "/closed/*",
            lambda: storage.read_bytes(f"{bucket}/closed/a"),
            rf"GetObject was refused \(AccessDenied\); give this key the right s3:GetObject on {bucket}/closed/a, and "
            f"s3:ListBucket on {bucket},",
        ),
        (
            "s3:GetObject",
            "/closed/*",
            lambda: storage.check_readable(f"{bucket}/closed/a"),
            "HeadObject .* s3:GetObject",
        ),
        (
            "s3:ListBucket",
            "",
            lambda: storage.list_files(f"{bucket}/closed"),
            rf"ListObjectsV2 was refused .*; give this key the right s3:ListBucket on {bucket}; "
            "where the requester pays, set FSSPEC_S3_REQUESTER_PAYS=true$",
        ),
        (
            "s3:PutObject",
            "/closed/*",
            lambda: storage.check_writable(f"{bucket}/closed"),
            f"PutObject was refused .* s3:PutObject on {bucket}/closed$",
        ),
        (
            "s3:DeleteObject",
            "/closed/*",
            lambda: storage.remove(f"{bucket}/closed/a"),
            f"s3:DeleteObject on {bucket}/closed/a$",
        ),
    ]
    try:
        for action, resource, call, words in cases:
            deny(bucket, action, resource)
            with pytest.raises(PermissionError, match=words):
                call()
    finally:
        fsspec.filesystem("s3").call_s3("delete_bucket_policy", Bucket=bucket.removeprefix("s3://"))
    storage.check_writable(f"{bucket}/closed")


def test_a_bucket_that_is_not_there_is_named(bucket):
    missing = f"{bucket}-of-nobody"
    calls = (storage.check_readable, storage.check_writable, storage.list_files, storage.read_bytes)
    for call in calls:
        with pytest.raises(FileNotFoundError, match=f"check that there is a bucket '{missing.removeprefix('s3://')}'"):
            call(missing if call != storage.read_bytes else f"{missing}/x")


def test_a_store_that_wants_no_checksums_is_named_for_every_upload(bucket, at):
    with faulty_store(os.environ["AWS_ENDPOINT_URL"], Faults(put_refusal="411 MissingContentLength")) as store:
        at(AWS_ENDPOINT_URL=store.endpoint)
        for write in (lambda: storage.write_bytes_atomic(f"{bucket}/x", b"x"), lambda: storage.check_writable(bucket)):
            with pytest.raises(ConnectionError, match=r"HTTP 411.* AWS_REQUEST_CHECKSUM_CALCULATION=when_required"):
                write()


@pytest.mark.parametrize(("url", "package"), [("gs://bucket/x", "gcsfs"), ("az://container/x", "adlfs")])
def test_a_store_whose_client_is_not_installed_is_refused_with_its_package(url, package):
    if importlib.util.find_spec(package):
        pytest.skip(f"{package} is installed")
    with pytest.raises(ValueError, match=rf"{url}: .*{package}.*; use a local path or s3://bucket/key"):
        storage.read_bytes(url)


def test_a_name_that_no_bucket_can_have_is_refused(nobody):
    with pytest.raises(ValueError, match="s3://my bucket/x names no bucket and key"):
        storage.read_bytes("s3://my bucket/x")


def test_pauses_double_up_to_a_bound_and_differ_by_at_most_half():
    longest = [storage.pause_seconds(retry, 0.0) for retry in range(1, 9)]
    assert longest[:3] == [storage.FIRST_PAUSE_SECONDS * factor for factor in (1, 2, 4)]
    assert max(longest) == longest[-1] == storage.LONGEST_PAUSE_SECONDS
    assert [storage.pause_seconds(retry, 1.0) for retry in range(1, 9)] == [pause / 2 for pause in longest]
