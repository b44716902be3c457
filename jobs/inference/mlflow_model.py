"""A model as MLflow loads it: this code over a folder that jobs/export.py wrote. Texts in, unit vectors out.

MLflow runs this file by itself, where this package need not be; nobody imports it.
"""

from __future__ import annotations

import torch
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from transformers import AutoModel, AutoProcessor


class TextEncoder(PythonModel):
    """Sentences to the vectors that videos are searched by."""

    def load_context(self, context: PythonModelContext) -> None:
        """Reads the exported folder."""
        folder = context.artifacts["model"]
        self.model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
        self.processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)

    def predict(self, context, model_input, params=None):  # MLflow takes hints of types for another signature
        """Unit vectors (N, D) of the column `text`."""
        with torch.no_grad():
            texts = self.processor(text=[str(text) for text in model_input["text"]])
            return self.model.get_text_features(**texts).numpy()


set_model(TextEncoder())
