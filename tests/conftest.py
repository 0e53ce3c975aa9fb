"""Settings that libraries read once, when they are first imported: one thread, no network."""

import os

os.environ.update(
    OMP_NUM_THREADS="1",  # the same sums in the same order, and two workers do not fight over two cores
    TOKENIZERS_PARALLELISM="false",
    HF_HUB_OFFLINE="1",
    WANDB_MODE="offline",
    RAY_USAGE_STATS_ENABLED="0",
)
