"""`python -m harness.agent RUN`: this node's part of a run's job. Started by the batch script on each node."""

import argparse
import sys
from pathlib import Path

from harness.agent.agent import run_agent


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m harness.agent", description="Runs one node's part of a run's job.")
    parser.add_argument("run", type=Path, help="run folder")
    return run_agent(str(parser.parse_args().run))


if __name__ == "__main__":
    sys.exit(main())
