"""Data types shared by data pipeline and model. Imports nothing slow; every module may import this file.

manifest row ──fetch, decode──► ClipRows | Rejected ──collate──► Batch ──► snps3_model
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # importing torch takes two seconds, which a process that only decodes should not pay
    import numpy as np
    import torch
    from jaxtyping import Bool, Float, Float32, Int64, UInt8
    from torch import Tensor

_ADDRESS = re.compile(r" ?(?:at |@ ?)0x[0-9a-fA-F]{4,}")
IGNORED_LABEL = -1
"""Label of a token position that no masked-word loss scores."""
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Of red, green and blue in [0, 1]; the frames that encoders receive are normalised by them."""


class Kind(StrEnum):
    """What a clip was read from. Images and videos never share a batch."""

    VIDEO = "video"
    IMAGE = "image"


class Stage(StrEnum):
    """Where a sample was rejected."""

    PREPARE = "prepare"
    PACK = "pack"
    TRAIN = "train"
    EVALUATE = "evaluate"


class Reason(StrEnum):
    """Why a sample was rejected: a closed list, by which metrics count."""

    MISSING = "missing"
    EMPTY = "empty"
    UNREADABLE = "unreadable"
    NO_VIDEO_STREAM = "no_video_stream"
    NO_FRAMES = "no_frames"
    TRUNCATED = "truncated"
    NO_CAPTION = "no_caption"
    OUT_OF_RANGE = "out_of_range"
    NO_ANNOTATION = "no_annotation"
    WRONG_ROW = "wrong_row"
    """A row of an annotation file that cannot be read."""
    UNAVAILABLE = "unavailable"
    """The store did not deliver it, even after retries."""
    UNSUPPORTED_CODEC = "unsupported_codec"
    TIMEOUT = "timeout"
    """Decoding took longer than allowed."""
    CRASHED = "crashed"
    """The process that decoded it ended."""
    OUT_OF_MEMORY = "out_of_memory"
    """Decoding took more memory than allowed."""
    WRONG_CHECKSUM = "wrong_checksum"
    DUPLICATE = "duplicate"
    """A duplicate of another clip of the corpus."""
    LEAKED = "leaked"
    """A duplicate of a clip of a test split."""
    REFUSED = "refused"
    """A download that is not allowed: a private address, too large, or a web page in place of a file."""
    FILTERED = "filtered"
    """One of its scores is beyond a threshold."""
    FAILED = "failed"
    """Our code raised an unexpected exception, which no file should cause: a bug to report."""


class DecodeError(Exception):
    """Raised for a file without a usable clip, with the reason. Can be pickled, since it crosses processes.

    Memory addresses are removed from the detail, so that a file gives the same detail on every run.
    """

    def __init__(self, reason: Reason, detail: str) -> None:
        detail = _ADDRESS.sub("", detail)
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


@dataclass(frozen=True)
class EncodedFrames:
    """A clip stored as images, one per frame, in display order."""

    images: tuple[bytes, ...]

    def __len__(self) -> int:
        """Return the total number of bytes."""
        return sum(len(image) for image in self.images)


@dataclass(frozen=True, eq=False, kw_only=True)
class EncodedPackets:
    """The packets of a video that some of its frames need, cut out of the file."""

    header: Mapping[str, Any]
    """Parameters of the decoder, and the file's `info` (`pipeline/decode/packets.py`)."""
    packets: np.ndarray
    """Position in `data`, times and number in the file of each packet: `pipeline.decode.packets.CUT`."""
    frame_numbers: tuple[int, ...]
    """Numbers in the file of the clip's frames, in order."""
    pts: tuple[int, ...]
    """Presentation times of these frames, in units of the stream."""
    data: bytes
    wider: Callable[[], EncodedPackets] | None = None
    """Fetches more packets before these, for frames that need them; None: there are no more."""

    def __len__(self) -> int:
        """Return the number of bytes of all packets."""
        return len(self.data)


@dataclass(frozen=True, eq=False)
class DistantFile:
    """A file too large for memory, of which parts are read on demand."""

    num_bytes: int
    read: Callable[[int, int], bytes]
    """`read(start, stop)`: the bytes in [start, stop)."""

    def __len__(self) -> int:
        """Return the number of bytes of the file."""
        return self.num_bytes


Stored = bytes | EncodedFrames
"""The content at a uri: the bytes of a video or an image, or the images of a video's frames."""
Media = Stored | EncodedPackets | DistantFile
"""An encoded clip, or the part of a long video that it needs."""


@dataclass(frozen=True, kw_only=True)
class Rejected:
    """A rejected sample as a value: written to the ledger, counted by reason, never dropped silently."""

    clip_id: int
    uri: str
    stage: Stage
    reason: Reason
    detail: str

    @classmethod
    def from_row(cls, row: Mapping[str, Any], stage: Stage | None = None) -> Rejected:
        """Return the rejected sample in a row of a table; `stage` is for tables without this column."""
        return cls(
            clip_id=row["clip_id"],
            uri=row["uri"],
            stage=Stage(stage or row["stage"]),
            reason=Reason(row["reason"]),
            detail=row["detail"],
        )

    def to_row(self) -> dict[str, Any]:
        """Return the columns of a ledger."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, kw_only=True)
class ClipRows:
    """One rank's share of one step, decoded but not yet tokenised. `B` clips, `T` frames."""

    clip_ids: Int64[np.ndarray, " B"]
    weight: Float32[np.ndarray, " B"]
    """1 for a usable clip, 0 for a filler or a rejected one."""
    epoch: int
    captions: list[str]
    """The caption chosen for each clip; ignored where the weight is 0."""
    frames: UInt8[np.ndarray, "B T H W 3"]
    frame_pad_mask: Bool[np.ndarray, "B T H W"]
    num_frames: Int64[np.ndarray, " B"]

    def __post_init__(self) -> None:
        lengths = {
            name: len(getattr(self, name)) for name in ("clip_ids", "weight", "captions", "frames", "num_frames")
        }
        if len(set(lengths.values())) != 1:
            raise ValueError(f"all columns of a batch need the same number of clips, got {lengths}")
        if self.frames.shape[:4] != self.frame_pad_mask.shape:
            raise ValueError(f"frames {self.frames.shape} and frame_pad_mask {self.frame_pad_mask.shape} disagree")


@dataclass(frozen=True, kw_only=True)
class LengthGroup:
    """Rows of a batch with captions of similar length, which pass through the network together."""

    rows: Int64[Tensor, " n"]
    num_tokens: int
    """Number of tokens of the longest caption among them."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One rank's share of one step. `B` clips, `T` frames, `L` tokens, `K` words for LVWM.

    Every random choice (frames, caption, masks, words) is already made and depends only on (seed, epoch, clip_id), so a
    batch is independent of the number of workers.
    """

    clip_ids: Int64[Tensor, " B"]
    weight: Float[Tensor, " B"]
    """1 for a usable clip; 0 for the padded tail of an epoch and for clips rejected while decoding."""
    frames: UInt8[Tensor, "B T H W 3"]
    frame_pad_mask: Bool[Tensor, "B T H W"]
    """True where a pixel is padding."""
    token_ids: Int64[Tensor, "B L"]
    """The caption, unmasked: [CLS] … [SEP] [PAD] …"""
    masked_token_ids: Int64[Tensor, "B L"]
    token_mask: Bool[Tensor, "B L"]
    """True where a token is real, False on [PAD]."""
    labels: Int64[Tensor, "B L"]
    """The original id at the positions chosen for masking, `IGNORED_LABEL` elsewhere."""
    word_positions: Int64[Tensor, "B K"]
    """The K significant words that LVWM matches with the video, as positions in the caption."""
    max_masked: int | None = None
    """Largest number of labels in a row, counted on the host to avoid a device synchronisation; None if unknown."""
    max_tokens: int | None = None
    """Upper bound on the tokens of a caption on any rank, so that no step has to compute the longest; None: each step
    computes it, which is free on a CPU and saves padding."""
    length_groups: tuple[LengthGroup, ...] = ()
    """Partition of the rows; empty: all rows pass through the network at once."""

    def tensors(self) -> list[Tensor]:
        """Return all tensors of the batch."""
        columns = [getattr(self, name) for name in self._columns()]
        return [*columns, *(group.rows for group in self.length_groups)]

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch on `device`."""
        moved = {name: _moved(getattr(self, name), device) for name in self._columns()}
        groups = tuple(dataclasses.replace(group, rows=_moved(group.rows, device)) for group in self.length_groups)
        return dataclasses.replace(self, **moved, length_groups=groups)

    def _columns(self) -> list[str]:
        others = ("max_masked", "max_tokens", "length_groups")
        return [field.name for field in dataclasses.fields(self) if field.name not in others]


def _moved(tensor: Tensor, device: torch.device | str) -> Tensor:
    """Return the tensor on `device`. If all frames share memory, as in a pad mask, only one is transferred."""
    is_repeated = tensor.ndim > 1 and tensor.stride(1) == 0
    sent = (tensor[:, :1] if is_repeated else tensor).to(device, non_blocking=True)
    return sent.expand_as(tensor) if is_repeated else sent


@dataclass(frozen=True, kw_only=True)
class QuestionBatch(Batch):
    """One rank's share of one step of question answering, with `Q` questions about each clip; the caption is the first
    question."""

    question_ids: Int64[Tensor, "B Q L2"]
    question_mask: Bool[Tensor, "B Q L2"]
    question_weight: Float[Tensor, "B Q"]
    """1 for a question with a known answer about a usable clip, otherwise 0."""
    answers: Int64[Tensor, "B Q N"]
    """Numbers of the correct answers, padded with `IGNORED_LABEL`."""


@dataclass(frozen=True, kw_only=True)
class ChoiceBatch(Batch):
    """One rank's share of one step of multiple choice; the caption is the correct option."""

    option_ids: Int64[Tensor, "B O L"]
    option_mask: Bool[Tensor, "B O L"]
    answer: Int64[Tensor, " B"]
    """Position of the correct option."""
