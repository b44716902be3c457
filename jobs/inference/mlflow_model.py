"""A model as MLflow loads it: this code over a folder that jobs/export.py wrote. Texts in, unit vectors out.

MLflow runs this file by itself; nobody imports it.
"""

from __future__ import annotations

from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from jobs.inference.model import load


class TextEncoder(PythonModel):
    """Sentences to the vectors that videos are searched by."""

    def load_context(self, context: PythonModelContext) -> None:
        """Reads the exported folder."""
        self.model = load(context.artifacts["model"])

    def predict(self, context, model_input, params=None):  # MLflow takes hints of types for another signature
        """Unit vectors (N, D) of the column `text`."""
        return self.model.embed_texts([str(text) for text in model_input["text"]]).vectors.numpy()


set_model(TextEncoder())
