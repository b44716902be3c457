"""README.md of the model that ships with the package: what it knows, how to repeat it, and its scores."""

from __future__ import annotations

from collections.abc import Mapping
from string import Template
from typing import Any

from jobs.evaluation.cards import Card
from jobs.inference.model import TINY

SHOWN = (
    ("text to video, R@1", "test/t2v/r1"),
    ("text to video, R@1, dual encoder", "test/t2v/dual_r1"),
    ("text to video, R@1, cross encoder", "test/t2v/cross_r1"),
    ("text to video, R@5", "test/t2v/r5"),
    ("video to text, R@1", "test/v2t/r1"),
    ("order in time, R@1 within groups of four", "temporal/t2v/group_r1"),
    ("order in time, R@1 within groups of four, dual encoder", "temporal/t2v/dual_group_r1"),
)
"""Row of the table → metric."""
PAGE = """---
license: apache-2.0
pipeline_tag: feature-extraction
---

# $name

A network for text and for text with video (SNP-S3, IEEE TCSVT 2023), so small that it ships with SNP-S3 on Ray.

**It knows only the embedded corpus**: generated clips of coloured shapes that move, and English captions of them. About
any other video or sentence its scores say nothing.

```
snps3 demo
```

draws films of such clips and opens a page that searches them. In Python:

```python
from snps3 import load

model = load("$name")
```

`snps3 export $name FOLDER` writes it in Hugging Face's folder format.

## Weights

$num_parameters parameters, stored as float16, since as float32 they exceed 2 MiB. Loading casts them to float32, in
which everything is computed. BLAKE2b of the file: `$hash`.

## Repeat it

Commit `$commit` on $hardware; corpus `$manifest_hash`:

```
git checkout $commit
make pretrain
```

makes the run. These make this folder from it, and compare it, byte by byte:

```
snps3 release runs/tiny FOLDER
snps3 release runs/tiny FOLDER --check
```

## Scores

$num_videos clips of the split `test`, in combinations that training never showed, and the groups of `temporal`. The
first column of scores is of the weights in this folder, with 95 % intervals, the second of the run's float32 weights.
This is one seed: `docs/reference/results.md` has five, and how far they lie apart.

| test | this folder | the run |
|---|---|---|
$rows

All of them are in [scores.json](scores.json), their protocol in [a card](cards/retrieval-test.json).

## Licence

Apache License 2.0.
"""


def release_card(card: Card, scores: Mapping[str, Mapping[str, float]], results: Mapping[str, Any]) -> str:
    """Return README.md. `scores`: of the `shipped` weights and of the `run`; `results`: the run's."""
    return Template(PAGE).substitute(
        name=TINY,
        num_parameters=f"{results['num_parameters']:,}",
        hash=card.weights,
        commit=results["commit"],
        hardware=results["hardware"],
        manifest_hash=card.manifest_hash,
        num_videos=card.num_videos,
        rows="\n".join(score_row(title, name, scores) for title, name in SHOWN),
    )


def score_row(title: str, name: str, scores: Mapping[str, Mapping[str, float]]) -> str:
    """Return the row of a metric."""
    shipped, run = scores["shipped"], scores["run"]
    ends = f"[{shipped[f'{name}_low']:.3f}, {shipped[f'{name}_high']:.3f}]"
    return f"| {title} | {shipped[name]:.3f} {ends} | {run[name]:.3f} |"
