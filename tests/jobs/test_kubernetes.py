"""Manifests for KubeRay: they fit its schema, run the very command that runs here, and hold no secret. None was ever run."""

import copy
import hashlib
import json
import re
import shlex
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from jobs import kubernetes
from jobs.command_line import command_of
from jobs.kuberay import ClusterOptions
from jobs.sweep import Sweep
from jobs.train import Train
from rayrec.data.public.logs import PUBLIC_DATASETS
from rayrec.families.ranker.experiment import RankerExperiment
from rayrec.registry import ResolvedModel
from rayrec.runs.sweeping import SweepConfig
from rayrec.training.experiment import ScalingOptions
from rayrec.typed_json import ConfigError, from_plain, to_plain
from serve_apps.cascade.application import CascadeService
from serve_apps.cascade.versions import CascadeReferences, Experiment
from serve_apps.ranker.application import RankerService
from serve_apps.serve_config import application_config
from serve_apps.service.model_reference import ModelReference

SCHEMA = yaml.safe_load((Path(__file__).parent / "kuberay_crds.yaml").read_text())
JOB = "job --name first --image registry.local/rayrec:1.4 --claim shared"
SERVICE = "service --name ranker --image registry.local/rayrec:1.4 --claim shared --access-secret access"
TRAIN = "python -m jobs.train ranker --name first --log /shared/logs/mine --scaling.workers 4"
SWEEP = "python -m jobs.sweep ranker --name sweep --base.log '/shared/logs/of may' --trials 4"
SERVE = "python -m jobs.serve --model models:/ranker@serving --service.replicas 3"
CASCADE = "python -m jobs.serve cascade --late models:/late/7 --service.early.replicas 2 --port 9000"
FREE = {"rayStartParams", "limits", "requests"}  # maps whose keys are the user's
ALL = {
    "train": (JOB, TRAIN),
    "train with all options": (
        f"{JOB} --gpus 2 --tracking-uri http://mlflow:5000 --secret keys --ray-token-secret ray --pull-secret pull "
        "--namespace ads --retries 0 --keep-s 600 --deadline-s 3600 --mount /mnt/all --workers 3",
        TRAIN,
    ),
    "sweep": (JOB, SWEEP),
    "import": (JOB, f"python -m jobs.import_logs {next(iter(PUBLIC_DATASETS))} --source /shared/raw --out /shared/log"),
    "simulate": (JOB, "python -m jobs.simulate --out /shared/logs/simulated --requests 5000"),
    "serve": (SERVICE, SERVE),
    "cascade": (SERVICE, CASCADE),
}


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every model is a ranker."""
    monkeypatch.setattr("jobs.serve.resolve_model", lambda name: ResolvedModel(Path("/bundle"), name, "1"))
    monkeypatch.setattr("jobs.serve.bundle_kind", lambda folder: "ranker")


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The text of the file that the job writes for these options and this command."""

    def run(options: str, command: str) -> str:
        out = tmp_path / "manifest.yaml"
        words = [*shlex.split(options), "--out", str(out), "--", *shlex.split(command)]
        monkeypatch.setattr("sys.argv", ["jobs.kubernetes", *words])
        kubernetes.main()
        return out.read_text()

    return run


def fits(manifest: Any) -> bool:
    return jsonschema.Draft202012Validator(SCHEMA).is_valid(manifest)


def cluster_of(manifest: Any) -> Any:
    return manifest["spec"].get("rayClusterSpec") or manifest["spec"]["rayClusterConfig"]


def pods_of(manifest: Any) -> list[Any]:
    cluster = cluster_of(manifest)
    pods = [cluster["headGroupSpec"]["template"], *(group["template"] for group in cluster["workerGroupSpecs"])]
    if "submitterPodTemplate" in manifest["spec"]:
        pods.append(manifest["spec"]["submitterPodTemplate"])
    return [pod["spec"] for pod in pods]


def keys_of(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The place of every key that a schema knows."""
    if isinstance(value, dict):
        for key, below in value.items():
            if not at or at[-1] not in FREE:
                yield (*at, key)
            yield from keys_of(below, (*at, key))
    elif isinstance(value, list):
        for number, below in enumerate(value):
            yield from keys_of(below, (*at, number))


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize(("options", "command"), ALL.values(), ids=ALL)
def test_a_manifest_fits_the_schema_of_kuberay(options: str, command: str, make: Any) -> None:
    found = yaml.safe_load(make(options, command))
    jsonschema.validate(found, SCHEMA)
    assert found["kind"] == ("RayJob" if options.startswith("job") else "RayService")
    assert cluster_of(found)["rayVersion"] == version("ray")


@pytest.mark.parametrize("what", ["train with all options", "cascade"])
def test_any_misspelt_field_is_refused_by_the_schema(what: str, make: Any) -> None:
    found = yaml.safe_load(make(*ALL[what]))
    places = list(keys_of(found))
    assert len(places) > 80
    for *above, key in places:
        wrong = copy.deepcopy(found)
        place = wrong
        for step in above:
            place = place[step]
        place[f"{key}s"] = place.pop(key)
        assert not fits(wrong), [*above, key]


@pytest.mark.parametrize(
    ("change", "value"),
    [("backoffLimit", "1"), ("backoffLimit", -1), ("submissionMode", "HttpMode"), ("shutdownAfterJobFinishes", "yes")],
)
def test_a_value_of_another_type_is_refused_by_the_schema(change: str, value: Any, make: Any) -> None:
    found = yaml.safe_load(make(JOB, TRAIN))
    found["spec"][change] = value
    assert not fits(found)


def test_a_job_runs_the_command_of_this_machine_and_means_the_same(make: Any) -> None:
    for command in (TRAIN, SWEEP):
        assert shlex.split(yaml.safe_load(make(JOB, command))["spec"]["entrypoint"]) == shlex.split(command)
    log = Path("/shared/logs/mine")
    assert command_of("jobs.train", shlex.split(TRAIN)[3:]) == Train(
        "first", RankerExperiment(log=log), ScalingOptions(workers=4)
    )
    swept = SweepConfig(RankerExperiment(log=Path("/shared/logs/of may")), trials=4)
    assert command_of("jobs.sweep", shlex.split(SWEEP)[3:]) == Sweep("sweep", swept)


def test_a_service_is_deployed_by_the_config_of_this_machine(make: Any) -> None:
    found = yaml.safe_load(make(SERVICE, SERVE))
    config = yaml.safe_load(found["spec"]["serveConfigV2"])
    schema = ServeDeploySchema.model_validate(config)
    wanted = application_config(RankerService(replicas=3), ModelReference("models:/ranker@serving"))
    assert config["applications"] == [wanted]
    assert from_plain(RankerService, wanted["args"]) == RankerService(replicas=3)
    (application,) = schema.applications
    module, _, build = application.import_path.partition(":")
    assert callable(getattr(import_module(module), build))
    assert schema.http_options.port == 8000


def test_a_cascade_is_deployed_with_its_experiment_and_port(make: Any, tmp_path: Path) -> None:
    tried = tmp_path / "tried.json"
    tried.write_text(
        json.dumps({"name": "late-8", "arms": [{"name": "new", "share": 1, "late": {"model": "models:/late/8"}}]})
    )
    found = yaml.safe_load(make(SERVICE, f"{CASCADE} --experiment {tried}"))
    config = yaml.safe_load(found["spec"]["serveConfigV2"])
    ServeDeploySchema.model_validate(config)
    (application,) = config["applications"]
    assert [part["name"] for part in application["deployments"]] == list(CascadeService.deployments)
    for part in application["deployments"]:
        references = from_plain(CascadeReferences, part["user_config"])
        assert references.late == ModelReference("models:/late/7")
        assert references.experiment == from_plain(Experiment, json.loads(tried.read_text()))
    args = from_plain(CascadeService, application["args"])
    assert (args.early.replicas, config["http_options"]["port"]) == (2, 9000)
    for pod in pods_of(found):
        assert {"name": "serve", "containerPort": 9000} in pod["containers"][0]["ports"]


@pytest.mark.parametrize(("options", "command"), ALL.values(), ids=ALL)
def test_pods_are_not_root_are_bounded_and_are_reached_from_inside_only(options: str, command: str, make: Any) -> None:
    found = yaml.safe_load(make(options, command))
    for pod in pods_of(found):
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["runAsUser"] > 0
        assert not pod["automountServiceAccountToken"]
        for container in pod["containers"]:
            assert container["resources"]["limits"] == container["resources"]["requests"]
            assert {"cpu", "memory"} <= container["resources"]["limits"].keys()
            assert not container["securityContext"]["allowPrivilegeEscalation"]
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert cluster_of(found)["authOptions"]["mode"] == "token"
    assert cluster_of(found)["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert not {"NodePort", "LoadBalancer", "enableIngress", "hostPort", "hostNetwork"} & set(
        re.findall(r"\w+", str(found))
    )


def test_sizes_go_to_the_workers_and_the_head_takes_no_work(make: Any) -> None:
    options = f"{JOB} --workers 3 --cpus 8 --memory-gib 64 --gpus 2 --head-cpus 1 --head-memory-gib 5"
    cluster = cluster_of(yaml.safe_load(make(options, f"{TRAIN} --scaling.device gpu")))
    (group,) = cluster["workerGroupSpecs"]
    assert {group["replicas"], group["minReplicas"], group["maxReplicas"]} == {3}
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert limits == {"cpu": "8", "memory": "64Gi", "nvidia.com/gpu": "2"}
    head = cluster["headGroupSpec"]
    assert head["rayStartParams"]["num-cpus"] == "0"
    assert head["template"]["spec"]["containers"][0]["resources"]["limits"] == {"cpu": "1", "memory": "5Gi"}


def test_all_pods_of_a_cluster_share_the_volume_and_the_variables(make: Any) -> None:
    found = yaml.safe_load(make(*ALL["train with all options"]))
    for pod in pods_of(found)[:2]:
        (container,) = pod["containers"]
        (mount,), (volume,) = container["volumeMounts"], pod["volumes"]
        assert mount["name"] == volume["name"]
        assert (mount["mountPath"], volume["persistentVolumeClaim"]["claimName"]) == ("/mnt/all", "shared")
        assert {each["name"]: each["value"] for each in container["env"]} == {
            "RAYREC_RUNS": "/mnt/all/runs", "RAYREC_DATA": "/mnt/all/data", "MLFLOW_TRACKING_URI": "http://mlflow:5000",
        }  # fmt: skip
        assert container["envFrom"] == [{"secretRef": {"name": "keys"}}]


@pytest.mark.parametrize(("options", "command"), ALL.values(), ids=ALL)
def test_no_secret_of_this_machine_is_in_the_file(
    options: str, command: str, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    secrets = {"RAYREC_TOKEN": "open-sesame", "RAY_AUTH_TOKEN": "simsalabim", "RAYREC_LLM_KEY": "abrakadabra"}
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    text = make(options, command)
    for value in secrets.values():
        assert value not in text
        assert hashlib.sha256(value.encode()).hexdigest() not in text
    if options.startswith("service"):
        for pod in pods_of(yaml.safe_load(text)):
            (token,) = [each for each in pod["containers"][0]["env"] if each["name"] == "RAYREC_TOKEN"]
            assert token["valueFrom"] == {"secretKeyRef": {"name": "access", "key": "token"}}


@pytest.mark.parametrize(
    ("options", "command", "message"),
    [
        (JOB, f"{TRAIN} --epoch 3", "Unrecognized"),
        (JOB, f"{TRAIN} --scaling.workers many", "invalid"),
        (JOB, TRAIN.replace("/shared/", ""), "experiment.log logs/mine: must be an absolute path"),
        (JOB, f"{TRAIN} --scaling.cpus-per-worker 2", "do not fit in 2 pods of 4 cores"),
        (JOB, f"{TRAIN} --scaling.cpus-per-worker 5", "do not fit in 2 pods of 4 cores"),
        (JOB, f"{TRAIN} --scaling.device gpu", "4 workers with a GPU each do not fit"),
        (JOB, "python train.py", "a command is needed that runs here"),
        (JOB, "python -m jobs.trian ranker", "jobs.trian: there is no such job"),
        (JOB, "python -m jobs.perturbation_lab", "reads its options by jobs.command_line"),
        (JOB, SERVE, "jobs.serve is a service"),
        (SERVICE, TRAIN, "jobs.train is a job"),
        (SERVICE, f"{SERVE} --service.max-runing 3", "Unrecognized"),
        (SERVICE, f"{SERVE} --host 0.0.0.0", "host has no meaning"),
        (SERVICE, f"{SERVE} --port 80", "pods are not root"),
        (SERVICE, f"{SERVE} --service.token-sha256 ab", "would stand in the manifest"),
        (SERVICE, f"{SERVE} --service.request-log logs", "service.request_log logs: must be an absolute path"),
        (SERVICE, SERVE.replace("models:/ranker@serving", "runs/first/bundle"), "model runs/first/bundle: must be an absolute"),
        (SERVICE, f"{CASCADE} --service.traffic.folder seen", "service.traffic.folder seen: must be an absolute path"),
        (f"{JOB} --tracking-uri http://me:pw@mlflow", TRAIN, "tracking_uri must be"),
        (JOB, f"{TRAIN} --register http://me:pw@mlflow/x", "holds a password"),
        (JOB.replace(":1.4", ""), TRAIN, "must be named with a tag"),
        (JOB.replace("1.4", "latest"), TRAIN, "must be named with a tag"),
        (f"{JOB} --user 0", TRAIN, "user must be at least 1"),
        (f"{JOB} --workers 0", TRAIN, "workers must be at least 1"),
        (f"{JOB} --mount shared", TRAIN, "must be an absolute path"),
        (JOB.replace("first", "First_run"), TRAIN, "name 'First_run'"),
        (JOB.replace("--claim shared", "--claim My_Claim"), TRAIN, "claim 'My_Claim'"),
        (f"{JOB} --retries -1", TRAIN, "retries must be at least 0"),
    ],
)  # fmt: skip
def test_what_cannot_run_is_refused_with_a_line_and_nothing_is_written(
    options: str, command: str, message: str, make: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises((SystemExit, ConfigError)) as refused:
        make(options, command)
    assert message in f"{refused.value} {capsys.readouterr().err}"
    assert not (tmp_path / "manifest.yaml").exists()


def test_the_shadow_ranker_of_an_experiment_needs_processes(make: Any, tmp_path: Path) -> None:
    tried = tmp_path / "tried.json"
    tried.write_text(to_json_with_shadow())
    with pytest.raises(SystemExit, match="shadow_replicas"):
        make(SERVICE, f"{CASCADE} --experiment {tried}")


def to_json_with_shadow() -> str:
    return json.dumps(to_plain(Experiment("watched", shadow=ModelReference("models:/late/9"))))


def test_a_name_is_as_long_as_the_operator_takes_it(make: Any) -> None:
    assert make(JOB.replace("first", "a" * 47), TRAIN)
    with pytest.raises(SystemExit, match="at most 47"):
        make(JOB.replace("first", "a" * 48), TRAIN)


def test_a_digest_names_an_image_as_well() -> None:
    assert ClusterOptions(f"registry.local:5000/rayrec@sha256:{'0' * 64}", "shared").workers == 2


def test_a_command_that_is_only_read_does_nothing(tmp_path: Path) -> None:
    found = command_of("jobs.simulate", ["--out", str(tmp_path / "log"), "--requests", "7"])
    assert found.out == tmp_path / "log"
    assert not list(tmp_path.iterdir())


def test_every_job_takes_its_command_where_it_can_be_stopped() -> None:
    """Else ``command_of`` would carry it out."""
    for file in Path(kubernetes.__file__).parent.glob("*.py"):
        if file.name != "command_line.py":
            text = file.read_text()
            assert len(re.findall(r"tyro\.(?:cli|extras\.\w+)\(", text)) == len(re.findall(r"taken\(tyro\.", text)), (
                file
            )
