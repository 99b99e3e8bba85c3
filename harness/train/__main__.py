"""One rank of a run: `python -m harness.train RUN_FOLDER`, started once per device by the agent or by torchrun."""

import sys

from harness.train.process import prepare_process

if __name__ == "__main__":
    prepare_process()  # before the imports below, which take seconds in which a signal may come
    from harness.train.rank import main

    sys.exit(main(sys.argv[1:]))
