"""A git commit of each run, on a branch that no working tree has open: dvc.lock and params.yaml over what was run."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from flows.commands import REMOTE, dvc, git, has_remote, is_ancestor, tip_of
from flows.place import LOCK, RUN, Place
from pipeline import paths
from pipeline.errors import FailedError, UserError

# Metrics are not among them: they travel as outputs, and DVC refuses a cached output that git tracks too. dvc.lock
# pins them, `dvc metrics diff` reads them from any commit, and the message has the headlines.
_RECORDED = (LOCK, paths.PARAMS)


def check_recordable(place: Place, branch: str) -> None:
    """Raise UserError where a commit could not say all that was run, or where `branch` is open in a working tree."""
    if changed := uncommitted(place.workspace):
        raise UserError(f"{changed[0]}: has uncommitted changes; needed a commit of them, as run.record is '{branch}'")
    if place.own and has_remote(place.clone):
        return  # only the remote's branch moves
    trees = git(place.clone, "worktree", "list", "--porcelain").splitlines()
    if f"branch refs/heads/{branch}" in trees:
        raise UserError(
            f"params.yaml: run.record is '{branch}', which is checked out here; needed a branch that only runs move"
        )


def uncommitted(workspace: Path) -> list[str]:
    """Tracked files that differ from HEAD, but params.yaml and dvc.lock, which every run takes along."""
    said = git(workspace, "status", "--porcelain", "--untracked-files=no", "--", ".")
    names = [line[3:] for line in said.splitlines()]
    return [name for name in names if Path(name).name not in map(str, _RECORDED)]


def commit(place: Place, branch: str, title: str, lines: list[str], run: str) -> str:
    """A commit upon `branch` that nothing names yet, or what `branch` names where nothing is new.

    Its files are those of HEAD, with dvc.lock and params.yaml as they are in the workspace.
    """
    folder = place.workspace
    head, tip = git(folder, "rev-parse", "HEAD"), tip_of(folder, branch)
    with TemporaryDirectory() as temporary:
        index = {"GIT_INDEX_FILE": f"{temporary}/index"}
        git(folder, "read-tree", head, environment=index)
        files = [str(path) for path in _RECORDED if (folder / path).exists()]
        git(folder, "add", "--force", "--", *files, environment=index)
        tree = git(folder, "write-tree", environment=index)
    if tip and git(folder, "rev-parse", f"{tip}^{{tree}}") == tree and is_ancestor(folder, head, tip):
        return tip
    parents = [tip, head] if tip else [head]
    if tip and is_ancestor(folder, tip, head):
        parents = [head]
    elif tip and is_ancestor(folder, head, tip):
        parents = [tip]
    message = "\n".join([title, "", *lines, *([""] if lines else []), f"{RUN} {run}"])
    words = [word for parent in parents if parent for word in ("-p", parent)]
    made = git(folder, "commit-tree", tree, *words, "-m", message, environment=_somebody(folder))
    if place.own:
        git(folder, "update-ref", "--no-deref", "HEAD", made)  # the release's lineage names it
        git(folder, "reset", "--quiet")
    return made


def push(place: Place, branch: str, made: str) -> None:
    """Send the outputs to the DVC remote, where there is one, and then make `branch` name the commit `made`.

    Raises FailedError when somebody else moved the branch meanwhile.
    """
    from dvc.repo import Repo

    with Repo(str(place.workspace)) as repo:
        remote = "remote" in repo.config["core"]
    if remote:
        dvc(place.workspace, "push", "--quiet")
    if has_remote(place.clone):
        try:
            git(place.workspace, "push", "--quiet", "--no-verify", REMOTE, f"{made}:refs/heads/{branch}")
        except FailedError as error:
            raise FailedError(
                f"run.record: the branch '{branch}' cannot be pushed ({error}); the next run restores what this one "
                "made, and records it"
            ) from None
        return
    git(place.clone, "update-ref", f"refs/heads/{branch}", made)


def _somebody(folder: Path) -> dict[str, str]:
    """Who commits, where git does not know: worker machines often have no user."""
    try:
        git(folder, "var", "GIT_COMMITTER_IDENT", environment={"GIT_CONFIG_COUNT": "1", **_STRICT})
        return {}
    except FailedError:
        return {
            f"GIT_{who}_{what}": text
            for who in ("AUTHOR", "COMMITTER")
            for what, text in {"NAME": "Forgeline", "EMAIL": "forgeline@localhost"}.items()
        }


_STRICT = {"GIT_CONFIG_KEY_0": "user.useConfigOnly", "GIT_CONFIG_VALUE_0": "true"}  # no guess from the host's name
