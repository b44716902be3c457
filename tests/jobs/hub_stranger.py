"""A process that has Transformers and none of our packages: prints what an exported folder computes, as JSON.

python tests/jobs/hub_stranger.py FOLDER FRAMES.npy TEXT TEXT …
"""

from __future__ import annotations

import json
import sys
from importlib.abc import MetaPathFinder

HIDDEN = {"snps3", "snps3_model", "pipeline", "jobs", "cluster", "jaxtyping", "ray", "mlflow"}


class Hidden(MetaPathFinder):
    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name.partition(".")[0] in HIDDEN:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, Hidden())

import numpy as np  # noqa: E402
import torch  # noqa: E402
from transformers import AutoModel, AutoProcessor  # noqa: E402

folder, frames, *texts = sys.argv[1:]
model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
inputs = processor(text=texts, videos=list(np.load(frames)))
ids, mask = inputs["input_ids"], inputs["attention_mask"]
with torch.no_grad():
    vectors = model.get_text_features(ids, mask)
    clips = model.get_video_features(inputs["pixel_values"], inputs["pixel_padding"])
    cosines = torch.einsum("qd,ctd->qct", vectors, clips.vectors)
    match = torch.stack([model.match(ids, mask, tokens.expand(len(ids), -1, -1)) for tokens in clips.tokens], 1)
dual = model.dual_scores(vectors, clips.vectors)
print(json.dumps({"cosines": cosines.tolist(), "match": match.tolist(), "dual": dual.tolist()}))
