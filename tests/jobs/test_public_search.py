"""Search with CLIP and SigLIP: ranked as Transformers scores the same frames, and what is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
import transformers

from jobs import search as search_command
from jobs.inference.index import EmbedConfig
from jobs.inference.indexed_files import Filters
from jobs.inference.local_index import embed_here
from jobs.inference.query import SearchConfig, search
from jobs.inference.search_model import is_public, load_searcher, weights_of
from jobs.serving.app import UPLOAD_TYPE
from jobs.serving.library import Library
from pipeline.decode.codec import encode_video
from tests.jobs.test_page import get
from tests.made_run import made_run
from tests.public_folder import clip_folder, siglip_folder
from tests.served import served

TEXTS = ("a red ring rises", "a blue star")
CLASSES = {"clip": transformers.CLIPModel, "siglip": transformers.SiglipModel}
NUM_FILMS, SECONDS = 5, 4
"""A film has a frame per second, so that a window of the whole film shows every frame; at 16:9 none is scaled."""


@dataclass(frozen=True)
class Indexed:
    """A model of others, and its index of a folder of films."""

    kind: str
    model: str
    videos: Path
    out: str


@pytest.fixture(scope="module", params=["clip", "siglip"])
def indexed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Indexed:
    root = tmp_path_factory.mktemp(request.param)
    write = {"clip": clip_folder, "siglip": siglip_folder}[request.param]
    model, videos = write(root / "model"), root / "videos"
    videos.mkdir()
    for number in range(NUM_FILMS):
        blocks = np.random.default_rng(number).integers(0, 256, (SECONDS, 4, 8, 3), np.uint8)
        (videos / f"{number}.mp4").write_bytes(encode_video(blocks.repeat(9, 1).repeat(8, 2), fps=1))
    config = EmbedConfig(run=model, videos=str(videos), out=f"{root}/index", window_seconds=None)
    assert len(embed_here(config)) == NUM_FILMS
    return Indexed(request.param, model, videos, config.out)


def scores_of(indexed: Indexed, text: str) -> dict[str, float]:
    """Score each film with Transformers alone, on frames as PyAV decodes them."""
    network = CLASSES[indexed.kind].from_pretrained(indexed.model).eval()
    pictures = transformers.AutoImageProcessor.from_pretrained(indexed.model)
    tokenizer = transformers.AutoTokenizer.from_pretrained(indexed.model)
    padding = {"padding": "max_length", "max_length": 8} if indexed.kind == "siglip" else {}
    tokens = tokenizer([text], return_tensors="pt", **padding)
    tokens = {name: tokens[name] for name in ("input_ids", "attention_mask")}
    scores = {}
    for path in sorted(indexed.videos.glob("*.mp4")):
        with av.open(str(path)) as film:
            frames = [frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)]
        pixels = pictures(images=frames, return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            logits = network(**tokens, pixel_values=pixels).logits_per_text[0].double()
        bias = network.logit_bias.item() if indexed.kind == "siglip" else 0.0
        scores[path.name] = float(torch.logsumexp(logits - bias, 0))
    return scores


@pytest.mark.parametrize("text", TEXTS)
def test_a_search_ranks_films_by_the_scores_of_transformers(indexed: Indexed, text: str) -> None:
    expected = scores_of(indexed, text)
    found = search(SearchConfig(index=indexed.out, text=text, num_results=NUM_FILMS))
    assert [Path(match.uri).name for match in found] == sorted(expected, key=expected.__getitem__, reverse=True)
    for match in found:
        assert match.dual == pytest.approx(expected[Path(match.uri).name], abs=1e-3)
        assert match.cross is None


def test_moments_like_an_upload_are_those_like_its_window(indexed: Indexed) -> None:
    library = Library.open(indexed.out)
    names = [library.files.names[number] for number in library.files.of_row]
    vectors = library.index.vectors(torch.arange(len(names)))
    with served(library) as port:
        for name, of_window in zip(names, vectors, strict=True):
            expected = [moment.name for moment in library.near(of_window, Filters(), num=9)]
            content, kind = (indexed.videos / name).read_bytes(), {"Content-Type": UPLOAD_TYPE}
            moments = json.loads(get(port, "/api/like?num=9", "POST", content, **kind)[2])["moments"]
            assert [moment["name"] for moment in moments] == expected
            assert len(expected) == NUM_FILMS


def test_the_page_answers_by_dual_scores_and_refuses_to_rerank(indexed: Indexed) -> None:
    expected = {match.uri: match.dual for match in search(SearchConfig(index=indexed.out, text=TEXTS[0]))}
    with served(Library.open(indexed.out)) as port:
        moments = json.loads(get(port, "/api/search?q=a%20red%20ring%20rises&num=5")[2])["moments"]
        status, _, content = get(port, "/api/search?q=ring&rerank=7")
        strip = get(port, f"/strips/{moments[0]['row']}")[2]
    assert {f"{indexed.videos}/{moment['name']}": moment["dual"] for moment in moments} == pytest.approx(expected)
    assert {moment["cross"] for moment in moments} == {None}
    assert (status, strip[:2]) == (400, b"\xff\xd8")
    assert "rerank must be 0, got 7: CLIP and SigLIP have no cross encoder" in json.loads(content)["error"]


def test_the_command_prints_dual_scores_and_says_why(
    indexed: Indexed, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(indexed.videos)
    search_command.main([indexed.out, TEXTS[0], "--model", indexed.model])
    printed = capsys.readouterr()
    assert "has no cross encoder: windows are ranked by dual scores alone" in printed.err
    best = search(SearchConfig(index=indexed.out, text=TEXTS[0], num_results=1))[0]
    assert printed.out.split()[:1] == [f"{best.dual:.3f}"]
    with pytest.raises(ValueError, match="rerank must be 0, got 5: CLIP and SigLIP have no cross encoder"):
        search_command.main([indexed.out, TEXTS[0], "--rerank", "5"])


def test_a_frame_is_read_by_the_models_own_processor_without_padding(indexed: Indexed) -> None:
    model: Any = load_searcher(indexed.model)
    frames = np.random.default_rng(0).integers(0, 256, (2, 4, 64, 64, 4), np.uint8)
    frames[..., 3] = 0
    frames[0, :, 48:, :, 3] = frames[1, :, :, 40:, 3] = 1
    found = model.embed_frames(frames).vectors
    for clip, of_clip in zip((frames[0, :, :48], frames[1, :, :, :40]), found, strict=True):
        torch.testing.assert_close(of_clip, model.dual.embed_pictures([*clip[..., :3]]), atol=1e-5, rtol=0)
    assert not torch.allclose(found[0], model.dual.embed_pictures([*frames[0, ..., :3]]), atol=1e-3)


@pytest.mark.parametrize(
    ("file", "lacks"),
    [
        ("model.safetensors", r"lacks \*\.safetensors: download the whole folder again"),
        ("tokenizer.json", r"lacks tokenizer\.json or vocab\.json or spiece\.model"),
        ("preprocessor_config.json", r"lacks preprocessor_config\.json"),
    ],
)
def test_an_incomplete_folder_is_refused_before_an_index_is_begun(
    indexed: Indexed, tmp_path: Path, file: str, lacks: str
) -> None:
    shutil.copytree(indexed.model, tmp_path / "model")
    (tmp_path / "model" / file).unlink()
    config = EmbedConfig(run=f"{tmp_path}/model", videos=str(indexed.videos), out=f"{tmp_path}/index")
    with pytest.raises(ValueError, match=lacks + ".*`hf download OWNER/NAME --local-dir"):
        embed_here(config)
    assert not Path(config.out).exists()


def test_an_index_of_another_model_is_refused(indexed: Indexed, tmp_path: Path) -> None:
    other = clip_folder(tmp_path / "other", seed=1)
    assert weights_of(other) != weights_of(indexed.model)
    for run in (other, made_run(tmp_path)):
        with pytest.raises(ValueError, match=r"was made with the model \w{32}, and \S+ is \w{32}; name it with --run"):
            Library.open(indexed.out, run)


def test_weights_in_several_files_are_one_model(tmp_path: Path) -> None:
    whole = clip_folder(tmp_path / "whole")
    shutil.copytree(whole, tmp_path / "parts")
    (tmp_path / "parts" / "model.safetensors").unlink()
    transformers.CLIPModel.from_pretrained(whole).save_pretrained(tmp_path / "parts", max_shard_size="8KB")
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 1
    vectors = [load_searcher(f"{tmp_path}/{name}").embed_texts(TEXTS).vectors for name in ("whole", "parts")]
    torch.testing.assert_close(*vectors)
    assert len(weights_of(f"{tmp_path}/parts")) == 32


def test_the_type_in_config_json_says_whose_model_it_is(indexed: Indexed, tmp_path: Path) -> None:
    assert is_public(indexed.model)
    assert not is_public(made_run(tmp_path))
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="is of type bert, and only clip or siglip"):
        load_searcher(f"{tmp_path}/bert")


def test_a_name_that_cannot_be_reached_leads_to_hf_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    config = EmbedConfig(run="openai/no-such-clip", videos=str(tmp_path), out=f"{tmp_path}/index")
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match="`hf download openai/no-such-clip --local-dir FOLDER`"):
        embed_here(config)
