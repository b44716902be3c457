"""Redact secrets from text that leaves a process: terminals, logs, ledgers, journals, MLflow."""

from __future__ import annotations

import os
import re

HIDDEN = "REDACTED"
VARIABLES = (
    *("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "RAY_AUTH_TOKEN", "HF_TOKEN", "OPENAI_API_KEY"),
    *("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"),
)
"""Environment variables whose values are redacted everywhere."""
SHORTEST = 8
"""Shortest such value that is redacted; a shorter one may be an ordinary word."""
_QUERY = re.compile(
    r"(?i)([?&;](?:x-(?:amz|goog)-(?:signature|credential|security-token)|awsaccesskeyid|googleaccessid|signature|sig"
    r"|policy|key-pair-id|token|access_token|api_?key|password)=)[^&\s'\"#]+"
)
"""Matches query parameters of presigned URLs (S3, Google, Azure, CloudFront) and of URLs with a token."""
_LOGIN = re.compile(r"(\b\w[\w+.-]*://)[^/\s'\"@]+@")
_HEADER = re.compile(r"(?i)(\b(?:bearer|basic)\s+)[\w.~+/=-]{8,}")
_ASSIGNED = re.compile(
    r"(\b[A-Z][A-Z0-9_]*(?:SECRET|TOKEN|PASSWORD|API_KEY|ACCESS_KEY|ACCESS_KEY_ID)['\"]?\s*[=:]\s*['\"]?)[^\s'\",&]+"
)
"""Matches assignments of environment variables: in capitals, unlike all our options."""


def without_secrets(text: str) -> str:
    """Replace signatures, tokens, keys and passwords in `text` by `HIDDEN`."""
    for pattern in (_QUERY, _HEADER, _ASSIGNED):
        text = pattern.sub(rf"\g<1>{HIDDEN}", text)
    text = _LOGIN.sub(rf"\g<1>{HIDDEN}@", text)
    for value in (os.environ.get(variable, "") for variable in VARIABLES):
        if len(value) >= SHORTEST:
            text = text.replace(value, HIDDEN)
    return text
