"""The two ways a command ends badly, told apart by exit status."""


class ForgelineError(Exception):
    """Ends a command with one sentence on standard error and no traceback."""

    exit_status: int


class UserError(ForgelineError):
    """The user's words, settings or data are not what is needed; the sentence says found and needed."""

    exit_status = 2


class FailedError(ForgelineError):
    """The words were right, and still it could not be done: a full disk, a lost race, an unreachable store."""

    exit_status = 1
