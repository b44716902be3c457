"""Text without the secrets in it, for wherever text leaves a process: terminals, logs, ledgers, journals, MLflow."""

from __future__ import annotations

import os
import re

HIDDEN = "REDACTED"
VARIABLES = (
    *("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "RAY_AUTH_TOKEN", "HF_TOKEN", "OPENAI_API_KEY"),
    *("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"),
)
"""Environment variables whose values are hidden wherever they stand."""
SHORTEST = 8
"""Characters of such a value; a shorter one may be a word of any text."""
_QUERY = re.compile(
    r"(?i)([?&;](?:x-(?:amz|goog)-(?:signature|credential|security-token)|awsaccesskeyid|googleaccessid|signature|sig"
    r"|policy|key-pair-id|token|access_token|api_?key|password)=)[^&\s'\"#]+"
)
"""Of presigned addresses: S3, Google, Azure, CloudFront; and of addresses with a token."""
_LOGIN = re.compile(r"(\b\w[\w+.-]*://)[^/\s'\"@]+@")
_HEADER = re.compile(r"(?i)(\b(?:bearer|basic)\s+)[\w.~+/=-]{8,}")
_ASSIGNED = re.compile(
    r"(\b[A-Z][A-Z0-9_]*(?:SECRET|TOKEN|PASSWORD|API_KEY|ACCESS_KEY|ACCESS_KEY_ID)['\"]?\s*[=:]\s*['\"]?)[^\s'\",&]+"
)
"""As environments are written: in capitals, which no option of ours is."""


def without_secrets(text: str) -> str:
    """Return `text` with each signature, token, key and password of an address replaced by `HIDDEN`."""
    for pattern in (_QUERY, _HEADER, _ASSIGNED):
        text = pattern.sub(rf"\g<1>{HIDDEN}", text)
    text = _LOGIN.sub(rf"\g<1>{HIDDEN}@", text)
    for value in (os.environ.get(variable, "") for variable in VARIABLES):
        if len(value) >= SHORTEST:
            text = text.replace(value, HIDDEN)
    return text
