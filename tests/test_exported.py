"""What is written for another library is what it was when a person last looked at it, setting by setting.

exported.json holds it: of each library the settings of plain GRPO, and of every other experiment what differs from
those; and which settings, or "" for the whole, have a note beside them. After a change that is wanted:

    python tests/test_exported.py     writes it anew: look at the diff
"""

import json
import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

import pytest  # noqa: E402
from test_export import OFFLINE, ONLINE, config  # noqa: E402

from rlcourse.export import LIBRARIES  # noqa: E402
from rlcourse.export.experiment import Experiment  # noqa: E402
from rlcourse.methods import (  # noqa: E402
    CISPO,
    DAPO,
    GRPO,
    GSPO,
    IPO,
    KTO,
    PPO,
    REINFORCE,
    RLOO,
    TIS,
    BradleyTerry,
    DrGRPO,
    ReMax,
    RoutingReplay,
    ScalingGRPO,
)

FILE = Path(__file__).with_name("exported.json")
METHODS = [
    *ONLINE,
    *OFFLINE,
    IPO(),
    KTO(),
    BradleyTerry(margin=0.5, centring=0.01),
    ScalingGRPO(minibatches=2),
    ScalingGRPO(minibatches=2, beta=0.1, keep_routing=False),
    DrGRPO(),
    GSPO(minibatches=2, token=True),
    CISPO(minibatches=2),
    DAPO(minibatches=2, refills=3),
    RLOO(group_size=4),
    REINFORCE(),
    REINFORCE(baseline="batch"),
    ReMax(),
    PPO(),
    PPO(
        target_kl=6.0,
        value_clip=None,
        critic_lr=1e-3,
        entropy_bonus=0.01,
        whiten=False,
        critic="shared",
        beta=0.1,
    ),
    PPO(beta=0.0, epochs=2, minibatches=2),
    TIS(GRPO(beta=0.1), cap=1.5),
    TIS(GSPO(minibatches=2), cap=3.0),
    TIS(PPO(), cap=3.0),
    RoutingReplay(GRPO()),
]
RUNS = {
    **{repr(method): config(method) for method in METHODS},
    "of another model": config(
        GRPO(), policy="Qwen/Qwen3-0.6B", lora=8, processes=2, gradient_checkpointing=True
    ),
    "of two processes": config(
        OFFLINE[2], policy="Qwen/Qwen3-0.6B", lora=8, processes=2, gradient_checkpointing=True
    ),
    "of no known length": config(GRPO(minibatches=16), steps=None),
}


def settings(library: str, run: dict) -> dict:
    """The settings by name, and the names that have notes, each as often as it has; or why it cannot be exported."""
    experiment = Experiment.read(run)
    if why := LIBRARIES[library].lacks(experiment.method):
        return {"cannot": why}
    sheet = LIBRARIES[library].settings(experiment)
    LIBRARIES[library].files(experiment, sheet)
    notes = [name for name, texts in sheet.notes.items() for _ in texts]
    return json.loads(json.dumps({**sheet, "notes": sorted(notes)}, default=str))


def written(library: str) -> dict:
    found = {name: settings(library, run) for name, run in RUNS.items()}
    plain = found[repr(GRPO())]
    return {"GRPO()": plain} | {
        name: {key: value for key, value in each.items() if key not in plain or plain[key] != value}
        | (
            {"without": without}
            if (without := sorted(set(plain) - set(each))) and "cannot" not in each
            else {}
        )
        for name, each in found.items()
        if name != repr(GRPO())
    }


@pytest.mark.parametrize("library", LIBRARIES)
def test_what_is_exported_is_what_was_looked_at(library):
    recorded, found = json.loads(FILE.read_text())[library], written(library)
    assert set(recorded) == set(found)
    for name in found:
        assert found[name] == recorded[name], f"{name}: python tests/test_exported.py, and look at the diff"


if __name__ == "__main__":
    FILE.write_text(json.dumps({library: written(library) for library in LIBRARIES}, indent=1) + "\n")
