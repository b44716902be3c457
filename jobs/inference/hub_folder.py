"""Export of a model as a folder in Hugging Face's format, with code for Transformers where this package is missing.

The code consists of this package's files that `modeling_snps3.py` imports, placed in one folder.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import safetensors.torch
import tyro

from jobs import ROOT
from jobs.evaluation.cards import EXPORTED, Card, read_cards
from jobs.inference.model import load, temperature_of
from jobs.run import run_files
from jobs.run.config import DataConfig
from jobs.run.fields import as_dict
from jobs.run.run_identity import config_of
from jobs.tracking import logged_runs, mlflow_runs
from jobs.training import checkpoints
from pipeline import storage
from pipeline.foreign_text import in_markdown
from pipeline.stream.transforms import IMAGENET_MEAN, IMAGENET_STD
from pipeline.text.tokenizer import SPECIAL_TOKENS, Tokenizer
from snps3_model.config import ModelConfig
from snps3_model.public_networks import public_config

COPIED = ("tokenizer.json", "significant_words.json", run_files.IDENTITY, run_files.ANSWERS)
QUEUES = "queues."
MODELING = "modeling_snps3"
OURS = re.compile(r"^( *from) ((?:pipeline|snps3_model)(?:\.\w+)+) import", re.MULTILINE)
SHAPES = '''"""Shapes of tensors in annotations, which nothing checks here."""


class Shaped:
    def __class_getitem__(cls, shape):
        return cls


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return Shaped
'''
"""Replacement for jaxtyping in the exported code."""


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """The model to export, and the destination."""

    run: Annotated[str, tyro.conf.Positional]
    """Folder of the run."""
    out: Annotated[str, tyro.conf.Positional]
    """Folder to write; it may be in a bucket."""
    programs: bool = False
    """Write text.pt2, video.pt2 and match.pt2 too, which torch runs without any of our code."""
    register: str | None = None
    """Log the folder to the run in MLflow too, and register it under this name. Needs a folder on this machine."""


def export(config: ExportConfig) -> str:
    """Export the model and return the written folder."""
    run, out = storage.absolute(config.run), storage.absolute(config.out)
    if config.register and storage.is_remote(out):
        raise ValueError(f"--register needs a folder on this machine, got {out}")
    if storage.exists(f"{out}/config.json"):
        raise ValueError(f"{out} holds a model already; take another folder")
    settings = config_of(run)
    settings = dataclasses.replace(settings, model=described(settings.model))
    weights, cards = without_queues(storage.read_bytes(run_files.best_weights(run))), read_cards(run)
    facts = network_facts(Tokenizer.load(f"{run}/tokenizer.json"), weights, settings.objective.temperature)
    files = {
        "config.json": as_dict(settings) | facts,
        "preprocessor_config.json": preprocessing(settings.data),
        "tokenizer_config.json": tokenizer_settings(settings.text.max_tokens),
        **{f"{EXPORTED}/{name}.json": as_dict(card) for name, card in cards.items()},
    }
    for name, value in files.items():
        run_files.write_json(f"{out}/{name}", value)
    for name in COPIED:
        if storage.exists(f"{run}/{name}"):
            storage.write_bytes_atomic(f"{out}/{name}", storage.read_bytes(f"{run}/{name}"))
    for name, code in code_files().items():
        storage.write_bytes_atomic(f"{out}/{name}", code.encode())
    storage.write_bytes_atomic(
        f"{out}/README.md", model_card(settings.name, settings.data, settings.model, cards).encode()
    )
    storage.write_bytes_atomic(f"{out}/{run_files.WEIGHTS}", weights)
    if config.programs:
        from jobs.inference.programs import programs_of  # torch.export takes seconds to import

        for name, program in programs_of(load(run)).items():
            storage.write_bytes_atomic(f"{out}/{name}.pt2", program)
    if config.register:
        place = settings.placement
        tracker = logged_runs.run_of(place.storage, place.experiment, settings.name)
        print(mlflow_runs.log_model(tracker, out, settings.model.hidden, config.register))
    return out


def described(model: ModelConfig) -> ModelConfig:
    """Return the model with its backbone's configuration in place of the name of a folder or hub model."""
    visual = model.visual
    if visual.backbone is None:
        return model
    return dataclasses.replace(
        model, visual=dataclasses.replace(visual, backbone=public_config(visual).to_json_string())
    )


def without_queues(data: bytes) -> bytes:
    """Return a safetensors file without the queues, which only training reads. Without queues, return the same bytes,
    so that the hash in the run's protocol cards also fits the exported model."""
    weights = checkpoints.read_weights(data, "the model of the run")
    kept = {name: tensor for name, tensor in weights.items() if not name.startswith(QUEUES)}
    return data if len(kept) == len(weights) else safetensors.torch.save(kept, checkpoints.METADATA)


def network_facts(tokenizer: Tokenizer, weights: bytes, temperature: float) -> dict[str, Any]:
    """Return what Transformers needs to know about a network besides the settings of its run."""
    classes = {"AutoConfig": "SNPS3Config", "AutoModel": "SNPS3Model", "AutoProcessor": "SNPS3Processor"}
    return {
        "model_type": "snps3",
        "architectures": ["SNPS3Model"],
        "auto_map": {kind: f"{MODELING}.{name}" for kind, name in classes.items()},
        "vocab_size": tokenizer.vocabulary_size,
        "pad_token_id": tokenizer.special.pad,
        "sep_token_id": tokenizer.special.sep,
        "dual_temperature": temperature_of(safetensors.torch.load(weights), temperature),
    }


def code_files() -> dict[str, str]:
    """Return the code of the network and its processor by file name. It needs Transformers, Pillow and torch."""
    files, pending = {"array_shapes.py": SHAPES}, [f"jobs.inference.{MODELING}"]
    while pending:
        module = pending.pop()
        code = (ROOT / f"{module.replace('.', '/')}.py").read_text().replace("from jaxtyping", "from .array_shapes")
        files[f"{module.removeprefix('jobs.inference.').replace('.', '_')}.py"] = OURS.sub(
            lambda line: f"{line[1]} .{line[2].replace('.', '_')} import", code
        )
        pending += [name for _, name in OURS.findall(code) if f"{name.replace('.', '_')}.py" not in files]
    return files


def preprocessing(data: DataConfig) -> dict[str, Any]:
    """Return the settings of preprocessing, from videos to the network's input."""
    return {
        "auto_map": {"AutoProcessor": f"{MODELING}.SNPS3Processor"},
        "num_frames": data.num_frames,
        "sampling": "middle frame of equal segments",
        "size": {"longest_edge": data.frame_size_px},
        "crop_size": data.shown_px,
        "do_pad": True,
        "image_mean": list(IMAGENET_MEAN),
        "image_std": list(IMAGENET_STD),
    }


def tokenizer_settings(max_tokens: int) -> dict[str, Any]:
    """Return the settings that Hugging Face reads besides tokenizer.json."""
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    special = dict(zip(names, SPECIAL_TOKENS, strict=True))
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_tokens,
        "do_lower_case": True,
    } | special


USAGE = """
```python
from snps3 import load

model = load("THIS FOLDER")
videos, texts = model.embed_videos(["a.mp4"]), model.embed_texts(["a red ring rises"])
print(model.dual_scores(texts, videos), model.match(texts, videos))
```

Without that package, by Transformers alone:

```python
from transformers import AutoModel, AutoProcessor

model = AutoModel.from_pretrained("THIS FOLDER", trust_remote_code=True).eval()
processor = AutoProcessor.from_pretrained("THIS FOLDER", trust_remote_code=True)
texts, videos = processor(text=[…]), processor(videos=[…])  # uint8 ({num_frames}, H, W, 3) each
vectors, clips = model.get_text_features(**texts), model.get_video_features(**videos)
print(model.dual_scores(vectors, clips.vectors), model.match(**texts, tokens=clips.tokens))
```
"""


def model_card(name: str, data: DataConfig, model: ModelConfig, cards: Mapping[str, Card]) -> str:
    """Return README.md: the model, its usage, and its scores with their protocols."""
    lines = [
        "---",
        "library_name: transformers",
        "license: apache-2.0",
        "pipeline_tag: feature-extraction",
        "---",
        "",
        f"# {name}",
        "",
        "One BERT-type network for text and for text with video (SNP-S3, IEEE TCSVT 2023), trained with SNP-S3 on Ray.",
        USAGE.replace("{num_frames}", str(data.num_frames)),
        f"{data.num_frames} frames of {data.shown_px} px; {model.num_layers} layers of {model.hidden}; visual encoder "
        f"{model.visual.encoder}.",
        "",
        "## Scores",
        "",
        *(score_lines(cards) if cards else ["None were measured."]),
    ]
    return "\n".join([*lines, ""])


def score_lines(cards: Mapping[str, Card]) -> list[str]:
    """Return a Markdown table, line by line, of the scores that have an interval."""
    lines = ["| task | split | score | value | 95 % interval | protocol |", "|---|---|---|---|---|---|"]
    for folder, card in cards.items():
        where = f"{EXPORTED}/{folder}.json"
        for name, value in card.means.items():
            if ends := card.interval(name):
                mark = "".join(f", {caveat}" for caveat in card.caveats)
                task, split = in_markdown(card.protocol.task), in_markdown(card.protocol.split)
                lines.append(
                    f"| {task} | {split}{mark} | {name} | {value:.3f} "
                    f"| {ends[0]:.3f} to {ends[1]:.3f} | [{where}]({where}) |"
                )
    return lines
