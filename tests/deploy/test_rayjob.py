"""deploy/rayjob.yaml: fields that the KubeRay operator has, a config that runs, and one folder that all pods share."""

from __future__ import annotations

import copy
import json
import shlex
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

import nlrl
from nlrl.orchestration.checks import check
from nlrl.orchestration.config import RunConfig, validated

jsonschema = pytest.importorskip("jsonschema")
yaml = pytest.importorskip("yaml")

SCHEMA = json.loads((Path(__file__).parent / "rayjob.schema.json").read_text())
CONFIG_MAP, JOB = yaml.safe_load_all((Path(nlrl.__file__).parent / "deploy/rayjob.yaml").read_text())
CLUSTER = JOB["spec"]["rayClusterSpec"]
PODS = [group["template"]["spec"] for group in (CLUSTER["headGroupSpec"], *CLUSTER["workerGroupSpecs"])]


def test_the_manifest_fits_the_schema_of_the_custom_resource():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(JOB, SCHEMA)


@pytest.mark.parametrize(
    ("place", "name", "value"),
    [
        (("spec",), "backOffLimit", 3),
        (("spec",), "backoffLimit", "3"),
        (("spec", "rayClusterSpec", "headGroupSpec", "rayStartParams"), "num-cpus", 0),
        (("spec", "rayClusterSpec", "workerGroupSpecs", 0), "maxReplicas", -1),
        (("spec", "rayClusterSpec", "workerGroupSpecs", 0, "template", "spec", "containers", 0), "Image", "x"),
    ],
)
def test_what_the_operator_would_refuse_is_refused(place, name, value):
    broken = within = copy.deepcopy(JOB)
    for key in place:
        within = within[key]
    within[name] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(broken, SCHEMA)


def test_the_entrypoint_runs_the_config_that_the_map_holds_and_writes_to_what_all_pods_share():
    command, verb, path = shlex.split(JOB["spec"]["entrypoint"])
    assert (command, verb) == ("nlrl", "run")
    config = validated(RunConfig, tomllib.loads(CONFIG_MAP["data"][Path(path).name]), "rayjob.yaml")
    check(config)
    for pod in PODS:
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in pod["containers"][0]["volumeMounts"]}
        assert mounts[str(Path(path).parent)]["configMap"]["name"] == CONFIG_MAP["metadata"]["name"]
        assert "persistentVolumeClaim" in mounts["/" + Path(config.out).parts[1]]


def test_the_cluster_is_of_the_ray_that_is_installed():
    assert CLUSTER["rayVersion"].split(".")[:2] == version("ray").split(".")[:2]
