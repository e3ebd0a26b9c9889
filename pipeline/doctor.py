"""What is missing on this machine, in params.yaml, at the store or the server, and how to mend it."""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
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
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import boto3

from pipeline import paths, stages
from pipeline.delivery import check
from pipeline.delivery.settings import read_publish_settings
from pipeline.delivery.workspace import open_workspace_store
from pipeline.errors import ForgelineError, UserError
from pipeline.params import Document
from pipeline.progress import duration
from pipeline.running import POOL, REMOTE_POOL, UP, read_run_settings

PACKAGES = ("torch", "torchvision", "torch-fidelity", "prefect", "dvc", "great-expectations")
LEAST_DISK_GB, LEAST_MEMORY_GB = 5.0, 2.0
MOST_SECONDS_APART = 300.0  # clocks; S3 refuses what is a quarter of an hour off

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
    look: dict[str, Callable[[Path], Finding]] = {
        "Python": _python,
        "packages": _packages,
        "device": _device,
        "memory": _memory,
        "disk": _disk,
        "git": _git,
        "repository": _repository,
        "settings": _settings,
        "weights": _weights,
        "store": _store,
        "clock": _clock,
        "remotes": _remotes,
        "Prefect": _prefect,
        "workers": _workers,
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
    except (OSError, ValueError):
        return False
    return True


def _shown(path: Path) -> Path:
    """The path as sentences name it: from here, where that is shorter."""
    return min(path, Path(os.path.relpath(path)), key=lambda path: len(str(path)))


def _python(_: Path) -> Finding:
    found = f"{sys.version.split()[0]} at {sys.executable}"
    return ("ok", found, "") if sys.version_info >= (3, 11) else ("missing", found, "install Python 3.11 or newer")


def _packages(_: Path) -> Finding:
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            return "missing", f"no {name}", "pip install 'forgeline[train]', with -c infra/constraints.txt in a clone"
    return "ok", ", ".join(f"{name} {found}" for name, found in versions.items()), ""


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


def _disk(workspace: Path) -> Finding:
    free_gb = shutil.disk_usage(workspace).free / 1e9
    return _enough("disk", free_gb, LEAST_DISK_GB, "'dvc gc --workspace' removes the outputs of earlier runs")


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


def _clock(workspace: Path) -> Finding:
    servers = [f"{api}/health"] if (api := _api(workspace)) else []
    with suppress(ForgelineError):
        url = read_publish_settings(Document.load(_shown(workspace / paths.PARAMS))).url
        if url and url.startswith("s3://"):
            servers.append(boto3.client("s3").meta.endpoint_url)
    for server in servers:
        try:
            with urllib.request.urlopen(server, timeout=30) as answer:
                told = answer.headers["Date"]
        except urllib.error.HTTPError as error:
            told = error.headers["Date"]  # who is not let in is told the time all the same
        except (OSError, ValueError):
            continue
        apart = abs(parsedate_to_datetime(told).timestamp() - time.time()) if told else 0.0
        if apart > MOST_SECONDS_APART:
            return "missing", f"{duration(apart)} apart from that of {server}", "set it: timedatectl set-ntp true"
    return "ok", datetime.now().astimezone().isoformat(sep=" ", timespec="seconds"), ""


def _remotes(workspace: Path) -> Finding:
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

    if (git("remote") or "").split().count("origin"):
        if git("ls-remote", "--heads", "origin") is None:
            return "missing", "the git remote 'origin' cannot be read", "try 'git ls-remote origin'; mend its access"
        if settings.branch and not git("ls-remote", "--heads", "origin", f"refs/heads/{settings.branch}"):
            return (
                "missing",
                f"the git remote 'origin' has no branch '{settings.branch}'",
                "correct run.branch, or push it",
            )
    elif settings.remote_stages:
        return "missing", "no git remote 'origin', by which run.remote_stages goes", "git remote add origin URL"
    elif settings.branch and git("rev-parse", "--verify", f"refs/heads/{settings.branch}") is None:
        return "missing", f"no branch '{settings.branch}' here", "correct run.branch, or make it"
    configured = [git("config", "--file", f".dvc/{file}", "core.remote") for file in ("config", "config.local")]
    if not any(configured):
        mend = "dvc remote add --default NAME s3://bucket/prefix"
        if settings.remote_stages:
            return "missing", "no DVC remote, by which run.remote_stages gets its inputs", mend
        if settings.record:
            return "warning", "no DVC remote: other clones cannot pull what runs record", mend
    return "ok", f"{' and '.join(branches or ['origin'])} can be reached", ""


def _prefect(workspace: Path) -> Finding:
    url = _api(workspace)
    if not url:
        return "ok", "PREFECT_API_URL is not set; a run starts a server for itself", ""
    if prefect_answers(url):
        return "ok", f"a server answers at {url}", ""
    return "missing", f"nobody answers at {url}", "start it with 'forgeline up', or unset PREFECT_API_URL"


def _workers(workspace: Path) -> Finding:
    url = _api(workspace)
    if not url:
        return "ok", "none is needed; 'forgeline up' starts one for scheduled runs", ""
    found = [_workers_of(POOL, url, "start one with 'forgeline up', or 'prefect worker start --pool forgeline'")]
    with suppress(ForgelineError):
        if read_run_settings(Document.load(_shown(workspace / paths.PARAMS))).remote_stages:
            mend = f"'prefect worker start --pool {REMOTE_POOL}' on a machine that has a GPU"
            found.append(_workers_of(REMOTE_POOL, url, mend))
    wanting = [finding for finding in found if finding[0] != "ok"]
    return wanting[0] if wanting else ("ok", "; ".join(what for _, what, _ in found), "")


def _workers_of(pool: str, url: str, mend: str) -> Finding:
    request = urllib.request.Request(
        f"{url}/work_pools/{pool}/workers/filter", b"{}", {"Content-Type": "application/json"}, method="POST"
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            online = [worker["name"] for worker in json.load(answer) if worker["status"] == "ONLINE"]
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return "warning", f"the server has no work pool '{pool}'", "'forgeline up' makes it"
        return "ok", "the server tells only who gives it a password", ""
    except (OSError, ValueError, KeyError, TypeError):
        return "warning", "not known, as the server does not tell", mend
    if not online:
        return "warning", f"no worker of the pool '{pool}' is online; what is handed to it waits", mend
    return "ok", f"{', '.join(online)} waits for runs of the pool '{pool}'", ""


def _api(workspace: Path) -> str | None:
    """The API of PREFECT_API_URL, or of the server that `forgeline up` has started here."""
    if url := os.environ.get("PREFECT_API_URL"):
        return url
    try:
        content = json.loads((workspace / UP / "up.json").read_bytes())
    except (OSError, ValueError):
        return None
    return content["url"] if content["processes"] else None
