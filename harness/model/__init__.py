"""The models: transformers' own, cut into stages, with initial weights, attention and loss that suit any layout."""

import logging

# transformers imports torchao where it is installed, which tells every process of kernels that are not for this machine
for _name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_name).setLevel(logging.ERROR)
