"""The files of examples/deploy parse, name only what the command line knows, and close what they say they close."""

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

from pipeline.cli import app

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "examples" / "deploy"
UNITS = sorted(DEPLOY.glob("*.service"))
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text("utf-8"))
OURS = [name for name, one in COMPOSE["services"].items() if one["image"] == "maescreen"]
DOCKERFILE = (DEPLOY / "Dockerfile").read_text("utf-8")


def settings(unit: Path) -> list[tuple[str, str, str]]:
    """Return section, name and value of every line of a unit; continued lines are one."""
    found, section = [], ""
    for line in unit.read_text("utf-8").replace("\\\n", " ").splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif line.strip() and not line.startswith("#"):
            name, equals, value = line.partition("=")
            assert equals, f"{unit.name}: {line}"
            found.append((section, name, value))
    return found


def commands() -> dict[str, list[str]]:
    """Return the words after `maescreen` of every unit and service."""
    found = {name: [str(word) for word in COMPOSE["services"][name]["command"]] for name in OURS}
    for unit in UNITS:
        (line,) = (value for _, name, value in settings(unit) if name == "ExecStart")
        program, *words = shlex.split(line)
        assert Path(program).name == "maescreen"
        found[unit.name] = words
    return found


@pytest.mark.parametrize("where", sorted(commands()))
def test_every_command_and_option_exists(where):
    name, *words = commands()[where]
    known = get_command(app).commands
    assert name in known, f"{where}: maescreen {name}"
    options = {option: one for one in known[name].params for option in one.opts if option.startswith("--")}
    given = [word for word in words if word.startswith("--")]
    assert not set(given) - set(options), where
    required = {one.opts[0] for one in options.values() if one.required}
    assert required <= {options[word].opts[0] for word in given}, where
    values = [word for word in words if not word.startswith("--")]
    arguments = 2 if name == "monitor" else 1  # both queues
    assert len(values) - sum(not options[word].is_flag for word in given) == arguments, where


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_a_unit_is_not_root_and_writes_to_its_own_folder_alone(unit):
    service = {name: value for section, name, value in settings(unit) if section == "Service"}
    assert service["User"] == "maescreen"
    for name, value in {"ProtectSystem": "strict", "NoNewPrivileges": "yes", "CapabilityBoundingSet": ""}.items():
        assert service[name] == value
    assert service["StateDirectoryMode"] == "0700"
    assert service.get("PrivateNetwork") == "yes" or service["IPAddressDeny"] == "any"
    words = shlex.split(service["ExecStart"])
    written = [words[words.index(option) + 1] for option in ("--queue", "--out") if option in words]
    assert written
    assert all(path.startswith(f"/var/lib/{service['StateDirectory']}/") for path in written)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd here")
def test_systemd_understands_the_units(tmp_path):
    folder = tmp_path / "units"
    folder.mkdir()
    for unit in [*UNITS, *DEPLOY.glob("*.timer")]:
        # Whether the program is there is no question of the unit's.
        (folder / unit.name).write_text(unit.read_text("utf-8").replace("/opt/maescreen/bin/maescreen", "/bin/true"))
    verify = ["systemd-analyze", "verify", "--man=no", *map(str, sorted(folder.iterdir()))]
    done = subprocess.run(verify, capture_output=True, text=True)
    own = [line for line in done.stderr.splitlines() if "maescreen" in line]
    assert not own
    assert UNITS


@pytest.mark.parametrize("name", sorted(COMPOSE["services"]))
def test_a_service_is_closed_and_published_on_loopback_alone(name):
    service = COMPOSE["services"][name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["mem_limit"]
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    assert name not in OURS or service["user"] == "10001:10001"
    named = {place["source"] if isinstance(place, dict) else place for place in service.get("secrets", [])}
    assert named <= set(COMPOSE["secrets"])
    volumes = {place.split(":")[0] for place in service.get("volumes", [])}
    assert {place for place in volumes if not place.startswith(".")} <= set(COMPOSE["volumes"])
    assert set(service["networks"]) <= set(COMPOSE["networks"])
    assert "./model:/model:ro" in service["volumes"] or name not in OURS


def test_no_network_of_the_containers_leads_out():
    networks = COMPOSE["networks"]
    assert networks["inside"]["internal"] is True
    assert networks["front"]["driver_opts"] == {"com.docker.network.bridge.enable_ip_masquerade": "false"}


def test_the_image_is_built_from_files_that_are_there_and_is_not_root():
    stages = re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)
    assert stages == ["python:3.11-slim"] * 2
    copied = [line.split()[1:-1] for line in re.findall(r"^COPY (?!--from).*", DOCKERFILE, re.MULTILINE)]
    files = [name.removeprefix("./") for line in copied for name in line]
    assert "pipeline" in files
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text("utf-8").splitlines()
    for name in files:
        assert (ROOT / name).exists(), name
        assert f"!{name}" in ignored, f"{name} does not reach the build"
    last = DOCKERFILE.rsplit("FROM", 1)[1]
    assert "USER 10001:10001" in last
    assert 'ENTRYPOINT ["maescreen"]' in last
    instructions = re.findall(r"^([A-Z]+)\b", DOCKERFILE.replace("\\\n", " "), re.MULTILINE)
    assert set(instructions) <= {"FROM", "ARG", "ENV", "RUN", "WORKDIR", "COPY", "USER", "ENTRYPOINT", "CMD"}


def test_orthanc_takes_only_whom_it_knows_and_never_sends_results_round_again():
    orthanc = json.loads((DEPLOY / "orthanc.json").read_text("utf-8"))
    assert orthanc["AuthenticationEnabled"]
    assert not orthanc["DicomAlwaysAllowStore"]
    aet = orthanc["DicomModalities"]["maescreen"]["AET"]
    assert f"origin['RemoteAet'] == '{aet}'" in (DEPLOY / "route.lua").read_text("utf-8")
