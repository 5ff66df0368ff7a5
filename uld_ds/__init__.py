"""uld-ds: distil large language models into small ones across tokenizers."""

import logging

# PEFT imports bitsandbytes where it is installed, which on some CPUs warns of a kernel that it would fetch from a hub
# for a layout of weights that is not used here.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

__version__ = "0.1.0"
