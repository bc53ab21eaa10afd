"""How the cost of a GRPO step grows with the group, the answers and the model: `python benchmarks/growth.py`.

One dial is turned, the others stay where they are: 8 prompts of 16 tokens, 8 answers each, 32 new tokens,
a Llama of 1.07 M parameters. Every point is measured in a process of its own on one thread: the median
seconds of generation and training over several steps, and the peak memory, as in `speed.py`. The exponent
is the slope of a line through the logarithms: with 1, twice the dial costs twice the seconds. The last
doubling's is given too, for what is fixed weighs less and less.

About four minutes on a quiet machine; `--record` keeps the result in benchmarks/evidence/growth.json.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import linear_regression, median

from speed import SMALL, OurGRPO, Setting, one_process_each, peak_of, quiet

BASE = Setting(shape=SMALL | {"max_position_embeddings": 512}, prompts=8)
STEPS = 7
MEASURED = ("generation", "training", "memory")
TURNED = {"group": {"group"}, "answer": {"max_tokens"}, "model": {"shape"}}


def dials() -> dict[str, dict[float, Setting]]:
    """By dial, the settings that it goes through."""
    return {
        "group": {n: replace(BASE, group=n) for n in (2, 4, 8, 16, 32)},
        "answer": {n: replace(BASE, max_tokens=n) for n in (16, 32, 64, 128, 256)},
        "model": {n: replace(BASE, shape=wide(n)) for n in (64, 128, 256, 512)},
    }


def wide(hidden: int) -> dict:
    """The base model at another width: heads of the same size, the same depth."""
    heads = hidden // 32
    return BASE.shape | dict(
        hidden_size=hidden, intermediate_size=4 * hidden, num_attention_heads=heads, num_key_value_heads=heads
    )


def measure(setting: Setting, steps: int = STEPS) -> dict[str, float]:
    """Median seconds of a step's two parts, the peak memory in bytes, and what grew."""
    quiet(threads=1)
    peak, side = peak_of(OurGRPO, setting)
    seconds = [side.step(seed) for seed in range(steps)]
    return {
        "generation": median(generation for generation, _ in seconds),
        "training": median(whole - generation for generation, whole in seconds),
        "memory": peak,
        "parameters": sum(p.numel() for p in side.policy.parameters()),
        "tokens": int(side.rollout.mask.sum()),
    }


def exponent(x: Sequence[float], y: Sequence[float]) -> float:
    """p of the power law y = c x^p that is nearest in the logarithms."""
    return linear_regression([math.log(v) for v in x], [math.log(v) for v in y]).slope


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print the result as JSON, not as tables")
    parser.add_argument("--record", action="store_true", help="keep it in benchmarks/evidence/growth.json")
    options = parser.parse_args()
    result = {}
    for name, settings in dials().items():
        points = one_process_each(measure, list(settings.values()))
        columns = {key: [point[key] for point in points] for key in points[0]}
        # the width enters the weights twice: what a model costs is told by its parameters
        x = columns["parameters"] if name == "model" else list(settings)
        result[name] = {
            "dial": list(settings),
            **columns,
            "exponent": {key: exponent(x, columns[key]) for key in MEASURED},
            "exponent at the end": {key: exponent(x[-2:], columns[key][-2:]) for key in MEASURED},
        }
        if not options.json:
            show(name, result[name])
    if options.json:
        print(json.dumps(result))
    if options.record:
        from rlcourse.bookmaking.evidence import record

        record("growth", result, "python benchmarks/growth.py --record")


def show(name: str, found: dict) -> None:
    dial = "".join(f"{value:>8g}" for value in found["dial"])
    print(f"\n{name:18s}{dial}{'exponent':>12s}{'at the end':>12s}", flush=True)
    for key, factor, unit in (("generation", 1e3, "ms"), ("training", 1e3, "ms"), ("memory", 2**-20, "MiB")):
        cells = "".join(f"{value * factor:>8.0f}" for value in found[key])
        fits = "".join(f"{found[how][key]:>12.2f}" for how in ("exponent", "exponent at the end"))
        print(f"{key + ', ' + unit:18s}{cells}{fits}", flush=True)


if __name__ == "__main__":
    main()
