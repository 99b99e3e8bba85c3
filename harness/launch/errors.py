"""Why a run is not launched."""


class LaunchError(Exception):
    """The run can't be launched now. One sentence per problem: key, value and fix."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class AlreadyFinished(Exception):
    """The run has come to its end; there is nothing to launch."""
