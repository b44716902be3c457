"""What the cluster files may say: schemas that refuse every key they do not name, for tests without a cloud account.

Written by hand from KubeRay's Go types (ray.io/v1) and the reference of Compute Engine's instances.insert (v1). Pod
templates are checked by Kubernetes' own schema elsewhere, so here they are only objects.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

TEXT: Schema = {"type": "string", "minLength": 1}
FLAG: Schema = {"type": "boolean"}
COUNT: Schema = {"type": "integer", "minimum": 0}
TEXTS: Schema = {"type": "object", "additionalProperties": {"type": "string"}}
ANY: Schema = {"type": "object"}


def closed(properties: dict[str, Schema], required: tuple[str, ...] = ()) -> Schema:
    """An object with these properties and no others."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


def choice(*values: str) -> Schema:
    return {"enum": list(values)}


TEMPLATE = closed({"metadata": ANY, "spec": ANY}, ("spec",))
AUTOSCALER = closed(
    {
        "version": choice("v1", "v2"),
        "upscalingMode": choice("Default", "Aggressive", "Conservative"),
        "idleTimeoutSeconds": COUNT,
        "imagePullPolicy": choice("Always", "IfNotPresent", "Never"),
        "image": TEXT,
        "securityContext": ANY,
        "resources": closed({"requests": TEXTS, "limits": TEXTS}),
        "env": {"type": "array"},
        "envFrom": {"type": "array"},
        "volumeMounts": {"type": "array"},
    }
)
HEAD = closed(
    {
        "template": TEMPLATE,
        "rayStartParams": TEXTS,
        "resources": TEXTS,
        "labels": TEXTS,
        "serviceType": choice("ClusterIP", "NodePort", "LoadBalancer"),
        "headService": ANY,
        "enableIngress": FLAG,
    },
    ("template",),
)
GROUP = closed(
    {
        "groupName": TEXT,
        "replicas": COUNT,
        "minReplicas": COUNT,
        "maxReplicas": COUNT,
        "idleTimeoutSeconds": COUNT,
        "numOfHosts": COUNT,
        "priority": COUNT,
        "suspend": FLAG,
        "rayStartParams": TEXTS,
        "resources": TEXTS,
        "labels": TEXTS,
        "scaleStrategy": ANY,
        "template": TEMPLATE,
    },
    ("groupName", "minReplicas", "maxReplicas", "template"),
)
CLUSTER_SPEC = closed(
    {
        "rayVersion": TEXT,
        "authOptions": closed(
            {"mode": choice("token", "disabled"), "secretName": TEXT, "enableK8sTokenAuth": FLAG}, ("mode",)
        ),
        "enableInTreeAutoscaling": FLAG,
        "autoscalerOptions": AUTOSCALER,
        "gcsFaultToleranceOptions": ANY,
        "headGroupSpec": HEAD,
        "workerGroupSpecs": {"type": "array", "items": GROUP, "minItems": 1},
        "headServiceAnnotations": TEXTS,
        "managedBy": TEXT,
        "suspend": FLAG,
    },
    ("headGroupSpec", "rayVersion"),
)
METADATA = closed({"name": TEXT, "namespace": TEXT, "labels": TEXTS, "annotations": TEXTS}, ("name",))
RAY_CLUSTER = closed(
    {"apiVersion": {"const": "ray.io/v1"}, "kind": {"const": "RayCluster"}, "metadata": METADATA, "spec": CLUSTER_SPEC},
    ("apiVersion", "kind", "metadata", "spec"),
)
RAY_JOB = closed(
    {
        "apiVersion": {"const": "ray.io/v1"},
        "kind": {"const": "RayJob"},
        "metadata": METADATA,
        "spec": closed(
            {
                "entrypoint": TEXT,
                "runtimeEnvYAML": TEXT,
                "rayClusterSpec": CLUSTER_SPEC,
                "submissionMode": choice("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"),
                "submitterPodTemplate": TEMPLATE,
                "submitterConfig": closed({"backoffLimit": COUNT}),
                "metadata": TEXTS,
                "clusterSelector": TEXTS,
                "jobId": TEXT,
                "shutdownAfterJobFinishes": FLAG,
                "ttlSecondsAfterFinished": COUNT,
                "backoffLimit": COUNT,
                "activeDeadlineSeconds": COUNT,
                "preRunningDeadlineSeconds": COUNT,
                "entrypointNumCpus": {"type": "number"},
                "entrypointNumGpus": {"type": "number"},
                "entrypointResources": TEXT,
                "deletionStrategy": ANY,
                "managedBy": TEXT,
                "suspend": FLAG,
            },
            ("entrypoint", "rayClusterSpec"),
        ),
    },
    ("apiVersion", "kind", "metadata", "spec"),
)
RAY_SERVICE = closed(
    {
        "apiVersion": {"const": "ray.io/v1"},
        "kind": {"const": "RayService"},
        "metadata": METADATA,
        "spec": closed(
            {
                "serveConfigV2": TEXT,
                "rayClusterConfig": CLUSTER_SPEC,
                "serveService": ANY,
                "upgradeStrategy": ANY,
                "excludeHeadPodFromServeSvc": FLAG,
                "rayClusterDeletionDelaySeconds": COUNT,
                "suspend": FLAG,
            },
            ("serveConfigV2", "rayClusterConfig"),
        ),
    },
    ("apiVersion", "kind", "metadata", "spec"),
)
GCP_INSTANCE = closed(
    {
        "machineType": TEXT,
        "disks": {
            "type": "array",
            "minItems": 1,
            "items": closed(
                {
                    "boot": FLAG,
                    "autoDelete": FLAG,
                    "type": choice("PERSISTENT", "SCRATCH"),
                    "initializeParams": closed(
                        {
                            "diskSizeGb": {"type": "integer", "minimum": 10},
                            "diskType": TEXT,
                            "sourceImage": {"type": "string", "pattern": r"^projects/[^/]+/global/images/"},
                        },
                        ("sourceImage",),
                    ),
                },
                ("boot", "initializeParams"),
            ),
        },
        "metadata": closed(
            {"items": {"type": "array", "items": closed({"key": TEXT, "value": TEXT}, ("key", "value"))}}
        ),
        "serviceAccounts": {
            "type": "array",
            "maxItems": 1,
            "items": closed({"email": TEXT, "scopes": {"type": "array", "items": TEXT}}, ("email", "scopes")),
        },
        "scheduling": closed(
            {
                "provisioningModel": choice("STANDARD", "SPOT"),
                "preemptible": FLAG,
                "onHostMaintenance": choice("MIGRATE", "TERMINATE"),
                "automaticRestart": FLAG,
                "instanceTerminationAction": choice("STOP", "DELETE"),
            }
        ),
        "guestAccelerators": {
            "type": "array",
            "items": closed(
                {"acceleratorType": TEXT, "acceleratorCount": {"type": "integer", "minimum": 1}},
                ("acceleratorType", "acceleratorCount"),
            ),
        },
        "networkInterfaces": {"type": "array"},
        "tags": closed({"items": {"type": "array", "items": TEXT}}),
        "labels": TEXTS,
    },
    ("machineType", "disks"),
)
