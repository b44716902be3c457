"""A trained model for Transformers without this package. `export` writes this code beside the weights.

from transformers import AutoModel, AutoProcessor

model = AutoModel.from_pretrained(FOLDER, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(FOLDER, trust_remote_code=True)
texts, videos = processor(text=["a red ring rises"]), processor(videos=[frames])     # uint8 (T, H, W, 3)
vectors, clips = model.get_text_features(**texts), model.get_video_features(**videos)
model.dual_scores(vectors, clips.vectors)                                            # (texts, videos)
model.match(**texts, tokens=clips.tokens)                                            # pairs: as many texts as videos
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64, UInt8
from PIL import Image
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.processing_utils import ProcessorMixin

from pipeline.records import ClipRows
from pipeline.stream.augmentation import draw_augmentation
from pipeline.stream.config import AugmentationConfig
from pipeline.stream.transforms import normalise, resample
from snps3_model.config import ModelConfig, VisualConfig
from snps3_model.lora import without_updates
from snps3_model.snps3 import SNPS3, VideoFeatures, dual_scores


class SNPS3Config(PreTrainedConfig):
    """The settings of a run, of which the network reads `model`, and the facts about its vocabulary."""

    model_type = "snps3"


class SNPS3Model(PreTrainedModel):
    """The shared network with its visual encoder: vectors for the dual encoder, scores of the cross encoder."""

    config_class = SNPS3Config
    base_model_prefix = "snps3"
    main_input_name = "input_ids"
    _keys_to_ignore_on_load_unexpected = [r"^(?!model\.)"]  # heads of objectives  # noqa: RUF012

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        settings = dict(config.model)
        visual = dict(settings.pop("visual"))
        visual["channels"] = tuple(visual["channels"])
        self.model = SNPS3(
            without_updates(ModelConfig(**settings, visual=VisualConfig(**visual))),
            vocabulary_size=config.vocab_size,
            pad_id=config.pad_token_id,
            separator_id=config.sep_token_id,
        )
        self.post_init()

    def get_text_features(
        self, input_ids: Int64[Tensor, "B L"], attention_mask: Bool[Tensor, "B L"]
    ) -> Float[Tensor, "B D"]:
        """Return a unit vector per text."""
        return self.model.encode_text(input_ids, attention_mask.bool()).vector

    def get_video_features(
        self, pixel_values: Float[Tensor, "B T 3 H W"], pixel_padding: Bool[Tensor, "B T H W"]
    ) -> VideoFeatures:
        """Return `vectors` (B, T, D), a unit vector per frame, and `tokens` (B, S, D) for `match`."""
        return self.model.encode_video(pixel_values, pixel_padding)

    def dual_scores(self, texts: Float[Tensor, "Q D"], videos: Float[Tensor, "C T D"]) -> Float[Tensor, "Q C"]:
        """Return the dual encoder's score of each text with each video."""
        return dual_scores(texts, videos, self.config.dual_temperature)

    def match(
        self, input_ids: Int64[Tensor, "B L"], attention_mask: Bool[Tensor, "B L"], tokens: Float[Tensor, "B S D"]
    ) -> Float[Tensor, " B"]:
        """Return the cross encoder's score of each text with the video in the same row."""
        return self.model.score(input_ids, attention_mask.bool(), tokens)

    def forward(
        self,
        input_ids: Int64[Tensor, "B L"],
        attention_mask: Bool[Tensor, "B L"],
        pixel_values: Float[Tensor, "B T 3 H W"],
        pixel_padding: Bool[Tensor, "B T H W"],
    ) -> Float[Tensor, " B"]:
        """Return `match` of texts and videos in the same rows."""
        return self.match(input_ids, attention_mask, self.get_video_features(pixel_values, pixel_padding).tokens)


class SNPS3Processor(ProcessorMixin):
    """Converts texts to ids, and decoded frames to the network's input."""

    attributes = ["tokenizer"]  # noqa: RUF012
    tokenizer_class = "PreTrainedTokenizerFast"

    def __init__(self, tokenizer: Any, config: Any = None, **_: Any) -> None:
        self.config = config
        super().__init__(tokenizer)

    @classmethod
    def from_pretrained(cls, folder: str, **options: Any) -> SNPS3Processor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Load the tokenizer and the video settings from a folder or the hub."""
        named = {
            name: options[name] for name in ("revision", "cache_dir", "local_files_only", "token") if name in options
        }
        return cls(
            PreTrainedTokenizerFast.from_pretrained(folder, **named), SNPS3Config.from_pretrained(folder, **named)
        )

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, text: Sequence[str] | None = None, videos: Sequence[np.ndarray] | None = None
    ) -> dict[str, Tensor]:
        """Return the arguments of `get_text_features`, of `get_video_features`, or both.

        `videos`: uint8 (T, H, W, 3) each, T as in training (`config.data["num_frames"]`): the middle frames of equal
        segments; for a picture, that many copies. Too long texts are truncated at the end.
        """
        batch: dict[str, Tensor] = {}
        if text is not None:
            ids = self.tokenizer([*text], padding=True, truncation=True, return_tensors="pt")
            batch |= {"input_ids": ids["input_ids"], "attention_mask": ids["attention_mask"].bool()}
        if videos is not None:
            pixels, padding = self.pixels(videos)
            batch |= {"pixel_values": pixels, "pixel_padding": padding}
        return batch

    def pixels(
        self, videos: Sequence[UInt8[np.ndarray, "T H W 3"]]
    ) -> tuple[Float[Tensor, "B T 3 S S"], Bool[Tensor, "B T S S"]]:
        """Return videos as normalised floats, in the upper left corner of squares or, if training cropped, as the crop
        of their middle; and the pad mask. Raise ValueError for another number of frames."""
        data = self.config.data
        if {len(video) for video in videos} != {data["num_frames"]}:
            raise ValueError(f"each video needs {data['num_frames']} frames, got {[len(video) for video in videos]}")
        frames, padding = zip(*(in_square(video, data["frame_size_px"]) for video in videos), strict=True)
        rows = ClipRows(
            clip_ids=np.arange(len(videos)),
            weight=np.ones(len(videos), np.float32),
            epoch=0,
            captions=[""] * len(videos),
            frames=np.stack(frames),
            frame_pad_mask=np.stack(padding),
            num_frames=np.full(len(videos), data["num_frames"]),
        )
        cut = data["augmentation"]
        short_side = cut["short_side_px"] and tuple(cut["short_side_px"])
        drawn = draw_augmentation(
            rows, AugmentationConfig(crop_px=cut["crop_px"], short_side_px=short_side), seed=0, is_training=False
        )
        pixels, is_padding = torch.from_numpy(rows.frames), torch.from_numpy(rows.frame_pad_mask)
        if drawn is not None:
            shown, is_padding = resample(pixels, is_padding, drawn.maps, drawn.size_px)
            pixels = (shown * ~is_padding[:, :, None]).round().to(torch.uint8).permute(0, 1, 3, 4, 2)
        return normalise(pixels), is_padding


def in_square(
    video: UInt8[np.ndarray, "T H W 3"], size_px: int
) -> tuple[UInt8[np.ndarray, "T S S 3"], Bool[np.ndarray, "T S S"]]:
    """Resize a video's longer side to `size_px`, and place it in the upper left corner of a square; return it with its
    pad mask."""
    height, width = video.shape[1:3]
    scale = size_px / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    if size != (width, height):
        video = np.stack([np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC)) for frame in video])
    rest = (0, 0, 0, size_px - size[0], 0, size_px - size[1])
    square = F.pad(torch.from_numpy(video), rest).numpy()
    padding = np.ones(square.shape[:3], bool)
    padding[:, : size[1], : size[0]] = False
    return square, padding
