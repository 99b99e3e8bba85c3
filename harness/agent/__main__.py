"""`python -m harness.agent RUN`: this node's part of a run's job. Started by the batch script on each node."""

import argparse
import sys
from pathlib import Path

from harness.agent.agent import run_agent
from harness.run.folder import RunFolderError


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m harness.agent", description="Runs one node's part of a run's job.")
    parser.add_argument("run", type=Path, help="run folder")
    try:
        return run_agent(str(parser.parse_args().run))
    except RunFolderError as error:  # this node does not see the run folder
        print(error, flush=True)
        return 1


if __name__ == "__main__":
    sys.exit(main())
