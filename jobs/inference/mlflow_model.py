"""Code with which MLflow loads a model from a folder that jobs/export.py wrote. Texts in, unit vectors out.

MLflow runs this file alone, possibly without this package; no module imports it.
"""

from __future__ import annotations

import torch
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from transformers import AutoModel, AutoProcessor


class TextEncoder(PythonModel):
    """Encodes sentences as the vectors with which videos are searched."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the exported folder."""
        folder = context.artifacts["model"]
        self.model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
        self.processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)

    def predict(self, context, model_input, params=None):  # MLflow interprets type hints as a model signature
        """Return unit vectors (N, D) of the column `text`."""
        with torch.no_grad():
            texts = self.processor(text=[str(text) for text in model_input["text"]])
            return self.model.get_text_features(**texts).numpy()


set_model(TextEncoder())
