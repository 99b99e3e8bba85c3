"""What all ranks have in common, imported once by the server that they are forked from. Nothing else imports this.

CUDA must not start here: it does not live through a fork. torchao starts it as soon as it is imported, which transformers does
if it can find it; no precision that is verified needs it. Nor does anything need sklearn, which brings scipy and pandas.
"""

import sys

for package in ("torchao", "sklearn"):
    sys.modules[package] = None  # type: ignore[assignment]  # as if it were not installed

import harness.verify.rank  # noqa: E402, F401
