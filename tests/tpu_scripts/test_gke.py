"""The same run on Kubernetes: the manifest is read back and compared with what the options say."""

from __future__ import annotations

import re
import shlex
from typing import Any

import pytest
import yaml

from tests.tpu_scripts.conftest import SCRIPTS, Laptop

RECIPE = "configs/qwen3_8b_crpo.yaml"
OVERRIDES = ('data.sets=["A B"]', "model.path=it's $(HOME) & more: #1", "a.b=\\n")
PLACE = ("--image", "host/project/image:tag", "--topology", "v5p:2x4x4")


def manifest(laptop: Laptop, *options: str) -> dict[str, Any]:
    return yaml.safe_load(laptop.ok("gke", "--print", *PLACE, *options, RECIPE, *OVERRIDES))


def pod_of(document: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The child job's spec, and that of its pods."""
    (slices,) = document["spec"]["replicatedJobs"]
    job = slices["template"]["spec"]
    return job, job["template"]["spec"]


def test_the_manifest_holds_what_the_options_say(laptop: Laptop) -> None:
    document = manifest(laptop, "--slices=2", "--spot", "--max-restarts", "7", "--run", "first")
    assert (document["apiVersion"], document["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert document["metadata"]["name"] == "my-tpu"
    assert document["spec"]["failurePolicy"]["maxRestarts"] == 7
    assert document["spec"]["replicatedJobs"][0]["replicas"] == 2
    job, pod = pod_of(document)
    assert job["parallelism"] == job["completions"] == 8, "32 chips, 4 in a machine"
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5p-slice",
        "cloud.google.com/gke-tpu-topology": "2x4x4",
        "cloud.google.com/gke-spot": "true",
    }
    (container,) = pod["containers"]
    assert container["image"] == "host/project/image:tag"
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    # Kubernetes replaces $(NAME) by a variable, and then $$ by $.
    assert not any(re.search(r"(?<!\$)\$\(", word) for word in container["command"])
    assert [word.replace("$$", "$") for word in container["command"]] == [
        *("mental-r1", "train", f"{laptop.mount}/recipes/first.yaml"),
        *(f"run.output_dir={laptop.mount}/runs/first", f"data.root={laptop.mount}/data"),
        *OVERRIDES,
    ]
    (volume,) = pod["volumes"]
    assert volume["csi"]["volumeAttributes"]["bucketName"] == "my-bucket"
    assert container["volumeMounts"] == [{"name": volume["name"], "mountPath": str(laptop.mount)}]
    assert laptop.calls() == [], "--print does nothing else"


def test_a_mistake_in_the_recipe_is_not_restarted_and_a_lost_node_is(laptop: Laptop) -> None:
    document = manifest(laptop)
    job, pod = pod_of(document)
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob"
    assert rule["onExitCodes"] == {"containerName": "mental-r1", "operator": "In", "values": [2]}
    assert rule["onExitCodes"]["containerName"] == pod["containers"][0]["name"]
    (policy,) = document["spec"]["failurePolicy"]["rules"]
    assert policy["action"] == "FailJobSet"
    assert policy["onJobFailureReasons"] == ["PodFailurePolicy"]
    assert job["backoffLimit"] == 0 and pod["restartPolicy"] == "Never"


def test_every_place_in_the_template_is_filled_in(laptop: Laptop) -> None:
    places = set(re.findall(r"{{(\w+)}}", (SCRIPTS / "gke/jobset.yaml").read_text()))
    assert len(places) == 11
    assert "{{" not in laptop.ok("gke", "--print", *PLACE, RECIPE)


@pytest.mark.parametrize(
    ("topology", "label", "hosts", "chips", "tpu_type"),
    [
        ("v6e:1x1", "tpu-v6e-slice", 1, 1, "v6e-1"),
        ("v5e:2x4", "tpu-v5-lite-podslice", 1, 8, "v5litepod-8"),
        ("v5e:16x16", "tpu-v5-lite-podslice", 64, 4, "v5litepod-256"),
        ("v5p:2x2x4", "tpu-v5p-slice", 4, 4, "v5p-32"),
        ("v4:2x2x1", "tpu-v4-podslice", 1, 4, "v4-8"),
    ],
)
def test_hosts_and_names_follow_from_the_topology(
    laptop: Laptop, topology: str, label: str, hosts: int, chips: int, tpu_type: str
) -> None:
    job, pod = pod_of(manifest(laptop, "--topology", topology))
    assert job["parallelism"] == hosts
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-accelerator"] == label
    assert pod["containers"][0]["resources"]["limits"]["google.com/tpu"] == chips
    xpk = ("--xpk", "--cluster=c", "--storage=s", "--topology", topology)
    (_, call) = laptop.dry("gke", *PLACE, *xpk, RECIPE)
    assert f"--tpu-type={tpu_type}" in call


@pytest.mark.parametrize("topology", ["v5p", "v5p:", "h100:2x2", "v6e:2xx2", "v6e:0x4"])
def test_an_impossible_topology_is_explained(laptop: Laptop, topology: str) -> None:
    done = laptop.run("gke", *PLACE, "--topology", topology, RECIPE)
    assert done.returncode == 2 and "--topology" in done.stderr and laptop.calls() == []


def test_it_is_built_from_a_commit_and_applied(laptop: Laptop) -> None:
    laptop.ok("gke", "--build", "--run=first", *PLACE, RECIPE, *OVERRIDES)
    assert laptop.outline() == ["docker build", "docker push", "cp", "kubectl apply"]
    build = laptop.calls("docker")[0]
    assert "--tag=host/project/image:tag" in build
    assert (laptop.cloud / "bucket/recipes/first.yaml").is_file()
    dockerfile = (SCRIPTS / "gke/Dockerfile").read_text()
    assert "--constraint tpu_scripts/constraints.txt '.[tpu]'" in dockerfile


def test_xpk_gets_the_same_command_as_one_word(laptop: Laptop) -> None:
    xpk = ("--xpk", "--cluster=my-cluster", "--storage=my-storage")
    laptop.ok("gke", *xpk, *PLACE, "--slices=2", "--run=first", RECIPE, *OVERRIDES)
    (call,) = laptop.calls("xpk")
    command = call.pop().removeprefix("--command=")
    assert shlex.split(command)[-3:] == list(OVERRIDES)
    assert call == [
        *("workload", "create", "--project=my-project", "--zone=us-east5-a"),
        *("--cluster=my-cluster", "--workload=my-tpu", "--tpu-type=v5p-64", "--num-slices=2"),
        *("--docker-image=host/project/image:tag", "--storage=my-storage", "--max-restarts=50"),
    ]
