"""A scorer: one number for a whole answer, from a language model that has read it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import pad

from rlcourse.lm.loading import load_policy
from rlcourse.lm.policy import Policy
from rlcourse.lm.rollout import Rollout


class Scorer(nn.Module):
    """A linear head on a language model's trunk, read at the EOS: what a reward model trains.

    It takes the policy that it is given as its trunk and changes it when it is trained: pass a copy of
    one that you still need. It starts by giving every answer 0.
    """

    def __init__(self, policy: Policy):
        super().__init__()
        self.policy, self.trunk = policy, policy.model
        # no bias: it would cancel in every comparison of two answers, so no choice could ever train it
        self.head = nn.Linear(policy.model.config.hidden_size, 1, bias=False, device=policy.device)
        nn.init.zeros_(self.head.weight)

    def __repr__(self) -> str:
        return f"Scorer({self.policy!r})"

    def forward(self, rollout: Rollout) -> Float[Tensor, " B"]:
        """The score of every answer. One that was cut before its EOS is read at its last token."""
        # The state *after* a token is the one that the next token is drawn from. So a token more is asked
        # for; which one does not matter, it is never read.
        longer = Rollout(
            prompts=rollout.prompts,
            prompt_tokens=rollout.prompt_tokens,
            prompt_mask=rollout.prompt_mask,
            owner=rollout.owner,
            tokens=pad(rollout.tokens, (0, 1)),
            mask=pad(rollout.mask, (1, 0), value=True),
            logp=pad(rollout.logp, (0, 1)),
            finished=rollout.finished,
            texts=rollout.texts,
        )
        states, _ = self.policy.states_and_logits(longer, head=False)
        last = longer.lengths.cumsum(0) - 1  # states are one flat list, row after row
        return self.head(states[last].float()).squeeze(-1)

    @torch.no_grad()
    def scores(self, prompts: Sequence[str], responses: Sequence[str]) -> Float[Tensor, " B"]:
        """Of texts: one response to each prompt."""
        return self(self.policy.answered(prompts, responses))

    def copy(self) -> Scorer:
        """An independent copy."""
        twin = Scorer(self.policy.copy())
        twin.head.load_state_dict(self.head.state_dict())
        return twin

    def save(self, folder: str | Path) -> None:
        self.policy.save(folder)
        save_file({"weight": self.head.weight.detach().cpu()}, Path(folder) / "score_head.safetensors")

    @staticmethod
    def load(folder: str | Path, device: str | None = None, dtype: torch.dtype | str | None = None) -> Scorer:
        """The scorer that `save` wrote there."""
        file = Path(folder) / "score_head.safetensors"
        if not file.exists():
            raise ValueError(
                f"{folder} holds no scorer: there is no {file.name} in it. Scorer.save writes one."
            )
        scorer = Scorer(load_policy(folder, device, dtype))
        try:
            scorer.head.load_state_dict(load_file(file))
        except (SafetensorError, RuntimeError, OSError) as error:
            why = " ".join(str(error).split())
            raise ValueError(
                f"{file} is no head for the model in {folder}: {why}. Both are written together, by Scorer.save"
            ) from None
        return scorer
