"""A critic: what reward is to be expected from each state of an answer."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from rlcourse.lm.policy import Policy
from rlcourse.lm.rollout import Rollout


class Critic(nn.Module):
    """A linear head on a language model's last hidden states.

    alone    a trunk of its own, which starts as a copy of the policy's: twice the memory, and
             what it learns leaves the policy as it is
    shared   a head on the policy's own trunk: almost free, and its gradient moves the policy too
    """

    def __init__(self, policy: Policy, shared: bool = False):
        super().__init__()
        self.shared = shared
        self.policy = policy if shared else policy.copy()
        if not shared:
            self.trunk = self.policy.model  # registered: trained, and saved with a checkpoint
        self.head = nn.Linear(policy.model.config.hidden_size, 1, device=policy.device)
        nn.init.zeros_(self.head.weight)  # it starts by expecting nothing anywhere
        nn.init.zeros_(self.head.bias)

    def forward(self, rollout: Rollout, states: Float[Tensor, "N D"] | None = None) -> Float[Tensor, "B T"]:
        """V of the state *before* each response token, which is the state that token is drawn from.

        A shared critic may be handed the hidden states that scoring has computed already.
        """
        if states is None or not self.shared:
            states, _ = self.policy.states_and_logits(rollout, head=False)
        return rollout.spread(self.head(states.float()).squeeze(-1))
