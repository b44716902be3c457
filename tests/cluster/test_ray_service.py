"""The file of the search page on KubeRay: by the makers' schemas, and by what `build_app` takes."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import manifests
import pytest
import ray
import yaml

from jobs.serving.settings import TOKEN, deployment_of

ROOT = Path(__file__).parent.parent.parent
KUBERAY = ROOT / "cluster" / "kuberay"
SERVICE = yaml.safe_load((KUBERAY / "rayservice.yaml").read_text())
CLUSTER = yaml.safe_load((KUBERAY / "raycluster.yaml").read_text())["spec"]
SPEC = SERVICE["spec"]["rayClusterConfig"]
SERVED = yaml.safe_load(SERVICE["spec"]["serveConfigV2"])
SECRET = [{"secretRef": {"name": "snps3-token"}}]


def refuse(service: dict[str, Any]) -> None:
    """The closed schema of the resource, and Kubernetes' own of each pod in it."""
    jsonschema.validate(service, manifests.RAY_SERVICE)
    spec = service["spec"]["rayClusterConfig"]
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "any"}, **group["template"]}
        kubernetes_validate.validate(pod, "1.34", strict=True)


def test_kubernetes_knows_every_setting_and_refuses_a_slip() -> None:
    refuse(SERVICE)
    wrong = copy.deepcopy(SERVICE)
    wrong["spec"]["serveConfig"] = wrong["spec"].pop("serveConfigV2")
    with pytest.raises(jsonschema.ValidationError):
        refuse(wrong)
    wrong = copy.deepcopy(SERVICE)
    wrong["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["template"]["spec"]["containers"][0].pop("name")
    with pytest.raises(kubernetes_validate.ValidationError):
        refuse(wrong)


def test_the_arguments_are_those_of_the_application_and_its_replicas_fit_the_smallest_cluster() -> None:
    (application,) = SERVED["applications"]
    module, _, function = application["import_path"].partition(":")
    source = (ROOT / f"{module.replace('.', '/')}.py").read_text()
    assert re.search(rf"^def {function}\(args: ", source, re.MULTILINE)
    config, _ = deployment_of(application["args"], "0123456789abcdef")
    assert config.index.startswith("s3://")
    (group,) = SPEC["workerGroupSpecs"]
    cpus = int(group["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"])
    assert config.replicas * config.replica_cpus <= group["minReplicas"] * cpus


def test_ray_serve_reads_the_applications() -> None:
    schema = pytest.importorskip("ray.serve.schema", reason="ray[serve] is not installed", exc_type=ImportError)
    (application,) = schema.ServeDeploySchema.model_validate(SERVED).applications
    assert application.import_path == "jobs.serving.ray_serve:build_app"


def test_every_pod_has_the_token_as_the_application_is_built_on_any() -> None:
    containers = [
        group["template"]["spec"]["containers"][0] for group in (SPEC["headGroupSpec"], *SPEC["workerGroupSpecs"])
    ]
    assert [container["envFrom"] for container in containers] == [SECRET] * 2
    assert TOKEN in (KUBERAY / "rayservice.yaml").read_text().partition("apiVersion")[0]
    assert TOKEN not in json.dumps(SERVICE)


def test_the_head_is_that_of_the_cluster_that_stays() -> None:
    head = copy.deepcopy(SPEC["headGroupSpec"])
    container = head["template"]["spec"]["containers"][0]
    container["ports"].remove({"name": "serve", "containerPort": 8000})
    container["envFrom"] = CLUSTER["headGroupSpec"]["template"]["spec"]["containers"][0]["envFrom"]
    assert head == CLUSTER["headGroupSpec"]
    others = ("rayVersion", "authOptions", "enableInTreeAutoscaling", "autoscalerOptions")
    assert {name: SPEC[name] for name in others} == {name: CLUSTER[name] for name in others}
    images = set(re.findall(r"image: (\S+)", (KUBERAY / "rayservice.yaml").read_text()))
    assert images == {container["image"]}


def test_the_dashboard_names_metrics_as_rays_own_does() -> None:
    drawn = re.findall(r"ray_serve_\w+", (ROOT / "cluster" / "grafana.json").read_text())
    panels = Path(ray.__path__[0], "dashboard/modules/metrics/dashboards/serve_dashboard_panels.py").read_text()
    assert len(drawn) == 3
    assert set(drawn) <= set(re.findall(r"ray_serve_\w+", panels))
