"""Can a chapter's claims fail? Take the line that a chapter is about out of its method, and see which of them do.

    python benchmarks/falsify.py                 every chapter (a quarter of an hour)
    python benchmarks/falsify.py 13 15           these
    python benchmarks/falsify.py --record        the same, into benchmarks/evidence/falsify.json

Each fault is planted in a copy of the repository, and the whole page runs on it. A chapter of which everything still
holds proves nothing about its method.
"""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import elsewhere

from rlcourse.bookmaking import evidence


@dataclass(frozen=True)
class Fault:
    page: str
    what: str  # is taken out
    file: str
    old: str
    new: str

    @property
    def number(self) -> str:
        return self.page[:2]


M = "rlcourse/methods/"
FAULTS = [
    Fault("01_rlhf", "the judge learns the choices the wrong way round", M + "reward_model.py",
          "-logsigmoid(chosen - rejected - margin)", "-logsigmoid(rejected - chosen - margin)"),
    Fault("06_reward_model", "the rejected answer is not compared", M + "reward_model.py",
          "-logsigmoid(chosen - rejected - margin)", "-logsigmoid(chosen - margin)"),
    Fault("07_critic", "lambda is forgotten", M + "ppo.py",
          "delta + gamma * lam * running", "delta + gamma * running"),
    Fault("08_ppo", "nothing is clipped", M + "ppo.py",
          "clipped = ratio.clamp(1 - clip_low, 1 + clip_high)", "clipped = ratio"),
    Fault("10_dpo", "no reference", M + "dpo.py",
          "return beta * (logp - ref_logp.detach())", "return beta * logp"),
    Fault("11_kto", "no reference point", M + "kto.py",
          " - beta * z.detach().clamp(min=0)", ""),
    Fault("13_grpo", "the group's mean is not taken off", M + "grpo.py",
          "centred = rewards - rewards.mean(1, keepdim=True)", "centred = rewards"),
    Fault("15_dapo", "the upper clip is the lower one", M + "dapo.py",
          "return clipped_surrogate(logp, old_logp, each_token(advantages, mask), clip_low, clip_high)",
          "return clipped_surrogate(logp, old_logp, each_token(advantages, mask), clip_low, clip_low)"),
    Fault("16_gspo", "the sum of the log-ratios for their mean", M + "gspo.py",
          "return log_ratio.sum(1) / mask.sum(1).clamp(min=1)", "return log_ratio.sum(1)"),
    Fault("21_out_of_the_laptop", "no masters in float32", "rlcourse/training/precision.py",
          "if weight.dtype == torch.float32:", "if True:"),
]  # fmt: skip


def falsified(fault: Fault) -> dict:
    tree = elsewhere.HERE / f"tree-fault-{fault.page}"
    elsewhere.planted(tree, fault.file, fault.old, fault.new)
    found = elsewhere.ran(f"book/chapters/{fault.page}.md", tree)
    fell = [note["says"] for note in found["claims"] if not note["holds"]]
    print(
        f"{fault.page}: {fault.what}: {len(fell)} claims fall, {found['seconds']} s",
        *fell,
        sep="\n    ",
        flush=True,
    )
    return {
        "fault": fault.what,
        "file": fault.file,
        "claims that fall": fell,
        "cells that fail": len(found["failed"]),
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("chapters", nargs="*", metavar="NN")
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    chosen = [fault for fault in FAULTS if not options.chapters or fault.number in options.chapters]
    with ThreadPoolExecutor(2) as pool:
        found = dict(zip([fault.page for fault in chosen], pool.map(falsified, chosen)))
    if options.record:
        found = (evidence.recorded("falsify") or {}) | found  # those of the chapters that did not run stay
        files = {fault.file for fault in FAULTS} | {f"book/chapters/{fault.page}.md" for fault in FAULTS}
        evidence.write("falsify", found, "python benchmarks/falsify.py --record", files)
    return not all(each["claims that fall"] for each in found.values())


if __name__ == "__main__":
    sys.exit(main())
