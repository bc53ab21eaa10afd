"""GRPO, its descendants and RLOO beside TRL's, called live: the same numbers in, the same loss and gradient out.

`_compute_loss` and `_generate_and_score_completions` of `GRPOTrainer` and `RLOOTrainer` run as they
are, on a stand-in for the trainer that holds what they look at. What differs does so on purpose,
and has a test here too: TRL counts an empty row as a sequence, lets garbage behind the mask
through, and gives eight equal rewards in float32 an advantage that is small but not zero (eps is
the same, 1e-4); its CISPO names the cap itself; its token mean divides by the tokens of a whole
generation batch; its RLOO clips a ratio where ours has none.
"""

import math
from collections import defaultdict
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch import tensor

pytest.importorskip("trl", reason="trl is not installed: pip install -e '.[dev]' brings it")
from trl import GRPOTrainer, RLOOTrainer

from rlcourse.lm import llama
from rlcourse.methods import GRPO, RLOO, TIS, ScalingGRPO
from rlcourse.methods.cispo import cispo_loss
from rlcourse.methods.corrections import truncated_importance_weights
from rlcourse.methods.dapo import dapo_loss
from rlcourse.methods.dr_grpo import dr_grpo_loss
from rlcourse.methods.grpo import group_advantages, grpo_loss
from rlcourse.methods.gspo import gspo_loss
from rlcourse.methods.reinforce import reinforce_per_token
from rlcourse.methods.sapo import sapo_loss
from rlcourse.methods.scaling_grpo import off_policy_sequences
from rlcourse.tensors import only, token_logprobs, token_weights


def stand_in(**changes):
    accelerator = SimpleNamespace(
        device=torch.device("cpu"),
        num_processes=1,
        process_index=0,
        is_main_process=True,
        gather=lambda x: x,
        gather_for_metrics=lambda x: x,
        reduce=lambda x, reduction=None: x,
    )
    args = SimpleNamespace(
        delta=None,
        use_bias_correction_kl=False,
        sapo_temperature_pos=1.0,
        sapo_temperature_neg=1.05,
        steps_per_generation=1,
        gradient_accumulation_steps=1,
        per_device_train_batch_size=8,
        gradient_checkpointing_kwargs=None,
    )
    trainer = SimpleNamespace(
        accelerator=accelerator,
        args=args,
        model=SimpleNamespace(training=True, is_gradient_checkpointing=False),
        loss_type="grpo",
        importance_sampling_level="token",
        epsilon_low=0.2,
        epsilon_high=0.2,
        beta=0.0,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        use_vllm=False,
        vllm_importance_sampling_correction=False,
        vllm_importance_sampling_mode="token_truncate",
        vllm_importance_sampling_clip_max=2.0,
        vllm_importance_sampling_clip_min=None,
        normalize_advantages=False,
        reward_clip_range=None,
        aux_loss_enabled=False,
        current_gradient_accumulation_steps=1,
        max_completion_length=16,
        num_iterations=1,
        num_generations=4,
        scale_rewards="group",
        multi_objective_aggregation="sum_then_normalize",
        reward_weights=tensor([1.0]),
        reward_funcs=[None],
        reward_func_names=["reward"],
        environment_factories=None,
        environments=None,
        tools=None,
        mask_truncated_completions=False,
        pad_to_multiple_of=None,
        log_multimodal=False,
        ref_model=None,
        _tokenizer=SimpleNamespace(pad_token_id=0),
        _entropy_bonus_enabled=False,
        _metrics=defaultdict(lambda: defaultdict(list)),
        _logs=defaultdict(list, rewards=defaultdict(list), extra=defaultdict(list)),
        _pending_extra_logs={},
        _pending_metrics={},
        get_off_policy_mask=GRPOTrainer.get_off_policy_mask,
    )
    for name, value in changes.items():
        setattr(trainer, name, value)
    return trainer


def batch_of(mask, advantages):
    """What every trainer finds in a batch: tokens that nobody looks at, and the advantages."""
    tokens = torch.zeros(mask.shape, dtype=torch.long)
    return {
        "prompt_ids": tokens[:, :1],
        "prompt_mask": torch.ones_like(tokens[:, :1]),
        "completion_ids": tokens,
        "completion_mask": mask.int(),
        "advantages": advantages,
    }


def trl_loss(
    logp, old_logp, advantages, mask, clip=0.2, ref_logp=None, beta=0.0, args=None, given=None, **changes
):
    """`_compute_loss`, with the model's log-probs given instead of computed. `args` are the trainer's
    arguments that differ, `given` what else it finds in its batch."""
    trainer = stand_in(**{"beta": beta, "epsilon_low": clip, "epsilon_high": clip, **changes})
    vars(trainer.args).update(args or {})
    trainer._get_per_token_logps_and_entropies = lambda *_, **__: (logp, torch.zeros_like(logp), None)
    inputs = {
        **batch_of(mask, advantages),
        "old_per_token_logps": old_logp,
        "ref_per_token_logps": ref_logp,
        "num_items_in_batch": mask.sum(),
        **(given or {}),
    }
    return GRPOTrainer._compute_loss(trainer, trainer.model, inputs)


def trl_advantages(rewards, scale):
    """`_generate_and_score_completions`, with the answers and their rewards given. `rewards` is [P G]."""
    trainer = stand_in(num_generations=rewards.shape[1], scale_rewards="group" if scale else "none")
    n = rewards.numel()
    answers = ([[1]] * n, [[2]] * n, None, [""] * n, None, {}, None, [])
    trainer._generate = lambda prompts: answers
    trainer._calculate_rewards = lambda *_: rewards.flatten()[:, None].clone()
    inputs = [{"prompt": "prompt"} for _ in range(n)]
    return GRPOTrainer._generate_and_score_completions(trainer, inputs)["advantages"].view_as(rewards)


def trl_rloo_advantages(rewards, mask, logp, ref_logp, beta):
    """`_generate_and_score_completions` of RLOO, with answers, rewards and log-probs given."""
    trainer = stand_in(
        num_generations=rewards.shape[1], beta=beta, ref_model=object(), model=stand_in().model
    )
    trainer._generate = lambda prompts: ([[1]] * len(mask), [[2] * n for n in mask.sum(1)], [""] * len(mask))
    trainer._calculate_rewards = lambda *_: rewards.flatten()[:, None].clone()
    trainer._get_per_token_logps_and_entropies = lambda model, *_, **__: (
        ref_logp if model is trainer.ref_model else logp,
        None,
        None,
    )
    inputs = [{"prompt": "prompt"} for _ in mask]
    return RLOOTrainer._generate_and_score_completions(trainer, inputs)["advantages"]


def trl_rloo_loss(logp, old_logp, advantages, mask, clip=0.2):
    trainer = stand_in(epsilon_low=clip, epsilon_high=clip)
    trainer._get_per_token_logps_and_entropies = lambda *_, **__: (logp, torch.zeros_like(logp), None)
    inputs = {**batch_of(mask, advantages), "old_logps": (old_logp * mask).sum(1)}
    return RLOOTrainer._compute_loss(trainer, trainer.model, inputs)


def trl_engine_weights(old_logp, engine_logp, mask, mode="token_truncate", cap=2.0):
    """The weights by which TRL corrects vLLM, from `_generate_and_score_completions`."""
    trainer = stand_in(
        use_vllm=True,
        vllm_importance_sampling_correction=True,
        vllm_importance_sampling_mode=mode,
        vllm_importance_sampling_clip_max=cap,
    )
    n, lengths = len(mask), mask.sum(1).tolist()
    sampled = [row[:length].tolist() for row, length in zip(engine_logp, lengths)]
    answers = ([[1]] * n, [[2] * length for length in lengths], None, [""] * n, sampled, {}, None, [])
    trainer._generate = lambda prompts: answers
    trainer._calculate_rewards = lambda *_: torch.zeros(n, 1)
    trainer._get_per_token_logps_and_entropies = lambda *_, **__: (old_logp, None, None)
    inputs = [{"prompt": "prompt"} for _ in range(n)]
    return GRPOTrainer._generate_and_score_completions(trainer, inputs)["importance_sampling_ratio"]


def drawn(seed, lengths=(6, 1, 4, 2)):
    """Ratios from about 0.4 to 2.5, so that both sides of a clip of 0.2 are at work."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(max(lengths))[None] < tensor(lengths)[:, None]
    old = -3 * torch.rand(mask.shape, generator=generator)
    logp = old + 0.5 * torch.randn(mask.shape, generator=generator)
    ref = old + 0.5 * torch.randn(mask.shape, generator=generator)
    return logp, old, torch.randn(len(lengths), generator=generator), mask, ref


def value_and_gradient(function, x):
    x = x.clone().requires_grad_()
    y = function(x)
    return y.detach(), torch.autograd.grad(y, x)[0]


def same(ours, theirs):
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def same_loss_and_gradient(ours, theirs, logp, mask):
    (our_loss, our_grad), (their_loss, their_grad) = (value_and_gradient(f, logp) for f in (ours, theirs))
    same(our_loss, their_loss)
    same(our_grad, their_grad)
    assert our_grad[mask].abs().max() > 1e-3  # equal, and not because both are nothing


@pytest.mark.parametrize("clip", [0.2, 0.05, 10.0])
@pytest.mark.parametrize("beta", [0.0, 0.04, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_loss_and_gradient_are_trls_grpo(seed, beta, clip):
    logp, old, advantages, mask, ref = drawn(seed)
    ours, our_grad = value_and_gradient(
        lambda x: grpo_loss(x, old, advantages, mask, clip, ref_logp=ref, beta=beta), logp
    )
    theirs, their_grad = value_and_gradient(
        lambda x: trl_loss(x, old, advantages, mask, clip, ref_logp=ref, beta=beta), logp
    )
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(our_grad, their_grad, atol=1e-5, rtol=1e-5)
    assert our_grad[mask].abs().max() > 1e-3  # equal, and not because both are nothing


def test_both_sides_of_the_clip_are_at_work_in_this_comparison():
    logp, old, _, mask, _ = drawn(0, lengths=(6, 6, 6, 5))
    advantages = tensor([1.0, 1.0, -1.0, -1.0])
    _, grad = value_and_gradient(lambda x: trl_loss(x, old, advantages, mask), logp)
    above, below = logp - old > math.log(1.2), logp - old < math.log(0.8)
    better, worse = (advantages > 0)[:, None], (advantages < 0)[:, None]
    assert (above & better & mask).any() and (below & worse & mask).any()
    assert grad[above & better | below & worse].eq(0).all()


@pytest.mark.parametrize(
    ("loss_type", "how", "constant"),
    [
        ("grpo", "sequence", None),
        ("bnpo", "token", None),
        ("dapo", "token", None),
        ("dr_grpo", "constant", 16),
    ],
)
def test_trls_loss_types_are_our_denominators(loss_type, how, constant):
    logp, old, advantages, mask, _ = drawn(1)
    weights = token_weights(mask, how, constant)
    ours, our_grad = value_and_gradient(lambda x: grpo_loss(x, old, advantages, mask, weights=weights), logp)
    theirs, their_grad = value_and_gradient(
        lambda x: trl_loss(x, old, advantages, mask, loss_type=loss_type), logp
    )
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(our_grad, their_grad, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("scale", [True, False])
def test_advantages_are_trls(scale):
    rewards = tensor(
        [[1.0, 0.0, 0.0, 1.0], [0.3, -2.0, 5.5, 0.0], [1.0, 1.0, 1.0, 1.0], [1e-3, 0.0, 0.0, 0.0]]
    )
    torch.testing.assert_close(
        group_advantages(rewards, scale), trl_advantages(rewards, scale), atol=1e-5, rtol=1e-5
    )


# ---- GRPO's descendants

# Our loss, and TRL's settings for it. TRL has no GSPO-token (verl has: tests/test_verl.py).
FAMILY = {
    "Dr. GRPO": (lambda *args: dr_grpo_loss(*args, max_length=16), {"loss_type": "dr_grpo"}),
    "DAPO": (dapo_loss, {"loss_type": "dapo", "epsilon_high": 0.28}),
    "GSPO": (
        gspo_loss,
        {"importance_sampling_level": "sequence", "epsilon_low": 3e-4, "epsilon_high": 4e-4},
    ),
    "GSPO with room": (
        lambda *args: gspo_loss(*args, clip_low=0.2, clip_high=0.3),
        {"importance_sampling_level": "sequence", "epsilon_low": 0.2, "epsilon_high": 0.3},
    ),
    # "epsilon_high" is the cap itself in TRL, and the distance from 1 in MiniMax's paper, in verl and in ours
    "CISPO": (cispo_loss, {"loss_type": "cispo", "epsilon_high": 5.0}),
    "CISPO, clipping": (
        lambda *args: cispo_loss(*args, clip_high=0.5),
        {"loss_type": "cispo", "epsilon_high": 1.5},
    ),
    "SAPO": (sapo_loss, {"loss_type": "sapo"}),
}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", FAMILY)
def test_losses_and_gradients_of_the_family_are_trls(name, seed):
    logp, old, advantages, mask, _ = drawn(seed, lengths=(6, 1, 4, 2, 5, 3))
    ours, settings = FAMILY[name]
    same_loss_and_gradient(
        lambda x: ours(x, old, advantages, mask),
        lambda x: trl_loss(x, old, advantages, mask, **settings),
        logp,
        mask,
    )


def test_the_settings_of_each_member_of_the_family_matter_to_this_comparison():
    logp, old, advantages, mask, _ = drawn(0, lengths=(6, 1, 4, 2, 5, 3))
    losses = {name: ours(logp, old, advantages, mask).item() for name, (ours, _) in FAMILY.items()}
    losses["GRPO"] = grpo_loss(logp, old, advantages, mask).item()
    losses["DAPO at 0.2"] = dapo_loss(logp, old, advantages, mask, clip_high=0.2).item()
    found = sorted(losses.values())
    assert min(b - a for a, b in zip(found, found[1:])) > 1e-4, losses


def test_dapo_with_an_advantage_for_each_token_is_trls():
    logp, old, _, mask, _ = drawn(4)
    advantages = torch.randn(mask.shape, generator=torch.Generator().manual_seed(4))
    same_loss_and_gradient(
        lambda x: dapo_loss(x, old, advantages, mask),
        lambda x: trl_loss(x, old, advantages, mask, loss_type="dapo", epsilon_high=0.28),
        logp,
        mask,
    )


def in_parts(loss_of, rows):
    """The loss summed over micro-batches of so many rows."""
    return lambda x: sum(loss_of(x, slice(start, start + rows)) for start in range(0, len(x), rows))


def test_over_micro_batches_trls_dapo_adds_up_to_ours_and_its_bnpo_does_not():
    logp, old, advantages, mask, _ = drawn(5)

    def trls(loss_type):
        window = {"current_gradient_accumulation_steps": 2, "args": {"steps_per_generation": 2}}
        return in_parts(
            lambda x, rows: trl_loss(
                x[rows],
                old[rows],
                advantages[rows],
                mask[rows],
                loss_type=loss_type,
                given={"num_items_in_batch": mask.sum()},
                **window,
            ),
            rows=2,
        )

    weights = token_weights(mask, "token")
    ours = in_parts(
        lambda x, rows: dapo_loss(x[rows], old[rows], advantages[rows], mask[rows], 0.2, 0.2, weights[rows]),
        2,
    )
    same_loss_and_gradient(ours, trls("dapo"), logp, mask)
    # bnpo averages each micro-batch by itself: 7 tokens in one, 6 in the other, and yet half of the loss each
    assert (ours(logp) - trls("bnpo")(logp)).abs() > 1e-3


def test_trls_dapo_divides_by_the_mean_step_of_a_generation_and_ours_by_the_steps_own_tokens():
    logp, old, advantages, mask, _ = drawn(6, lengths=(6, 5, 2, 1))
    first = slice(0, 2)  # an optimizer step of 11 of the 14 tokens that were sampled for two steps
    ours = dapo_loss(logp[first], old[first], advantages[first], mask[first], 0.2, 0.2)
    theirs = trl_loss(
        logp[first],
        old[first],
        advantages[first],
        mask[first],
        loss_type="dapo",
        args={"steps_per_generation": 2},
        given={"num_items_in_batch": mask.sum()},
    )
    same(ours * 11, theirs * 14 / 2)


# ---- DeepSeek-V3.2


def scaling_loss(logp, old_logp, ref_logp, advantages, mask, engine_logp=None, **settings):
    batch = SimpleNamespace(
        logp=logp,
        old_logp=old_logp,
        ref_logp=ref_logp,
        engine_logp=engine_logp,
        advantages=advantages,
        mask=mask,
    )
    per_token, _ = ScalingGRPO(keep_routing=False, **settings).loss(batch, {})
    return (per_token * token_weights(mask, "sequence")).sum()


@pytest.mark.parametrize("seed", range(4))
def test_the_unbiased_kl_is_trls_default_of_kl_bias_correction(seed):
    logp, old, advantages, mask, ref = drawn(seed)
    trls = {"args": {"use_bias_correction_kl": True}, "ref_logp": ref, "beta": 1.0}
    same_loss_and_gradient(
        lambda x: scaling_loss(x, old, ref, advantages, mask, beta=1.0, delta=math.inf),
        lambda x: trl_loss(x, old, advantages, mask, **trls),
        logp,
        mask,
    )


def test_the_bias_correction_matters_to_the_gradient_on_policy_where_the_value_is_the_same():
    logp, _, advantages, mask, ref = drawn(0)

    def trls(corrected):
        changes = {"args": {"use_bias_correction_kl": corrected}, "ref_logp": ref, "beta": 1.0}
        return value_and_gradient(lambda x: trl_loss(x, x.detach(), advantages, mask, **changes), logp)

    (loss, grad), (plain_loss, plain_grad) = trls(True), trls(False)
    same(loss, plain_loss)
    assert (grad - plain_grad).abs().max() > 0.01


@pytest.mark.parametrize("seed", range(4))
def test_the_off_policy_sequence_mask_is_trls(seed):
    logp, old, advantages, mask, ref = drawn(seed, lengths=(6, 1, 4, 2, 5, 3, 2, 3))
    advantages = advantages.abs() * tensor([-1.0, -1, -1, -1, -1, -1, 1, 1])
    logp[6:] -= 1.0  # good answers that the policy has left behind: they stay
    dropped = off_policy_sequences(logp, old, advantages, mask, delta=0.05)
    kept = GRPOTrainer.get_off_policy_mask(advantages[:, None], logp, old, mask.int(), 0.05)[:, 0].bool()
    assert torch.equal(dropped, ~kept) and dropped.any() and kept[advantages < 0].any()
    trls = {"args": {"use_bias_correction_kl": True}, "ref_logp": ref, "beta": 0.1}
    same_loss_and_gradient(  # the KL of a dropped answer stays in both
        lambda x: scaling_loss(x, old, ref, advantages, mask, beta=0.1, delta=0.05),
        lambda x: trl_loss(x, old, advantages, mask, off_policy_mask_threshold=0.05, **trls),
        logp,
        mask,
    )


def test_trl_measures_off_policyness_from_the_engine_if_there_is_one_and_so_do_we():
    logp, engine, _, mask, _ = drawn(0)
    advantages = -torch.ones(len(mask))
    trls = trl_loss(
        logp,
        logp,
        advantages,
        mask,
        off_policy_mask_threshold=0.05,
        given={"sampling_per_token_logps": engine},
    )
    dropped = off_policy_sequences(logp, engine, advantages, mask, delta=0.05)
    assert 0 < dropped.sum() < len(mask)
    # on policy each answer counts -A = 1, a dropped one 0, in a mean over all of them
    same(trls, (~dropped).float().mean())
    same(scaling_loss(logp, logp, logp, advantages, mask, engine, delta=0.05), trls)
    same(scaling_loss(logp, logp, logp, advantages, mask, delta=0.05), tensor(1.0))


# ---- another engine


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("cap", [2.0, 1.1])
def test_truncated_importance_weights_are_trls(cap, seed):
    logp, engine, _, mask, _ = drawn(seed)
    same(
        truncated_importance_weights(logp, engine, cap)[mask],
        trl_engine_weights(logp, engine, mask, cap=cap)[mask],
    )


def test_trls_default_weighs_and_drops_whole_answers_where_ours_truncates_tokens():
    logp, engine, _, mask, _ = drawn(0)
    logp[0] += 0.3
    whole = only(logp - engine, mask).sum(1, keepdim=True).exp()
    theirs = trl_engine_weights(logp, engine, mask, mode="sequence_mask", cap=3.0)
    assert (whole > 3).any() and (whole < 3).any()
    same(theirs, whole.masked_fill(whole > 3, 0.0))


@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_the_correction_weighs_the_policys_loss_and_not_the_kl_as_trls_does(beta):
    logp, old, advantages, mask, ref = drawn(1)
    engine = old + 0.5 * torch.randn(mask.shape, generator=torch.Generator().manual_seed(1))
    weights = trl_engine_weights(old, engine, mask)
    vllm = {"use_vllm": True, "vllm_importance_sampling_correction": True}

    def ours(x):
        batch = SimpleNamespace(
            logp=x, old_logp=old, ref_logp=ref, engine_logp=engine, advantages=advantages, mask=mask
        )
        per_token, _ = TIS(GRPO(beta=beta), cap=2.0).loss(batch, {})
        return (only(per_token, mask) * token_weights(mask, "sequence")).sum()

    def trls(x):
        given = {"importance_sampling_ratio": weights}
        return trl_loss(x, old, advantages, mask, ref_logp=ref, beta=beta, given=given, **vllm)

    same_loss_and_gradient(ours, trls, logp, mask)


# ---- RLOO


@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_rloo_advantages_are_trls_with_the_kl_in_the_reward(beta):
    logp, _, _, mask, ref = drawn(2, lengths=(6, 1, 4, 2, 5, 3, 2, 3))
    rewards = tensor([[1.0, 0.0, 0.0, 1.0], [0.3, -2.0, 5.5, 0.0]])
    rollout = SimpleNamespace(
        rewards=rewards.flatten(), logp=logp, ref_logp=ref, mask=mask, grouped=lambda x: x.view(2, 4)
    )
    ours = RLOO(beta=beta).advantages(rollout, {})
    same(ours, trl_rloo_advantages(rewards, mask, logp, ref, beta))


def our_rloo_loss(logp, advantages, mask):
    return (reinforce_per_token(only(logp, mask), advantages) * token_weights(mask, "constant", 1)).sum()


def test_on_policy_rloos_gradient_is_trls():
    logp, _, advantages, mask, _ = drawn(3)
    _, ours = value_and_gradient(lambda x: our_rloo_loss(x, advantages, mask), logp)
    _, theirs = value_and_gradient(lambda x: trl_rloo_loss(x, logp, advantages, mask), logp)
    same(ours, theirs)
    assert theirs.abs().max() > 0.01


def test_off_policy_trls_rloo_weighs_by_the_answers_ratio_and_clips_it_and_ours_is_for_one_update():
    logp, old, advantages, mask, _ = drawn(3, lengths=(6, 1, 4, 2, 5, 3))
    logp = old + 0.3 * (logp - old)
    _, ours = value_and_gradient(lambda x: our_rloo_loss(x, advantages, mask), logp)
    _, theirs = value_and_gradient(lambda x: trl_rloo_loss(x, old, advantages, mask), logp)
    ratio = only(logp - old, mask).sum(1).exp()
    silent = (advantages > 0) & (ratio > 1.2) | (advantages < 0) & (ratio < 0.8)
    assert silent.any() and not silent.all()
    same(theirs, ours * ratio[:, None] * ~silent[:, None])


# ---- scores


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_scores_and_their_gradients_are_trls(temperature):
    from transformers import LlamaConfig, LlamaForCausalLM
    from trl.trainer.utils import add_fused_lm_head

    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=19, initializer_range=0.3, **shape)).eval()
    tokens = torch.randint(3, 19, (4, 11))
    prompt_mask = torch.arange(5) >= tensor([0, 2, 2, 4])[:, None]
    mask = torch.arange(6) < tensor([6, 1, 4, 2])[:, None]

    _, logits = llama.response_states(model, tokens[:, :5], prompt_mask, torch.arange(4), tokens[:, 5:], mask)
    ours = token_logprobs(logits / temperature, tokens[:, 5:][mask])
    our_grads = torch.autograd.grad(ours.square().sum(), list(model.parameters()))

    add_fused_lm_head(model, temperature=temperature)
    trainer = stand_in()
    trainer.accelerator.autocast = nullcontext
    everything = torch.cat([prompt_mask, mask], 1).int()
    theirs = GRPOTrainer._get_per_token_logps_and_entropies(trainer, model, tokens, everything, 6)[0][mask]
    their_grads = torch.autograd.grad(theirs.square().sum(), list(model.parameters()))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    for ours, theirs in zip(our_grads, their_grads):
        assert (ours - theirs).norm() < 1e-5 * theirs.norm()


# ---- what differs on purpose


@pytest.mark.parametrize("name", ["GRPO", "Dr. GRPO", "SAPO", "GSPO with room"])
def test_trl_counts_an_empty_row_as_a_sequence_and_we_do_not(name):
    logp, old, advantages, mask, _ = drawn(2, lengths=(5, 3, 0, 2))
    ours, settings = {**FAMILY, "GRPO": (grpo_loss, {})}[name]
    # a mean over 3 answers here, over 4 rows there
    same(ours(logp, old, advantages, mask), trl_loss(logp, old, advantages, mask, **settings) * 4 / 3)


@pytest.mark.parametrize("name", ["DAPO", "CISPO"])
def test_an_empty_row_does_not_show_in_a_token_mean(name):
    logp, old, advantages, mask, _ = drawn(2, lengths=(5, 3, 0, 2))
    ours, settings = FAMILY[name]
    same(ours(logp, old, advantages, mask), trl_loss(logp, old, advantages, mask, **settings))


@pytest.mark.parametrize("name", ["GRPO", *FAMILY])
def test_trl_lets_nan_behind_the_mask_through_and_we_do_not(name):
    logp, old, advantages, mask, _ = drawn(3)
    ours, settings = {**FAMILY, "GRPO": (grpo_loss, {})}[name]
    clean = ours(logp, old, advantages, mask)
    dirty = logp.masked_fill(~mask, math.nan)
    same(ours(dirty, old, advantages, mask), clean)
    assert trl_loss(dirty, old, advantages, mask, **settings).isnan()


def test_trl_gives_a_tied_group_a_trace_of_advantage_and_we_give_none():
    tied = torch.full((1, 8), 0.7)
    assert group_advantages(tied).abs().max() == 0
    assert 0 < trl_advantages(tied, scale=True).abs().max() < 1e-2
