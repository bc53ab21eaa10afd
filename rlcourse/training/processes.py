"""Several processes, one run:  torchrun --nproc-per-node 2 script.py

Every process holds the *whole* rollout, and only the work is divided: each answers a share of the prompts and
hands its answers to all, scores a share of the rows, and computes the gradient of a share of each minibatch.
So whatever a method computes over a step (a denominator, a group's mean, whitening, a controller) it computes
in every process from the same rows in the same way as in one process alone, and the weights of a token's loss
add up to 1 over all processes. Their gradients are therefore *summed*, where PyTorch's engines would average.
"""

from __future__ import annotations

import atexit
import copy
import math
import os
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import fields, replace
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn

from rlcourse.lm import Policy, Rollout
from rlcourse.lm.routing import has_experts
from rlcourse.tasks.ask import ask
from rlcourse.training.precision import whole
from rlcourse.training.seeds import stream

Objective = Callable[
    [slice], tuple[Tensor, dict[str, Tensor]]
]  # of some rows: their loss, and what was measured


class Alone:
    """One process: all work is its own."""

    rank, size = 0, 1

    def ask(self, policy: Policy, task, problems: list, group_size: int = 1, **sampling):
        """Answers to the problems, and their grades."""
        return ask(policy, task, problems, group_size, **sampling)

    def each(self, score: Callable[[Rollout], Tensor], rollout: Rollout, size: int | None) -> Tensor:
        """What `score` says of every row, `size` rows at a time."""
        return torch.cat([score(rollout[rows]) for rows in parts(len(rollout), size)])

    def share(self, n: int, size: int | None) -> Iterator[slice]:
        """Which of `n` rows to learn from here, `size` at a time."""
        yield from parts(n, size)

    def backward(self, objective: Objective, rows: slice) -> tuple[float, dict[str, Tensor]]:
        """Add the gradient of these rows to what there is."""
        loss, metrics = objective(rows)
        loss.backward()
        return loss.item(), metrics

    def gather(self, mine: Any) -> list:
        """What every process has, in their order."""
        return [mine]

    def gathered(self):
        """Inside, the weights are all here: for sampling and scoring."""
        return nullcontext()

    def finish(self) -> None:
        """The policy is an ordinary one again."""


def parts(n: int, size: int | None) -> list[slice]:
    """`n` rows in pieces of at most `size`."""
    size = size or max(n, 1)
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]


ALONE = Alone()


def first() -> bool:
    """Is this the process that speaks for all?"""
    return int(os.environ.get("RANK", 0)) == 0


def team(policy: Policy, others: list[nn.Module], shard: bool = False) -> Alone:
    """The processes that torchrun or `accelerate launch` has started. `others` is trained beside the policy.

    shard    each holds a part of weights, gradients and moments (FSDP2), and not a copy of them all (DDP)
    """
    size = int(os.environ.get("WORLD_SIZE", 1))
    if shard and size == 1:
        raise ValueError(
            "shard=True divides a model between processes, and there is one: "
            "torchrun --nproc-per-node 2 script.py starts two"
        )
    if shard and getattr(policy, "adapted", False):
        raise ValueError(
            "shard=True is for training all weights; an adapter's are so few that each process has room"
        )
    return Team(policy, others, shard) if size > 1 else ALONE


class Team(Alone):
    """Several processes."""

    def __init__(self, policy: Policy, others: list[nn.Module], shard: bool):
        import torch.distributed as dist

        self.rank, self.size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        self.device, self.last = policy.device, True
        if not dist.is_initialized():
            if self.device.type == "cuda":
                torch.cuda.set_device(self.device)
            backend = "cpu:gloo,cuda:nccl" if self.device.type == "cuda" else "gloo"
            dist.init_process_group(backend, timeout=timedelta(minutes=30))
            atexit.register(lambda: dist.is_initialized() and dist.destroy_process_group())
        self.shards: list[nn.Module] = []
        if shard:
            self._shard(policy, others)
            self.engine = Calls([])
        else:
            self._copy([policy.model, *others])

    # ---- what a rank does, and what all then know

    def ask(self, policy: Policy, task, problems: list, group_size: int = 1, seed: int = 0, **sampling):
        mine, found = problems[self._mine(len(problems))], None
        if mine:
            found = ask(policy, task, mine, group_size, seed=stream(seed, self.rank), **sampling)
            found = moved(found[0], "cpu"), {name: grade.cpu() for name, grade in found[1].items()}
        rollouts, grades = zip(*filter(None, self.gather(found)), strict=True)
        rollout = moved(Rollout.cat(list(rollouts)), self.device)
        return rollout, {name: torch.cat([grade[name] for grade in grades]) for name in grades[0]}

    def each(self, score: Callable[[Rollout], Tensor], rollout: Rollout, size: int | None) -> Tensor:
        mine = rollout[self._mine(len(rollout))]
        scores = [score(mine[rows]).cpu() for rows in parts(len(mine), size)]
        return torch.cat([part for scores in self.gather(scores) for part in scores]).to(self.device)

    def share(self, n: int, size: int | None) -> Iterator[slice]:
        """As many pieces in each process, since each has its part in every reduction: some may be empty."""
        mine, most = self._mine(n), math.ceil(n / self.size)
        size = size or most
        for start in range(0, most, size):
            self.last = start + size >= most
            yield slice(*(min(mine.start + row, mine.stop) for row in (start, start + size)))

    def backward(self, objective: Objective, rows: slice) -> tuple[float, dict[str, Tensor]]:
        spare = rows.start == rows.stop  # nothing left here: any row, weighed 0, keeps the others company
        wait = nullcontext() if self.last or self.low or self.shards else self.engine.no_sync()
        with self._contact(), wait:
            loss, metrics = self.engine(objective, slice(0, 1) if spare else rows)
            (loss * (not spare)).backward()
        return (0.0, {}) if spare else (loss.item(), metrics)

    def gather(self, mine: Any) -> list:
        import torch.distributed as dist

        found = [None] * self.size
        with self._contact():
            dist.all_gather_object(found, mine)
        return found

    def _mine(self, n: int) -> slice:
        """Of n things those of this process: neighbours, which share their prompts."""
        each, rest = divmod(n, self.size)
        start = self.rank * each + min(self.rank, rest)
        return slice(start, start + each + (self.rank < rest))

    @contextmanager
    def _contact(self):
        try:
            yield
        except RuntimeError as error:
            if not re.search(r"gloo|NCCL|[Cc]onnection (closed|reset)|Broken pipe", str(error)):
                raise
            raise RuntimeError(
                f"process {self.rank} of {self.size} has lost the others: one of them was killed, or failed and says "
                "why in a message of its own. With out=... the same command with resume=True goes on from the last "
                "checkpoint."
            ) from None

    # ---- a copy in every process: DDP

    def _copy(self, models: list[nn.Module]) -> None:
        from torch.nn.parallel import DistributedDataParallel

        trained = [p for model in models for p in model.parameters() if p.requires_grad]
        # Low gradients go to their masters after every piece, so they are summed after every piece.
        self.low = any(p.dtype != torch.float32 for p in trained)
        # Not every loss uses all: not a critic's own vocabulary, nor the policy while VC-PPO pretrains its critic.
        some = len(models) > 1 or has_experts(models[0])
        self.engine = DistributedDataParallel(Calls(models), find_unused_parameters=some)
        self.engine.register_comm_hook(None, summed)

    # ---- a part in every process: FSDP2

    def _shard(self, policy: Policy, others: list[nn.Module]) -> None:
        self.low = False
        # a warning about writing into the logits, which nothing here does
        warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
        self.owners = [policy, *others, *(each.policy for each in others if hasattr(each, "policy"))]
        # What each model is made of again when the run is over: the same modules, around no weights.
        self.shells = {}
        for model in dict.fromkeys([policy.model, *(part for each in others for part in each.children())]):
            dtypes = [p.dtype for p in model.parameters()]
            self.shells[model] = rebuilt(model, [p.to("meta") for p in model.parameters()]), dtypes
            self._divide(model)

    def _divide(self, model: nn.Module) -> None:
        """Layer by layer. What is kept and added up is float32; what is computed with has the model's own precision."""
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        dtype = next(model.parameters()).dtype
        precision = MixedPrecisionPolicy(None if dtype == torch.float32 else dtype, torch.float32)
        names = getattr(model, "_no_split_modules", None) or ()
        layers = [module for module in model.modules() if type(module).__name__ in names]
        mesh = init_device_mesh(self.device.type, (self.size,))
        for part in (*layers, model.float()):
            fully_shard(part, mesh=mesh, mp_policy=precision)
            part.set_gradient_divide_factor(1.0)  # a sum, and
            part.set_force_sum_reduction_for_comms(True)  # one that gloo can do too
            self.shards.append(part)

    @contextmanager
    def gathered(self):
        """The weights are fetched once and kept, so that each process may take as many steps as its answers need."""
        for part in self.shards:
            part.set_reshard_after_forward(False, recurse=False)
            part.unshard()
        yield
        for part in self.shards:
            part.reshard()
            part.set_reshard_after_forward(True, recurse=False)

    def finish(self) -> None:
        if not self.shards:
            return
        again = {}
        for model, (shell, dtypes) in self.shells.items():
            parameters = zip(model.parameters(), dtypes, strict=True)
            again[model] = rebuilt(shell, [whole(p.detach()).to(dtype) for p, dtype in parameters])
        for owner in self.owners:
            for name, part in [*vars(owner).items(), *vars(owner).get("_modules", {}).items()]:
                if isinstance(part, nn.Module) and part in again:
                    setattr(owner, name, again[part])


class Calls(nn.Module):
    """Calls any function. DDP is put around it, to watch the models that the function uses."""

    def __init__(self, models: list[nn.Module]):
        super().__init__()
        self.models = nn.ModuleList(models)

    def forward(self, function: Callable, *given):
        return function(*given)


def summed(_, bucket):
    """How DDP brings gradients together: their sum, in float32."""
    import torch.distributed as dist

    gradient = bucket.buffer()
    total = gradient.float()
    work = dist.all_reduce(total, async_op=True).get_future()
    return work.then(lambda done: done.value()[0].to(gradient.dtype))


def rebuilt(model: nn.Module, parameters: list[Tensor]) -> nn.Module:
    """A copy of the model around other parameters. Those that were shared are shared."""
    pairs = zip(model.parameters(), parameters, strict=True)
    return copy.deepcopy(model, {id(old): nn.Parameter(new, old.requires_grad) for old, new in pairs})


def moved(rollout: Rollout, device: torch.device | str) -> Rollout:
    """The rollout with all its tensors on a device."""
    tensors = {
        f.name: x.to(device) for f in fields(rollout) if isinstance(x := getattr(rollout, f.name), Tensor)
    }
    return replace(rollout, **tensors)
