"""The nouns on which data and model meet. Imports nothing that takes time; everyone may import this file.

manifest row ──fetch, decode──► ClipRows | Rejected ──collate──► Batch ──► snps3_model
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # torch takes two seconds, which a process that only decodes does without
    import numpy as np
    import torch
    from jaxtyping import Bool, Float, Float32, Int64, UInt8
    from torch import Tensor

_ADDRESS = re.compile(r" ?(?:at |@ ?)0x[0-9a-fA-F]{4,}")
IGNORED_LABEL = -1
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Of the red, green and blue of pixels in [0, 1]; encoders are given frames normalised by them."""
"""Label of a token position that no masked-word loss scores."""


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
    """Why a sample was rejected: the closed list that metrics count by."""

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
    """The store did not deliver it, however often it was asked."""
    UNSUPPORTED_CODEC = "unsupported_codec"
    TIMEOUT = "timeout"
    """Decoding took longer than allowed."""
    CRASHED = "crashed"
    """The process that decoded it ended."""
    OUT_OF_MEMORY = "out_of_memory"
    """Decoding took more memory than allowed."""
    WRONG_CHECKSUM = "wrong_checksum"
    DUPLICATE = "duplicate"
    """Another clip of the corpus shows the same."""
    LEAKED = "leaked"
    """A clip of a test split shows the same."""
    REFUSED = "refused"
    """A download that may not be taken: a private address, too large, or a page in place of a file."""
    FILTERED = "filtered"
    """A score of it is beyond a threshold."""
    FAILED = "failed"
    """Code of ours raised what it should not, whatever the file holds: an error to report."""


class DecodeError(Exception):
    """A file that gives no clip, with the reason. Survives pickling, since it crosses processes.

    Addresses in memory are left out of the detail, so that one file gives one detail on every run.
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
    """A clip that is kept as images, one per frame, in order of display."""

    images: tuple[bytes, ...]

    def __len__(self) -> int:
        """Return the bytes of all images."""
        return sum(len(image) for image in self.images)


@dataclass(frozen=True, eq=False, kw_only=True)
class EncodedPackets:
    """The packets of a video that some of its frames need, cut out of the file."""

    header: Mapping[str, Any]
    """What a decoder has to know, and the file's `info` (`pipeline/decode/packets.py`)."""
    packets: np.ndarray
    """Where each of them lies in `data`, its times and its number in the file: `pipeline.decode.packets.CUT`."""
    wanted: tuple[int, ...]
    """Numbers of the frames of a clip in the file, in their order."""
    pts: tuple[int, ...]
    """When each of these is shown, in units of the stream."""
    data: bytes
    wider: Callable[[], EncodedPackets] | None = None
    """Fetches more packets before these, for a frame that does not decode with these alone; None: there are no more."""

    def __len__(self) -> int:
        """Return the bytes of all packets."""
        return len(self.data)


@dataclass(frozen=True, eq=False)
class DistantFile:
    """A file that is too large for memory: parts of it are read when they are needed."""

    num_bytes: int
    read: Callable[[int, int], bytes]
    """`read(start, stop)`: the bytes in [start, stop)."""

    def __len__(self) -> int:
        """Return the bytes of the file."""
        return self.num_bytes


Stored = bytes | EncodedFrames
"""What lies at a uri: the bytes of a video or an image, or the images of a video's frames."""
Media = Stored | EncodedPackets | DistantFile
"""An encoded clip, or what of a long video it needs."""


@dataclass(frozen=True, kw_only=True)
class Rejected:
    """A bad sample as a value: written to the ledger, counted by reason, never dropped in silence."""

    clip_id: int
    uri: str
    stage: Stage
    reason: Reason
    detail: str

    @classmethod
    def from_row(cls, row: Mapping[str, Any], stage: Stage | None = None) -> Rejected:
        """Return the rejected sample in a row of a table; `stage` where the table has no such column."""
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
    """The caption chosen for each clip; not looked at where the weight is 0."""
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
    """Rows of a batch that pass through the network together, since their captions are about equally long."""

    rows: Int64[Tensor, " n"]
    num_tokens: int
    """Tokens of the longest caption among them."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One rank's share of one step. `B` clips, `T` frames, `L` tokens, `K` words for LVWM.

    Every random choice (frames, caption, masks, words) is already made and depends only on
    (seed, epoch, clip_id), so a batch does not depend on how many workers there are.
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
    most_masked: int | None = None
    """Labels of a row at most, counted on the host so that no step has to ask its device; None if nobody counted."""
    most_tokens: int | None = None
    """Tokens of a caption of any rank at most, so that no step has to ask for the longest; None: it asks, which on a
    CPU costs nothing and saves padding."""
    length_groups: tuple[LengthGroup, ...] = ()
    """Every row in one of them; none to pass all rows at once."""

    def tensors(self) -> list[Tensor]:
        """All tensors of the batch."""
        columns = [getattr(self, name) for name in self._columns()]
        return [*columns, *(group.rows for group in self.length_groups)]

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on `device`."""
        moved = {name: _moved(getattr(self, name), device) for name in self._columns()}
        groups = tuple(dataclasses.replace(group, rows=_moved(group.rows, device)) for group in self.length_groups)
        return dataclasses.replace(self, **moved, length_groups=groups)

    def _columns(self) -> list[str]:
        others = ("most_masked", "most_tokens", "length_groups")
        return [field.name for field in dataclasses.fields(self) if field.name not in others]


def _moved(tensor: Tensor, device: torch.device | str) -> Tensor:
    """The tensor on `device`; one that is the same in all frames, as a pad mask is, travels once."""
    is_repeated = tensor.ndim > 1 and tensor.stride(1) == 0
    sent = (tensor[:, :1] if is_repeated else tensor).to(device, non_blocking=True)
    return sent.expand_as(tensor) if is_repeated else sent


@dataclass(frozen=True, kw_only=True)
class QuestionBatch(Batch):
    """One rank's share of one step of question answering, with `Q` questions about each clip; the caption is the
    first."""

    question_ids: Int64[Tensor, "B Q L2"]
    question_mask: Bool[Tensor, "B Q L2"]
    question_weight: Float[Tensor, "B Q"]
    """1 for a question with a known answer about a usable clip, otherwise 0."""
    answers: Int64[Tensor, "B Q N"]
    """Numbers of the right answers, padded with `IGNORED_LABEL`."""


@dataclass(frozen=True, kw_only=True)
class ChoiceBatch(Batch):
    """One rank's share of one step of multiple choice: the caption is the right option."""

    option_ids: Int64[Tensor, "B O L"]
    option_mask: Bool[Tensor, "B O L"]
    answer: Int64[Tensor, " B"]
    """Position of the right option."""
