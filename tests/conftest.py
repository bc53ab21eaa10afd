"""Every test runs with shapes and types checked, offline, without a display, on one thread a process."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch; two threads in two workers stand still
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from jaxtyping import install_import_hook

install_import_hook("rlcourse", "beartype.beartype")  # before anything imports rlcourse
