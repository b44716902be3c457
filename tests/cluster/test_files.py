"""The cluster files, checked without a cloud account: by the makers' schemas, and by what the job needs of them."""

from __future__ import annotations

import copy
import functools
import re
import shlex
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import botocore.session
import botocore.validate
import jsonschema
import kubernetes_validate
import manifests
import pytest
import ray
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.runtime_env import RuntimeEnv
from ray.runtime_env.runtime_env import _merge_runtime_env

from cluster.head import STOP_SECONDS
from cluster.machines import DECODERS, HEADS, MACHINES, REGIONS, TRAINERS, Cloud
from cluster.plan import OBJECT_STORE_SHARE
from cluster.rank_datasets import DATA_NODES
from cluster.worker_environment import WORKER_ENVIRONMENT
from jobs.command_line import parsing

ROOT = Path(__file__).parent.parent.parent
CLUSTER = ROOT / "cluster"
CLOUDS: tuple[Cloud, ...] = ("aws", "gcp")
KUBERAY = ("rayjob", "raycluster")
PINNED = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
TOKEN_PATH = "/home/ray/.ray/auth_token"

Change = Callable[[dict[str, Any]], Any]


def of_machines(cloud: str) -> dict[str, Any]:
    return yaml.safe_load((CLUSTER / f"{cloud}.yaml").read_text())


def of_pods(name: str) -> dict[str, Any]:
    return yaml.safe_load((CLUSTER / "kuberay" / f"{name}.yaml").read_text())


def cluster_spec(manifest: dict[str, Any]) -> dict[str, Any]:
    return manifest["spec"]["rayClusterSpec"] if manifest["kind"] == "RayJob" else manifest["spec"]


def groups(spec: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Worker groups of a RayCluster by their name."""
    return {group["groupName"]: group for group in spec["workerGroupSpecs"]}


def changed(config: dict[str, Any], change: Change) -> dict[str, Any]:
    config = copy.deepcopy(config)
    change(config)
    return config


# What a file may say


def refuse_by_ray(config: dict[str, Any]) -> None:
    """Ray's own schema, and its own rules on heads and minima."""
    validate_config(prepare_config(copy.deepcopy(config)))


@functools.cache
def run_instances() -> Any:
    """What EC2's RunInstances takes, by botocore's model of the service."""
    return botocore.session.Session().get_service_model("ec2").operation_model("RunInstances").input_shape


def refuse_by_ec2(node_config: dict[str, Any]) -> None:
    """ValueError with what EC2's model of RunInstances does not know, in the sizes in which Ray asks for machines."""
    shape = run_instances()
    asked = node_config | {"MinCount": 1, "MaxCount": 1}
    unknown = unknown_members(asked, shape)
    report = botocore.validate.ParamValidator().validate(asked, shape)
    if unknown or report.has_errors():
        raise ValueError(f"{sorted(unknown)} {report.generate_report()}")


def unknown_members(value: Any, shape: Any, path: str = "") -> set[str]:
    """Paths of the keys that no structure of the model names; botocore itself looks at the top level only."""
    if isinstance(value, dict) and shape.type_name == "structure":
        unknown = {f"{path}.{key}" for key in value.keys() - shape.members.keys()}
        known = value.keys() & shape.members.keys()
        return unknown.union(*(unknown_members(value[key], shape.members[key], f"{path}.{key}") for key in known))
    if isinstance(value, list):
        return set().union(*(unknown_members(each, shape.member, f"{path}[]") for each in value))
    allowed = getattr(shape, "enum", [])
    return {f"{path}={value}"} if allowed and value not in allowed else set()


def refuse_by_kuberay(manifest: dict[str, Any]) -> None:
    """The closed schema of the resource, and Kubernetes' own of each pod in it."""
    jsonschema.validate(manifest, manifests.RAY_JOB if manifest["kind"] == "RayJob" else manifests.RAY_CLUSTER)
    spec = cluster_spec(manifest)
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "any"}, **group["template"]}
        kubernetes_validate.validate(pod, "1.34", strict=True)


@pytest.mark.parametrize("cloud", CLOUDS)
def test_ray_reads_the_file(cloud: Cloud) -> None:
    refuse_by_ray(of_machines(cloud))


@pytest.mark.parametrize("cloud", CLOUDS)
@pytest.mark.parametrize(
    "change",
    [
        lambda config: config["available_node_types"]["decode"].update(lables={}),
        lambda config: config.update(max_worker=3),
        lambda config: config["available_node_types"]["gpu"]["resources"].update(GPU="four"),
        lambda config: config.update(head_node_type="haed"),
        lambda config: config["available_node_types"]["decode"].update(min_workers=13),
    ],
)
def test_ray_refuses_a_slip(cloud: Cloud, change: Change) -> None:
    with pytest.raises((ValueError, jsonschema.ValidationError)):
        refuse_by_ray(changed(of_machines(cloud), change))


@pytest.mark.parametrize("name", ["head", "decode", "gpu"])
def test_ec2_knows_every_machine_setting(name: str) -> None:
    refuse_by_ec2(of_machines("aws")["available_node_types"][name]["node_config"])


@pytest.mark.parametrize(
    "change",
    [
        lambda node: node.update(InstanceTyp="c7i.8xlarge"),
        lambda node: node.update(InstanceType="c7i.9xlarge"),
        lambda node: node["InstanceMarketOptions"].update(MarketTyp="spot"),
        lambda node: node["InstanceMarketOptions"].update(MarketType="spott"),
        lambda node: node["BlockDeviceMappings"][0]["Ebs"].update(VolumeSize="200 GB"),
    ],
)
def test_ec2_refuses_a_slip(change: Change) -> None:
    decode = of_machines("aws")["available_node_types"]["decode"]["node_config"]
    with pytest.raises(ValueError, match=r"\.|Invalid"):
        refuse_by_ec2(changed(decode, change))


@pytest.mark.parametrize("name", ["head", "decode", "gpu"])
def test_compute_engine_knows_every_machine_setting(name: str) -> None:
    jsonschema.validate(of_machines("gcp")["available_node_types"][name]["node_config"], manifests.GCP_INSTANCE)


@pytest.mark.parametrize(
    "change",
    [
        lambda node: node.update(machinetype="n2-standard-32"),
        lambda node: node.pop("disks"),
        lambda node: node.update(scheduling=[{"preemptible": True}]),
        lambda node: node["scheduling"].update(provisioningModel="SPOTTY"),
        lambda node: node["disks"][0]["initializeParams"].update(sourceImage="common-cpu"),
        lambda node: node["guestAccelerators"][0].update(acceleratorCount=0),
    ],
)
def test_compute_engine_refuses_a_slip(change: Change) -> None:
    gpu = of_machines("gcp")["available_node_types"]["gpu"]["node_config"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(changed(gpu, change), manifests.GCP_INSTANCE)


@pytest.mark.parametrize("name", KUBERAY)
def test_kubernetes_knows_every_setting(name: str) -> None:
    refuse_by_kuberay(of_pods(name))


@pytest.mark.parametrize("name", KUBERAY)
@pytest.mark.parametrize(
    "change",
    [
        lambda spec: spec.update(enableInTreeAutoscalling=True),
        lambda spec: spec["autoscalerOptions"].update(version="v3"),
        lambda spec: spec["authOptions"].update(mode="tokens"),
        lambda spec: spec["workerGroupSpecs"][0].update(label={}),
        lambda spec: spec["workerGroupSpecs"][0].pop("groupName"),
        lambda spec: spec["headGroupSpec"]["rayStartParams"].update({"num-cpus": 0}),
        lambda spec: spec["headGroupSpec"]["template"]["spec"].update(restartPolicie="Never"),
        lambda spec: spec["headGroupSpec"]["template"]["spec"]["containers"][0].update(imagee="x"),
        lambda spec: spec["workerGroupSpecs"][1]["template"]["spec"]["containers"][0].pop("name"),
    ],
)
def test_kubernetes_refuses_a_slip(name: str, change: Change) -> None:
    manifest = changed(of_pods(name), lambda manifest: change(cluster_spec(manifest)))
    with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
        refuse_by_kuberay(manifest)


# What the job needs of them


@pytest.mark.parametrize("cloud", CLOUDS)
def test_machines_do_their_parts(cloud: Cloud) -> None:
    config = of_machines(cloud)
    types = config["available_node_types"]
    assert types.keys() == {"head", "decode", "gpu"}
    assert config["head_node_type"] == "head"
    assert types["head"]["resources"]["CPU"] == 0
    assert types["head"]["max_workers"] == 0
    assert [name for name, node in types.items() if node.get("labels") == DATA_NODES] == ["decode"]
    assert not any("labels" in types[name] for name in ("head", "gpu"))
    for name in ("decode", "gpu"):
        assert types[name]["min_workers"] == 0 < types[name]["max_workers"]
    assert sum(types[name]["max_workers"] for name in types) <= config["max_workers"]
    assert not types["decode"]["resources"].get("GPU")


@pytest.mark.parametrize("cloud", CLOUDS)
def test_resources_are_those_of_the_machines(cloud: Cloud) -> None:
    config = of_machines(cloud)
    assert config["provider"]["type"] == cloud
    assert config["provider"]["region"] == REGIONS[cloud]
    for name, table in {"head": HEADS, "decode": DECODERS, "gpu": TRAINERS}.items():
        node = config["available_node_types"][name]
        settings = node["node_config"]
        machine = MACHINES[settings["InstanceType" if cloud == "aws" else "machineType"]]
        assert machine.name == table[cloud]
        if name != "head":
            assert node["resources"]["CPU"] == machine.vcpus
            assert node["resources"].get("GPU", 0) == machine.num_gpus
        if cloud == "gcp":
            accelerators = settings.get("guestAccelerators", [])
            assert sum(each["acceleratorCount"] for each in accelerators) == machine.num_gpus


def is_spot(node_config: dict[str, Any]) -> bool:
    scheduling = node_config.get("scheduling", {})
    assert scheduling.get("preemptible", False) == (scheduling.get("provisioningModel") == "SPOT")
    return "InstanceMarketOptions" in node_config or scheduling.get("provisioningModel") == "SPOT"


@pytest.mark.parametrize("cloud", CLOUDS)
def test_only_decoding_is_on_spot(cloud: Cloud) -> None:
    types = of_machines(cloud)["available_node_types"]
    assert {name for name, node in types.items() if is_spot(node["node_config"])} == {"decode"}
    if cloud == "aws":
        assert of_machines(cloud)["provider"]["cache_stopped_nodes"] is False


@pytest.mark.parametrize("cloud", CLOUDS)
def test_machines_have_the_token_and_the_dashboard_is_not_open(cloud: Cloud) -> None:
    config = of_machines(cloud)
    options = config["docker"]["run_options"]
    assert "--env RAY_AUTH_MODE=token" in options
    assert f"--env RAY_AUTH_TOKEN_PATH={TOKEN_PATH}" in options
    assert config["file_mounts"][TOKEN_PATH] == "~/.ray/auth_token"
    assert any("--dashboard-host=127.0.0.1" in command for command in config["head_start_ray_commands"])
    assert "security_group" not in config["provider"], "an own group would have to be looked at for port 8265"
    assert not re.search(r"0\.0\.0\.0", (CLUSTER / f"{cloud}.yaml").read_text())


@pytest.mark.parametrize("cloud", CLOUDS)
def test_workers_listen_for_spot_notices_of_their_cloud(cloud: Cloud) -> None:
    commands = of_machines(cloud)["worker_start_ray_commands"]
    assert any(
        f"python -m cluster.spot_notice --cloud {cloud} --address $RAY_HEAD_IP:6379 " in command for command in commands
    )


@pytest.mark.parametrize("name", KUBERAY)
def test_pods_do_their_parts(name: str) -> None:
    spec = cluster_spec(of_pods(name))
    head, by_name = spec["headGroupSpec"], groups(spec)
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["enableInTreeAutoscaling"] is True
    assert spec["autoscalerOptions"]["version"] == "v2"
    assert head["rayStartParams"]["num-cpus"] == "0"
    assert by_name.keys() == {"decode", "gpu"}
    assert by_name["decode"]["labels"] == DATA_NODES
    assert "labels" not in by_name["gpu"]
    assert "labels" not in head
    for group in by_name.values():
        assert group["minReplicas"] == group["replicas"] == 0 < group["maxReplicas"]
    for role, group in {"head": head, **by_name}.items():
        pod = group["template"]["spec"]
        wants_spot = pod.get("nodeSelector", {}).get("cloud.google.com/gke-spot") == "true"
        assert wants_spot == (role == "decode")
        assert wants_spot != ("DoesNotExist" in str(pod.get("affinity")))
        assert pod["restartPolicy"] == "Never"
        assert pod["securityContext"]["runAsUser"] == 1000
        assert ("nvidia.com/gpu" in pod["containers"][0]["resources"]["limits"]) == (role == "gpu")
    assert by_name["gpu"]["template"]["spec"]["terminationGracePeriodSeconds"] > STOP_SECONDS


@pytest.mark.parametrize("name", KUBERAY)
def test_pods_have_memory_for_the_object_store(name: str) -> None:
    spec = cluster_spec(of_pods(name))
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        shared = next(volume for volume in pod["volumes"] if volume["name"] == "shared-memory")["emptyDir"]
        memory = pod["containers"][0]["resources"]["limits"]["memory"]
        assert shared["medium"] == "Memory"
        assert gibibytes(shared["sizeLimit"]) >= OBJECT_STORE_SHARE * gibibytes(memory)
        assert {"name": "shared-memory", "mountPath": "/dev/shm"} in pod["containers"][0]["volumeMounts"]


def gibibytes(quantity: str) -> int:
    assert quantity.endswith("Gi")
    return int(quantity[:-2])


def test_pods_fit_the_machines() -> None:
    by_name = groups(cluster_spec(of_pods("raycluster")))
    for name, table in {"decode": DECODERS, "gpu": TRAINERS}.items():
        machine = MACHINES[table["gcp"]]
        limits = by_name[name]["template"]["spec"]["containers"][0]["resources"]["limits"]
        assert 0.9 * machine.vcpus <= int(limits["cpu"]) < machine.vcpus
        assert 0.8 * machine.memory_gib <= gibibytes(limits["memory"]) < machine.memory_gib
        assert int(limits.get("nvidia.com/gpu", 0)) == machine.num_gpus


def test_job_and_cluster_are_the_same_cluster() -> None:
    assert of_pods("rayjob")["spec"]["rayClusterSpec"] == of_pods("raycluster")["spec"]


# Image and runtime environment


def images() -> dict[str, list[str]]:
    """File → the images that it names."""
    files = [CLUSTER / f"{cloud}.yaml" for cloud in CLOUDS] + [CLUSTER / "kuberay" / f"{name}.yaml" for name in KUBERAY]
    return {file.name: re.findall(r"image: (registry\S+)", file.read_text()) for file in files}


def test_every_image_has_the_pinned_ray_in_its_tag() -> None:
    assert PINNED["ray"] == ray.__version__
    for file, named in images().items():
        assert len(named) == 3, file
        assert {name.rpartition(":")[2] for name in named} == {f"{PINNED['ray']}-cpu", f"{PINNED['ray']}-gpu"}
    for name in KUBERAY:
        assert cluster_spec(of_pods(name))["rayVersion"] == PINNED["ray"]
    assert set(re.findall(r"snps3-ray:(\S+)-[cg]pu", (CLUSTER / "Dockerfile").read_text())) == {PINNED["ray"]}


@pytest.mark.parametrize("cloud", CLOUDS)
def test_only_machines_with_gpus_load_the_large_image(cloud: Cloud) -> None:
    config = of_machines(cloud)
    assert config["docker"]["head_image"].endswith("-cpu")
    assert config["docker"]["worker_image"].endswith("-cpu")
    overrides = {
        name: node["docker"]["worker_image"]
        for name, node in config["available_node_types"].items()
        if "docker" in node
    }
    assert overrides.keys() == {"gpu"}
    assert overrides["gpu"].endswith("-gpu")


def dockerfile_faults(text: str) -> set[str]:
    """What is wrong with a Dockerfile, in words."""
    instructions = re.sub(r"\\\n", " ", re.sub(r"^\s*#.*\n", "", text, flags=re.M)).splitlines()
    of = {
        word: [line.partition(" ")[2] for line in instructions if line.startswith(f"{word} ")]
        for word in ("FROM", "USER", "RUN", "ENV", "COPY")
    }
    environment = " ".join(of["ENV"])
    checks = {
        "the base is not pinned": all(re.fullmatch(r"\S+:\d+\.\d+\S*", base) for base in of["FROM"]),
        "it runs as root": bool(of["USER"]) and of["USER"][-1] not in ("0", "root"),
        "ray up would mount into /root": "HOME=/home/ray" in environment,
        "authentication is off": "RAY_AUTH_MODE=token" in environment,
        "a stopped job has no time": f"RAY_JOB_STOP_WAIT_TIME_S={STOP_SECONDS} " in environment + " ",
        "something is installed without the lock": all(
            "--constraint constraints.txt" in step or "--no-deps ." in step
            for line in of["RUN"]
            for step in line.split("&&")
            if "pip install" in step
        ),
        "a secret is in it": not re.search(r"(?i)(secret|password|token|key)\w*\s*=\s*\S{12,}", text),
        "apt's lists stay": all("rm -rf /var/lib/apt/lists" in line for line in of["RUN"] if "apt-get" in line),
        "rsync or ssh is missing": any("rsync" in line and "openssh-client" in line for line in of["RUN"]),
        "code comes before dependencies": of["COPY"][-1].startswith(". "),
    }
    return {fault for fault, is_fine in checks.items() if not is_fine}


def test_the_image_is_built_as_it_should_be() -> None:
    assert dockerfile_faults((CLUSTER / "Dockerfile").read_text()) == set()


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("python:3.11-slim-bookworm", "python:latest", "the base is not pinned"),
        ("USER 1000", "USER root", "it runs as root"),
        ("USER 1000", "", "it runs as root"),
        ("HOME=/home/ray", "HOME=/root", "ray up would mount into /root"),
        ("RAY_AUTH_MODE=token", "RAY_AUTH_MODE=disabled", "authentication is off"),
        ("TIME_S=120", "TIME_S=3", "a stopped job has no time"),
        ("--constraint constraints.txt --requirement", "--requirement", "something is installed without the lock"),
        ("DO_NOT_TRACK=1", "AWS_SECRET_ACCESS_KEY=abcdefghijklmnop", "a secret is in it"),
        ("openssh-client rsync", "", "rsync or ssh is missing"),
    ],
)
def test_an_image_with_a_fault_is_refused(old: str, new: str, fault: str) -> None:
    text = (CLUSTER / "Dockerfile").read_text()
    assert old in text
    assert fault in dockerfile_faults(text.replace(old, new))


def test_every_package_of_the_wheel_comes_into_the_image() -> None:
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]
    packages = {path.parent.name for pattern in setup["include"] for path in ROOT.glob(f"{pattern}/__init__.py")}
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert packages
    assert packages <= {line.removeprefix("!") for line in ignored if line.startswith("!")}


def test_the_runtime_environment_can_be_had() -> None:
    settings = yaml.safe_load((CLUSTER / "runtime_env.yaml").read_text())
    assert settings.keys() == {"env_vars"}
    assert all(isinstance(value, str) for value in settings["env_vars"].values())
    merged = _merge_runtime_env(RuntimeEnv(**settings), RuntimeEnv(env_vars=WORKER_ENVIRONMENT))
    assert merged is not None, "Ray refuses a variable that the job's own environment sets too"
    clash = RuntimeEnv(env_vars=dict.fromkeys(settings["env_vars"], "1"))
    assert _merge_runtime_env(RuntimeEnv(**settings), clash) is None


def test_ray_reads_the_variables_of_the_runtime_environment() -> None:
    names = yaml.safe_load((CLUSTER / "runtime_env.yaml").read_text())["env_vars"].keys()
    files = [Path(ray.__path__[0], place) for place in ("data/context.py", "train/v2/_internal/constants.py")]
    known = set(re.findall(r'"(RAY_\w+)"', "".join(file.read_text() for file in files)))
    assert {name for name in names if name.startswith("RAY_")} <= known


def test_the_job_on_kubernetes_has_the_same_runtime_environment() -> None:
    inline = yaml.safe_load(of_pods("rayjob")["spec"]["runtimeEnvYAML"])
    assert inline == yaml.safe_load((CLUSTER / "runtime_env.yaml").read_text())


# Commands


def job_arguments(command: str) -> list[str]:
    """What follows `python -m jobs.pretrain` in a command."""
    words = shlex.split(command)
    start = next(
        number for number in range(len(words)) if words[number : number + 3] == ["python", "-m", "jobs.pretrain"]
    )
    return words[start + 3 :]


def commands_of_the_page() -> list[str]:
    """Every command of docs/how-to/run-on-a-cluster.md that pre-trains, with its line breaks taken out."""
    blocks = re.findall(r"```\n(.*?)```", (ROOT / "docs/how-to/run-on-a-cluster.md").read_text(), flags=re.S)
    lines = [line for block in blocks for line in re.sub(r"\\\n\s*", "", block).splitlines()]
    return [line for line in lines if "jobs.pretrain" in line]


def test_the_job_reads_the_entry_point() -> None:
    config = parsing.parse(job_arguments(of_pods("rayjob")["spec"]["entrypoint"])).config
    assert config.placement.use_gpu
    assert config.placement.storage.startswith("s3://")
    decoders = groups(cluster_spec(of_pods("rayjob")))["decode"]
    cpus = int(decoders["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"])
    assert config.placement.decode_cpus <= decoders["maxReplicas"] * cpus
    machine = MACHINES[TRAINERS["gcp"]]
    assert config.placement.num_workers % machine.num_gpus == 0


def test_the_job_refuses_an_entry_point_with_a_slip(capsys: pytest.CaptureFixture[str]) -> None:
    entry = of_pods("rayjob")["spec"]["entrypoint"]
    for slip in (entry.replace(" tiny ", " tini "), entry.replace("--placement.use-gpu", "--placement.use-gpus")):
        with pytest.raises(SystemExit):
            parsing.parse(job_arguments(slip))
    assert "tini" in capsys.readouterr().err


def test_the_page_starts_the_same_job_as_the_manifest() -> None:
    commands = commands_of_the_page()
    assert commands
    wanted = job_arguments(of_pods("rayjob")["spec"]["entrypoint"])
    for command in commands:
        found = [word.replace("gs://", "s3://") for word in job_arguments(command)]
        assert found == wanted, command
