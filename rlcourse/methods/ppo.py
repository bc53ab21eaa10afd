"""PPO (Schulman et al., 2017), as language models use it: several careful updates from one rollout.

idea       weigh each token by how much likelier it has become since it was sampled, and stop
           rewarding the change once it has moved far enough; a critic, V, says for every token
           what was to be expected, and what came of it is the advantage
objective  mean over tokens of  min(r A, clip(r, 1 - low, 1 + high) A),  r = pi / pi_old
           A from GAE (Schulman et al., 2015, arXiv 1506.02438) over the rewards: the score on the
           last token, minus beta * k1 on each (Ziegler et al., 2019, arXiv 1909.08593)
fixes      REINFORCE must throw its samples away after one update, and pays every token alike
breaks     a critic as large as the policy, which is wrong when training begins
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rlcourse.kl import kl_estimate
from rlcourse.lm.critic import Critic
from rlcourse.methods.protocol import OnlineMethod, Paper
from rlcourse.methods.reinforce import last_token
from rlcourse.tensors import each_token, masked_mean, only, whiten

PAPER = Paper("Proximal Policy Optimization Algorithms", "arXiv 1707.06347", "2017-07-20")


# ---- rewards and advantages


def kl_shaped_rewards(
    scores: Float[Tensor, " B"],
    logp: Float[Tensor, "B T"],
    ref_logp: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    beta: float,
) -> Float[Tensor, "B T"]:
    """What each token is paid: -beta * k1, and on the last one the score of the whole answer too."""
    penalty = beta * kl_estimate(only(logp, mask), only(ref_logp, mask), "k1")
    return (each_token(scores, last_token(mask)) - penalty).detach()


def adapted_beta(beta: float, kl: float, target: float, n: int, horizon: int) -> float:
    """Ziegler et al.'s controller, after `n` answers whose mean *summed* KL was `kl`: more when it was too far."""
    error = min(max(kl / target - 1, -0.2), 0.2)
    return beta * (1 + error * n / horizon)


def gae(
    rewards: Float[Tensor, "B T"],
    values: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    gamma: float,
    lam: float | Float[Tensor, " B"],
) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
    """Advantages, and the returns that the critic should have said: A + V.

    delta_t = r_t + gamma V_{t+1} - V_t        how wrong V_t looks one token later
    A_t     = delta_t + gamma lam A_{t+1}      lam = 0 believes V, lam = 1 waits for the end

    `values[:, t]` is V of the state *before* token t. After the last token nothing is to come: V = 0.
    """
    rewards, values = only(rewards, mask).detach(), only(values, mask).detach()
    advantages, next_value, running = torch.zeros_like(values), values.new_zeros(len(values)), 0.0
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        running = torch.where(mask[:, t], delta + gamma * lam * running, running)
        next_value = torch.where(mask[:, t], values[:, t], next_value)
        advantages[:, t] = running
    advantages = only(advantages, mask)
    return advantages, advantages + values


# ---- losses


def clipped_surrogate(
    logp: Float[Tensor, "*S"],
    old_logp: Float[Tensor, "*S"],
    advantages: Float[Tensor, ...],
    clip_low: float,
    clip_high: float,
) -> Float[Tensor, "*S"]:
    """Per-token loss: max(-r A, -clip(r) A)."""
    advantages = _per_token(advantages, logp)
    ratio = (logp - old_logp.detach()).exp()
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    return torch.maximum(-ratio * advantages, -clipped * advantages)


def clip_active(
    logp: Float[Tensor, "*S"],
    old_logp: Float[Tensor, "*S"],
    advantages: Float[Tensor, ...],
    clip_low: float,
    clip_high: float,
) -> Bool[Tensor, "*S"]:
    """Where the clip has taken the gradient away: the ratio is out on the side that A pushes to."""
    advantages = _per_token(advantages, logp)
    ratio = (logp - old_logp).exp()
    return ((advantages > 0) & (ratio > 1 + clip_high)) | ((advantages < 0) & (ratio < 1 - clip_low))


def _per_token(advantages: Tensor, logp: Tensor) -> Tensor:
    """One advantage a response counts for each of its tokens; either way it is data, not a path for gradient."""
    return (advantages if advantages.dim() == logp.dim() else advantages.unsqueeze(-1)).detach()


def value_per_token(
    values: Float[Tensor, "*S"],
    old_values: Float[Tensor, "*S"],
    returns: Float[Tensor, "*S"],
    clip: float | None,
) -> Float[Tensor, "*S"]:
    """Half the squared error; with a clip, of the worse of V and V kept within `clip` of what it was."""
    returns, old_values = returns.detach(), old_values.detach()
    error = (values - returns).square()
    if clip is not None:
        near = old_values + (values - old_values).clamp(-clip, clip)
        error = torch.maximum(error, (near - returns).square())
    return 0.5 * error


def value_loss(
    values: Float[Tensor, "B T"],
    old_values: Float[Tensor, "B T"],
    returns: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    clip: float | None,
) -> Float[Tensor, ""]:
    """The mean over tokens."""
    values, old_values, returns = only(values, mask), only(old_values, mask), only(returns, mask)
    return masked_mean(value_per_token(values, old_values, returns, clip), mask)


def explained_variance(
    values: Float[Tensor, "B T"], returns: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]
) -> float:
    """1 - Var(returns - V) / Var(returns): 1 for a perfect critic, 0 for one that knows only the mean.

    0 too where all returns are equal, for there nothing is to be explained; the formula says 0 / 0.
    """
    values, returns = values[mask], returns[mask]
    # Equal but for rounding: returns are the sum of an advantage and a value, so 0.7 may come out as 0.70000005.
    if returns.max() - returns.min() <= 1e-5 * torch.stack([returns, values]).abs().max():
        return 0.0
    return (1 - (returns - values).var() / returns.var()).item()


# ---- the method


@dataclass(frozen=True)
class PPO(OnlineMethod):
    group_size: int = 1
    clip: float = 0.2
    value_clip: float | None = 0.2
    vf: float = 0.1  # weight of the value loss; it matters where critic and policy share a trunk
    lam: float = 0.95
    gamma: float = 1.0
    beta: float = 0.05  # KL to the reference, in the reward
    target_kl: float | None = None  # in nats an answer: beta then adapts, as in Ziegler et al.
    horizon: int = 10_000  # answers over which it adapts
    entropy_bonus: float = 0.0
    whiten: bool = True
    critic: str = "alone"  # or "shared": a second head on the policy's own trunk
    critic_lr: float | None = None  # None: the policy's
    epochs: int = 4
    minibatches: int = 1

    def __post_init__(self):
        super().__post_init__()
        if self.critic not in ("alone", "shared"):
            raise ValueError(f'PPO: critic is "alone" or "shared", got {self.critic!r}')
        if self.target_kl is not None and not (self.beta and self.target_kl > 0):
            raise ValueError("PPO: target_kl steers beta, so both must be positive")

    @property
    def needs(self):
        return ("values", *["ref_logp"] * (self.beta > 0), *["entropy"] * (self.entropy_bonus != 0))

    def init(self, policy):
        return {"critic": Critic(policy, shared=self.critic == "shared"), "beta": torch.tensor(self.beta)}

    def token_rewards(self, rollout, state):
        """The KL-shaped rewards; and beta as this step's KL asks for it."""
        ref_logp = rollout.ref_logp if self.beta else rollout.logp
        beta = state["beta"].item()
        if self.target_kl:
            kl = only(rollout.logp - ref_logp, rollout.mask).sum(1).mean().item()
            state["beta"].fill_(adapted_beta(beta, kl, self.target_kl, len(rollout), self.horizon))
        rollout.metrics["beta"] = beta
        return kl_shaped_rewards(rollout.rewards, rollout.logp, ref_logp, rollout.mask, beta)

    def advantages(self, rollout, state):
        rewards = self.token_rewards(rollout, state)
        advantages, rollout.returns = gae(rewards, rollout.values, rollout.mask, self.gamma, self.lam)
        return self.finished(rollout, advantages)

    def finished(self, rollout, advantages):
        rollout.metrics["explained_variance"] = explained_variance(
            rollout.values, rollout.returns, rollout.mask
        )
        return whiten(advantages, rollout.mask) if self.whiten else advantages

    def policy_loss(self, batch):
        """Per token, with the share that was clipped."""
        mask = batch.mask
        logp, old_logp = only(batch.logp, mask), only(batch.old_logp, mask)
        args = logp, old_logp, each_token(batch.advantages, mask), self.clip, self.clip
        return clipped_surrogate(*args), {"clip_fraction": clip_active(*args).float()}

    def critic_loss(self, batch):
        """Per token."""
        values, old_values, returns = (
            only(x, batch.mask) for x in (batch.values, batch.old_values, batch.returns)
        )
        return value_per_token(values, old_values, returns, self.value_clip)

    def loss(self, batch, state):
        per_token, metrics = self.policy_loss(batch)
        value = self.critic_loss(batch)
        per_token = per_token + self.vf * value
        if self.entropy_bonus:
            per_token = per_token - self.entropy_bonus * only(batch.entropy, batch.mask)
        return per_token, {**metrics, "value_loss": value.detach()}

    def other_terms(self, batch, state):
        terms = self.vf * self.critic_loss(batch)
        if self.entropy_bonus:
            terms = terms - self.entropy_bonus * only(batch.entropy, batch.mask)
        return terms
