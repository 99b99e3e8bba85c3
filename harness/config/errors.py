"""What is raised for a config that can't be used."""


class ConfigError(Exception):
    """The config can't be composed. `problems` holds one sentence each: key, value and what would be right."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems
