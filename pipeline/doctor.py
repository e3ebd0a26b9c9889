"""What is missing on this machine, in params.yaml, at the store or the server, and how to mend it."""

from __future__ import annotations

import http.client
import importlib
import json
import os
import pkgutil
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, distributions, version
from pathlib import Path
from typing import Any, Literal

import boto3
from botocore.exceptions import BotoCoreError

from pipeline import paths, stages
from pipeline.delivery import check
from pipeline.delivery.settings import read_publish_settings
from pipeline.delivery.workspace import open_workspace_store
from pipeline.errors import ForgelineError, UserError
from pipeline.params import Document
from pipeline.progress import duration
from pipeline.running import POOL, PROCESS, REMOTE_DEPLOYMENT, REMOTE_POOL, UP, read_run_settings, worker_command

PACKAGES = ("torch", "torchvision", "torch-fidelity", "prefect", "dvc", "great-expectations")
LEAST_DISK_GB, LEAST_MEMORY_GB = 5.0, 2.0
MOST_SECONDS_APART = 300.0  # clocks; S3 refuses what is a quarter of an hour off
CONSTRAINTS = Path("infra/constraints.txt")
NIGHTLY_DEPLOYMENT = "retrain/nightly"
_ASK_PREFECT = "from prefect.settings import PREFECT_API_URL; print(PREFECT_API_URL.value() or '')"
_UNHEARD = (OSError, ValueError, http.client.HTTPException)  # no address, nobody there, or one who speaks no HTTP

Status = Literal["ok", "warning", "missing"]
Finding = tuple[Status, str, str]


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that a run needs: what was found and, where that is not as it should be, what mends it.

    `missing` means that a run cannot succeed, `warning` that it may not.
    """

    name: str
    status: Status
    found: str
    mend: str


def checks(workspace: Path) -> list[Check]:
    """Look at everything that a run in `workspace` needs. The store is tried with an object that is then removed."""
    api, dvc = _api(workspace), _dvc(workspace)
    look: dict[str, Callable[[Path], Finding]] = {
        "Python": _python,
        "packages": _packages,
        "device": _device,
        "memory": _memory,
        "disk": partial(_disk, dvc=dvc),
        "git": _git,
        "repository": _repository,
        "settings": _settings,
        "weights": _weights,
        "store": _store,
        "clock": partial(_clock, api=api),
        "remotes": partial(_remotes, dvc=dvc),
        "DVC remote": partial(_dvc_remote, dvc=dvc),
        "Prefect": partial(_prefect, api=api),
        "workers": partial(_workers, api=api),
        "deployments": partial(_deployments, api=api),
    }
    found = []
    for name, finding in look.items():
        status, what, mend = finding(workspace)
        found.append(Check(name=name, status=status, found=what, mend=mend))
    return found


def read_all_params(workspace: Path) -> Document:
    """params.yaml, after every stage of dvc.yaml has read its section. Raises the first UserError."""
    document = Document.load(_shown(workspace / paths.PARAMS))
    declared = Document.load(_shown(workspace / "dvc.yaml")).mapping("stages")
    for module in pkgutil.iter_modules(stages.__path__):
        if module.name in declared:
            importlib.import_module(f"pipeline.stages.{module.name}").read_params(document)
    read_publish_settings(document)
    read_run_settings(document)
    return document


def prefect_answers(url: str) -> bool:
    """Whether anybody answers at the URL of a Prefect API."""
    try:
        urllib.request.urlopen(f"{url}/health", timeout=30).close()  # a busy machine takes its time
    except urllib.error.HTTPError:
        return True  # and wants to know who asks
    except _UNHEARD:
        return False
    return True


def _shown(path: Path) -> Path:
    """The path as sentences name it: from here, where that is shorter."""
    return min(path, Path(os.path.relpath(path)), key=lambda path: len(str(path)))


def _python(_: Path) -> Finding:
    found = f"{sys.version.split()[0]} at {sys.executable}"
    return ("ok", found, "") if sys.version_info >= (3, 11) else ("missing", found, "install Python 3.11 or newer")


def _packages(workspace: Path) -> Finding:
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            return "missing", f"no {name}", "pip install 'forgeline[train]', with -c infra/constraints.txt in a clone"
    if others := _unlike_constraints(workspace / CONSTRAINTS):
        more = f", and {len(others) - 3} more" if len(others) > 3 else ""
        mend = f"pip install '.[train]' -c {CONSTRAINTS}"
        return "warning", f"other versions than {CONSTRAINTS} pins: {', '.join(others[:3])}{more}", mend
    return "ok", ", ".join(f"{name} {found}" for name, found in versions.items()), ""


def _unlike_constraints(file: Path) -> list[str]:
    """Which installed packages have a version that the file does not pin, where there is the file."""
    if not file.is_file():
        return []
    pinned: dict[str, set[str]] = {}  # one package may have several, for several Pythons
    for name, pin in re.findall(r"(?m)^([\w.-]+)==([^\s;]+)", file.read_text()):
        pinned.setdefault(name, set()).add(pin)
    found = {re.sub(r"[-_.]+", "-", each.name).lower(): each.version.partition("+")[0] for each in distributions()}
    return [
        f"{name} {version} instead of {' or '.join(sorted(pinned[name]))}"
        for name, version in sorted(found.items())
        if name in pinned and version not in pinned[name]
    ]


def _device(_: Path) -> Finding:
    cores = f"{len(os.sched_getaffinity(0))} cores"
    try:
        import torch
    except ImportError as error:
        return "missing", f"torch cannot be imported: {error}", "pip install --force-reinstall torch"
    if torch.cuda.is_available():
        return "ok", f"{torch.cuda.get_device_name()}, {cores}", ""
    if shutil.which("nvidia-smi"):
        return "warning", f"a GPU that torch {torch.__version__} cannot use", "install the driver that this torch needs"
    return "ok", f"no GPU, {cores}", ""


def _memory(_: Path) -> Finding:
    free_gb = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():  # counts what the file cache would give back
        lines = dict(line.split(":") for line in meminfo.read_text().splitlines())
        free_gb = int(lines["MemAvailable"].split()[0]) * 1024 / 1e9
    return _enough("memory", free_gb, LEAST_MEMORY_GB, "end other programs, or lower train.batch_size")


def _disk(workspace: Path, dvc: _Dvc | Exception) -> Finding:
    """The least free one of those that hold the workspace, DVC's cache and our own."""
    mend = "'dvc gc --all-commits --all-experiments' removes what neither this workspace nor any commit here names"
    cache = workspace if isinstance(dvc, Exception) else dvc.cache
    places = {_there(place): place for place in (workspace, cache, paths.cache())}
    disks = {place.stat().st_dev: (shutil.disk_usage(place).free / 1e9, asked) for place, asked in places.items()}
    free_gb, place = min(disks.values(), key=lambda disk: disk[0])
    return _enough(f"disk at {_shown(place)}" if len(disks) > 1 else "disk", free_gb, LEAST_DISK_GB, mend)


def _there(place: Path) -> Path:
    """The folder, or the one above it that it will be made in."""
    place = place.resolve()
    return next(folder for folder in (place, *place.parents) if folder.is_dir())


def _enough(what: str, free_gb: float, least_gb: float, mend: str) -> Finding:
    found = f"{free_gb:.1f} GB of {what} free"
    return ("ok", found, "") if free_gb >= least_gb else ("warning", f"{found}, needed {least_gb:g}", mend)


def _git(_: Path) -> Finding:
    if not shutil.which("git"):
        return "missing", "no git", "install it: apt-get install git"
    return "ok", subprocess.run(["git", "--version"], capture_output=True, text=True, check=True).stdout.strip(), ""


def _repository(workspace: Path) -> Finding:
    if not (workspace / "dvc.yaml").is_file():
        return "missing", f"no dvc.yaml in {workspace.resolve()}", "change into the folder of a Forgeline project"
    above = [workspace.resolve(), *workspace.resolve().parents]
    for folder, mend in ((".git", "git init"), (".dvc", "dvc init")):
        if not any((parent / folder).exists() for parent in above):
            return "missing", f"no {folder} in {workspace.resolve()} or above", mend
    return "ok", f"Git and DVC in {workspace.resolve()}", ""


def _settings(workspace: Path) -> Finding:
    try:
        document = read_all_params(workspace)
    except ForgelineError as error:
        return "missing", str(error), "correct it; 'forgeline recipe' lists files that are right"
    except ImportError as error:
        return "missing", str(error), "pip install 'forgeline[train]'"
    return "ok", f"every section of {document.name} is valid", ""


def _weights(workspace: Path) -> Finding:
    try:
        from pipeline.metrics.extractors import IN_DOMAIN, checked_sha256
        from pipeline.stages.evaluate import read_params

        params = read_params(Document.load(_shown(workspace / paths.PARAMS)))
    except (ForgelineError, ImportError):
        return "warning", "not known, as params.yaml or the packages are not right", "correct that first"
    if params.extractor == IN_DOMAIN:
        return "ok", "none are needed; evaluate.extractor is the one that the pipeline trains", ""
    if params.weights is None:
        return "ok", f"those of {params.extractor} are downloaded where they are not yet", ""
    file = _shown(workspace / params.weights)
    try:
        checked_sha256(file, params.weights_sha256 or "", "as evaluate.weights_sha256 says")
    except UserError as error:
        return "missing", str(error), "correct evaluate.weights, or leave it out: they are then downloaded"
    return "ok", f"{params.weights} is the file of evaluate.weights_sha256", ""


def _store(workspace: Path) -> Finding:
    mend = "correct publish.url in params.yaml, or the credentials (AWS_PROFILE, AWS_ENDPOINT_URL_S3)"
    try:
        url = read_publish_settings(Document.load(_shown(workspace / paths.PARAMS))).url
        if not url:
            return "ok", "publish.url names none; a run publishes nothing", ""
        folder = workspace / url
        if "://" not in url and not folder.exists():
            return "ok", f"{url} is not there yet; publishing makes it", ""
        promises = check(open_workspace_store(workspace, url))
    except ForgelineError as error:
        return "missing", str(error), mend
    if not (promises.read and promises.write):
        return "missing", f"{url} cannot be {'written to' if promises.read else 'read'}", mend
    if not (promises.create and promises.swap):
        return "warning", f"{url} ignores conditional writes", "let only one run at a time publish there"
    return "ok", f"{url} can be read and written, safely by several at once", ""


def _clock(workspace: Path, api: str | None) -> Finding:
    servers = [f"{api}/health"] if api else []
    with suppress(
        ForgelineError, BotoCoreError, ValueError
    ):  # of credentials and addresses the check of the store tells
        url = read_publish_settings(Document.load(_shown(workspace / paths.PARAMS))).url
        if url and url.startswith("s3://"):
            servers.append(boto3.client("s3").meta.endpoint_url)
    for server in servers:
        try:
            with urllib.request.urlopen(server, timeout=30) as answer:
                told = answer.headers["Date"]
        except urllib.error.HTTPError as error:
            told = error.headers["Date"]  # who is not let in is told the time all the same
        except _UNHEARD:
            continue
        apart = 0.0
        with suppress(TypeError, ValueError):  # no date, or none that is right
            apart = abs(parsedate_to_datetime(told).timestamp() - time.time())
        if apart > MOST_SECONDS_APART:
            return "missing", f"{duration(apart)} apart from that of {server}", "set it: timedatectl set-ntp true"
    return "ok", datetime.now().astimezone().isoformat(sep=" ", timespec="seconds"), ""


def _remotes(workspace: Path, dvc: _Dvc | Exception) -> Finding:
    try:
        settings = read_run_settings(Document.load(_shown(workspace / paths.PARAMS)))
    except ForgelineError:
        return "warning", "not known, as params.yaml is not right", "correct it"
    branches = [name for name in (settings.branch, settings.record) if name]
    if not branches and not settings.remote_stages:
        return "ok", "run.branch and run.record name no branch; runs happen in this clone and are not recorded", ""

    def git(*words: str) -> str | None:
        environment = os.environ | {"GIT_TERMINAL_PROMPT": "0"}
        command = ["git", "-C", str(workspace), *words]
        try:
            ended = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=30)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return None if ended.returncode else ended.stdout.strip()

    origin = "origin" in (git("remote") or "").split()

    def is_there(branch: str) -> bool:
        ref = f"refs/heads/{branch}"
        return bool(git("ls-remote", "--heads", "origin", ref) if origin else git("rev-parse", "--verify", ref))

    if origin and git("ls-remote", "--heads", "origin") is None:
        return "missing", "the git remote 'origin' cannot be read", "try 'git ls-remote origin'; mend its access"
    if settings.remote_stages and not origin:
        return "missing", "no git remote 'origin', by which run.remote_stages goes", "git remote add origin URL"
    if settings.branch and not is_there(settings.branch):
        if origin:
            what = f"the git remote 'origin' has no branch '{settings.branch}'"
            return "missing", what, "correct run.branch, or push it"
        return "missing", f"no branch '{settings.branch}' here", "correct run.branch, or make it"
    if isinstance(dvc, _Dvc) and not dvc.remote:  # where DVC cannot tell, the check of its remote says more
        mend = "dvc remote add --default NAME s3://bucket/prefix"
        if settings.remote_stages:
            return "missing", "no DVC remote, by which run.remote_stages gets its inputs", mend
        if settings.record:
            return "warning", "no DVC remote: other clones cannot pull what runs record", mend
    there = [name for name in branches if name == settings.branch or is_there(name)]
    found = [f"{' and '.join(there or ['origin'])} can be reached"] if there or origin else []
    if settings.record and settings.record not in there:
        found.append(f"the first run that is recorded makes {settings.record}")
    return "ok", "; ".join(found), ""


@dataclass(frozen=True, kw_only=True)
class _Dvc:
    """Where DVC keeps outputs: its `cache`, and the default `remote`, by name and as an object of DVC's; or none."""

    cache: Path
    remote: tuple[str, Any] | None


def _dvc(workspace: Path) -> _Dvc | Exception:
    """As DVC reads it; why it cannot, where it cannot."""
    try:
        from dvc.exceptions import DvcException
        from dvc.repo import Repo

        with Repo(str(workspace)) as repo:
            name = repo.config["core"].get("remote")
            remote = (name, repo.cloud.get_remote_odb(name)) if name else None
            return _Dvc(cache=Path(repo.cache.local_cache_dir), remote=remote)
    except (ImportError, DvcException) as error:
        return error


def _dvc_remote(_: Path, dvc: _Dvc | Exception) -> Finding:
    """Nothing is written, since a trainer may not remove what it writes there."""
    if isinstance(dvc, Exception):
        return "missing", _sentence(dvc), "correct it with 'dvc remote', or install what it names"
    if not dvc.remote:
        return "ok", "none; outputs stay in the cache of this machine", ""
    return _listed(*dvc.remote)


def _listed(name: str, remote: Any) -> Finding:
    mend = f"correct its url or its credentials: 'dvc remote modify --local {name} …', AWS_PROFILE, AWS_ENDPOINT_URL_S3"
    try:
        remote.fs.ls(remote.path)
    except FileNotFoundError as error:
        if "NoSuchBucket" not in str(getattr(error.__cause__, "response", "")):
            return "ok", f"'{name}' is empty; the first 'dvc push' fills it", ""
        return "missing", f"'{name}' cannot be read: {_sentence(error)}", mend
    except Exception as error:  # each kind of storage has its own
        return "missing", f"'{name}' cannot be read: {_sentence(error)}", mend
    return "ok", f"'{name}' can be read", ""


def _sentence(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _prefect(_: Path, api: str | None) -> Finding:
    if not api:
        return "ok", "neither PREFECT_API_URL nor a profile names a server; a run starts one for itself", ""
    if not prefect_answers(api):
        mend = "start it with 'forgeline up', or unset PREFECT_API_URL, in a profile by 'prefect config unset'"
        return "missing", f"nobody answers at {api}", mend
    told = _asked(api, "admin/version")
    with suppress(PackageNotFoundError):
        ours = version("prefect")
        if isinstance(told, str) and _release(told) < _release(ours):
            found = f"the server at {api} has Prefect {told}, which is older than {ours} here"
            return "warning", found, f"pip install 'prefect>={ours}' where the server runs"
    return "ok", f"a server answers at {api}", ""


def _release(text: str) -> tuple[int, ...]:
    """3.8.8 of 3.8.8 or 3.8.8.dev2, as numbers."""
    return tuple(int(each) for each in re.findall(r"\d+", text)[:3])


def _workers(workspace: Path, api: str | None) -> Finding:
    if not api:
        return "ok", "none is needed; 'forgeline up' starts one for scheduled runs", ""
    found = [_workers_of(POOL, api, f"start one with 'forgeline up', or '{worker_command(POOL, PROCESS)}'")]
    if _remote_stages(workspace):
        pool = _asked(api, f"work_pools/{REMOTE_POOL}")
        kind = pool.get("type", PROCESS) if isinstance(pool, dict) else PROCESS
        where = " on a machine that has a GPU" if kind == PROCESS else ""
        found.append(_workers_of(REMOTE_POOL, api, f"'{worker_command(REMOTE_POOL, kind)}'{where}"))
    return _worst(found)


def _workers_of(pool: str, api: str, mend: str) -> Finding:
    told = _asked(api, f"work_pools/{pool}/workers/filter", b"{}")
    if told in (404, 401, 403):
        return _untold(told, f"no work pool '{pool}'")
    try:
        online = [worker["name"] for worker in told if worker["status"] == "ONLINE"]
    except (KeyError, TypeError):
        return "warning", "not known, as the server does not tell", mend
    if not online:
        return "warning", f"no worker of the pool '{pool}' is online; what is handed to it waits", mend
    return "ok", f"{', '.join(online)} waits for runs of the pool '{pool}'", ""


def _deployments(workspace: Path, api: str | None) -> Finding:
    if not api:
        return "ok", "none is needed; 'forgeline up' makes them for scheduled runs", ""
    found = [_deployment(NIGHTLY_DEPLOYMENT, api)]
    if _remote_stages(workspace):
        found.append(_deployment(REMOTE_DEPLOYMENT, api))
    return _worst(found)


def _deployment(name: str, api: str) -> Finding:
    told = _asked(api, f"deployments/name/{name}")
    if told in (404, 401, 403):
        return _untold(told, f"no deployment '{name}'")
    try:
        pool = _asked(api, f"work_pools/{told['work_pool_name']}")
        kind, clones = pool["type"], bool(told["pull_steps"])
    except (KeyError, TypeError):
        return "warning", "not known, as the server does not tell", "'forgeline up' makes it anew"
    if kind != "process" and not clones:
        found = f"the deployment '{name}' has no pull step, and what a pool of type {kind} starts has none of our code"
        return "missing", found, "prefect deploy --prefect-file infra/prefect-image.yaml --all"
    return "ok", f"{name} for the pool '{told['work_pool_name']}' of type {kind}", ""


def _untold(status: int, what: str) -> Finding:
    if status == 404:
        return "warning", f"the server has {what}", "'forgeline up' makes it"
    return "ok", "the server tells only who gives it a password", ""


def _worst(found: list[Finding]) -> Finding:
    """The first that is missing, else the first warning, else all."""
    for status in ("missing", "warning"):
        for finding in found:
            if finding[0] == status:
                return finding
    return "ok", "; ".join(dict.fromkeys(what for _, what, _ in found)), ""


def _remote_stages(workspace: Path) -> tuple[str, ...]:
    with suppress(ForgelineError):
        return read_run_settings(Document.load(_shown(workspace / paths.PARAMS))).remote_stages
    return ()


def _asked(api: str, path: str, body: bytes | None = None) -> Any:
    """What the API answers, the status of a refusal, or None where it says nothing that is JSON."""
    try:
        request = urllib.request.Request(f"{api}/{path}", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code
    except _UNHEARD:
        return None


def _api(workspace: Path) -> str | None:
    """The API that Prefect's settings name, or that of the server which `forgeline up` has started here."""
    if url := os.environ.get("PREFECT_API_URL"):
        return url
    try:  # which profile, file or variable names one, only Prefect knows
        command = [sys.executable, "-c", _ASK_PREFECT]
        told = subprocess.run(command, cwd=workspace, capture_output=True, text=True, timeout=60)
        if url := told.stdout.strip():
            return url
        content = json.loads((workspace / UP / "up.json").read_bytes())
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return None
    return str(content["url"]) if content["processes"] else None
