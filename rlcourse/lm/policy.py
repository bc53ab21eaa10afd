"""A language model as a policy: it samples responses, and scores them under the same distribution.

Conventions (each is a bug in somebody's repository when it is broken):
- logits are divided by the temperature before the log-softmax, in sampling and in scoring alike;
- prompts are left-padded, responses right-padded, with attention mask and position ids;
- padding is known by length and never by the token's id, so PAD = EOS in a tokenizer does no harm;
- dropout stays off, in rollouts and in updates;
- sampling is not truncated unless asked for. With top-k or top-p, `logp` is of the truncated
  distribution, and scoring, which is not truncated, disagrees with it: that is what truncation does.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers.utils import logging

from rlcourse.lm import llama, routing
from rlcourse.lm.caches import StaticCache, TransformersCache, can_be_recorded, divided
from rlcourse.lm.rollout import Rollout
from rlcourse.tensors import entropy as entropy_of
from rlcourse.tensors import token_logprobs


class Policy:
    """A causal language model of transformers with its tokenizer.

    autocast    the precision to compute in where it is not the weights' own: torch.bfloat16 beside float32 weights
    """

    def __init__(self, model, tokenizer, name: str = "policy", autocast: torch.dtype | None = None):
        self.model, self.tokenizer, self.name = model.eval(), tokenizer, name
        self.autocast = autocast
        self.trained: list[str] = []  # what `train` and `fit` have done to it so far
        self.recomputes = False  # has `checkpoint_layers` been called?
        self._adapter_off = False
        eos = model.generation_config.eos_token_id if model.can_generate() else model.config.eos_token_id
        ids = {tokenizer.eos_token_id, *(eos if isinstance(eos, list) else [eos])} - {None}
        if not ids:
            raise ValueError(
                f"{name}: neither the model nor its tokenizer names an EOS token: no answer could end"
            )
        if strange := [each for each in ids if not isinstance(each, int)]:
            raise ValueError(
                f"{name}: its config.json or generation_config.json names an EOS that is no token's number, "
                f"{strange[0]!r}"
            )
        self.ends, self.eos = ids, torch.tensor(sorted(ids), device=model.device)
        self.eos_id = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else min(ids)
        self.pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.eos_id

    def __repr__(self) -> str:
        size = sum(p.numel() for p in self.model.parameters()) / 1e6
        some = f", {sum(p.numel() for p in self.parameters()) / 1e6:.2f} M to train" if self.adapted else ""
        done = f", trained by {', '.join(self.trained)}" if self.trained else ""
        return f"Policy({self.name!r}, {size:.2f} M parameters{some}, {self.device}{done})"

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def context(self) -> int:
        """How many tokens a prompt and its answer may have together.

        A longrope turns all positions differently once a text is longer than what the model first read. What was
        sampled before that, from the cache, could then not be scored again.
        """
        config = self.model.config
        rope = getattr(config, "rope_parameters", None) or {}
        at_first = (
            rope.get("original_max_position_embeddings") if rope.get("rope_type") == "longrope" else None
        )
        return at_first or config.max_position_embeddings

    @property
    def pocket(self) -> bool:
        """Is it one of ours, which know a few hundred tokens where other models know tens of thousands?"""
        return self.model.config.vocab_size < 1000

    @property
    def adapted(self) -> bool:
        """Is only a low-rank adapter trained, and the model below it left as it is?"""
        return hasattr(self.model, "peft_config")

    def parameters(self):
        """What is trained: all weights, or the adapter's."""
        return (p for p in self.model.parameters() if p.requires_grad)

    def copy(self) -> Policy:
        """An independent copy: what trains one leaves the other as it is."""
        twin = copy.copy(self)
        twin.model, twin.trained = copy.deepcopy(self.model), list(self.trained)
        return twin

    def base(self) -> Policy:
        """The model below the adapter: what it was before training, at no memory, for the weights are shared."""
        if not self.adapted:
            raise ValueError(f"{self.name} has no adapter to leave off: keep a copy() from before training")
        twin = copy.copy(self)
        twin._adapter_off = True
        return twin

    def save(self, folder: str | Path, max_shard_size: str = "50GB") -> None:
        """A folder that any library loads: an adapter is added into the weights."""
        model = self.model
        if self.adapted:
            model = copy.deepcopy(model)
            model = model.unload() if self._adapter_off else model.merge_and_unload()
        with no_bars():
            model.save_pretrained(folder, max_shard_size=max_shard_size)
        self.tokenizer.save_pretrained(folder)

    def checkpoint_layers(self) -> None:
        """From now on keep only each layer's input for the backward pass, and compute the rest a second time.

        Ours and not transformers' own switch, which works in train mode only, where dropout is on.
        """
        from transformers.modeling_layers import GradientCheckpointingLayer

        if not self.recomputes:
            for layer in self.model.modules():
                if isinstance(layer, GradientCheckpointingLayer):
                    layer.forward = partial(
                        checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False
                    )
        self.recomputes = True

    @contextmanager
    def _as_set(self):
        """Inside, the model computes in this policy's precision, with its adapter or without."""
        adapter = self.model.disable_adapter() if self._adapter_off else nullcontext()
        with adapter, torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None):
            yield

    # ---- text to tokens and back

    def encode(self, prompt: str) -> list[int]:
        """The prompt as the model wants to be asked: through its chat template, if it has one."""
        if self.tokenizer.chat_template is None:
            return self.tokenizer(prompt)["input_ids"]
        message = [{"role": "user", "content": prompt}]
        try:
            return self.tokenizer.apply_chat_template(
                message, add_generation_prompt=True, return_dict=False, date_string="26 Jul 2024"
            )  # Llama 3 writes today's date, unless told: tomorrow the same run would ask something else
        except Exception as error:  # a template is a program, and may raise anything
            why = " ".join([f"{type(error).__name__}:", *str(error).split()])
            raise ValueError(
                f"the chat template of {self.name} fails on a single question ({why}). "
                "Mend it where its tokenizer is saved, or ask without one: policy.tokenizer.chat_template = None"
            ) from None

    def encode_response(self, text: str) -> list[int]:
        return [*self.tokenizer(text, add_special_tokens=False)["input_ids"], self.eos_id]

    def decode(self, tokens: list[int]) -> str:
        """What was said, without the EOS at its end. Any other special token is shown: it was said too."""
        tokens = tokens[:-1] if tokens and tokens[-1] in self.ends else tokens
        return self.tokenizer.decode(tokens, clean_up_tokenization_spaces=False)

    def left_padded(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Prompt tokens [P S] and their mask."""
        if isinstance(prompts, str):  # Python would take it for a list of letters
            raise ValueError(f"prompts is a list of texts, and got one text: pass [{prompts[:60]!r}]")
        encoded = [self.encode(prompt) for prompt in prompts]
        if not encoded:
            raise ValueError("prompts is an empty list: there is nothing to answer")
        if not all(encoded):
            empty = encoded.index([])
            why = (
                "an empty text gives a model nothing to go on from"
                if self.tokenizer.chat_template is None
                else f"the chat template of {self.name} writes nothing at all"
            )
            raise ValueError(f"prompt {empty}, {prompts[empty][:60]!r}, has no tokens: {why}")
        longest = max(map(len, encoded))
        tokens = torch.full((len(prompts), longest), self.pad_id)
        mask = torch.zeros(len(prompts), longest, dtype=torch.bool)
        for row, ids in enumerate(encoded):
            tokens[row, longest - len(ids) :] = torch.tensor(ids)
            mask[row, longest - len(ids) :] = True
        return tokens.to(self.device), mask.to(self.device)

    def answered(self, prompts: Sequence[str], responses: Sequence[str]) -> Rollout:
        """Responses that somebody else wrote, as a rollout: what offline methods and exercises score."""
        if isinstance(responses, str):
            raise ValueError(f"responses is a list of texts, and got one text: pass [{responses[:60]!r}]")
        if len(prompts) != len(responses) and not isinstance(prompts, str):
            raise ValueError(
                f"one response answers one prompt, and there are {len(responses)} of {len(prompts)}"
            )
        return self._given(
            list(prompts),
            *self.left_padded(prompts),
            torch.arange(len(prompts)),
            [self.encode_response(text) for text in responses],
            list(responses),
        )

    def tokens_after_bos(self, rows: list[list[int]]) -> Rollout:
        """Whole documents as responses to the BOS token: scoring them is what pretraining does."""
        bos = torch.tensor([[self.tokenizer.bos_token_id]], device=self.device)
        owner = torch.zeros(len(rows), dtype=torch.long)
        return self._given([""], bos, torch.ones_like(bos, dtype=torch.bool), owner, rows, [""] * len(rows))

    def _given(self, prompts, prompt_tokens, prompt_mask, owner, rows, texts) -> Rollout:
        tokens = torch.nn.utils.rnn.pad_sequence(
            [torch.tensor(row) for row in rows], batch_first=True, padding_value=self.pad_id
        )
        mask = torch.arange(tokens.shape[1]) < torch.tensor([len(row) for row in rows])[:, None]
        return Rollout(
            prompts=prompts,
            prompt_tokens=prompt_tokens,
            prompt_mask=prompt_mask,
            owner=owner.to(self.device),
            tokens=tokens.to(self.device),
            mask=mask.to(self.device),
            logp=torch.zeros(tokens.shape, device=self.device),
            finished=torch.ones(len(rows), dtype=torch.bool, device=self.device),
            texts=texts,
        )

    # ---- scoring

    def states_and_logits(
        self, rollout: Rollout, replay: bool = False, head: bool = True
    ) -> tuple[Float[Tensor, "N D"], Float[Tensor, "N V"] | None]:
        """Of every real response token, in the order of `tokens[mask]`: the last hidden state that it is
        drawn from, and logits / temperature. With `replay` a mixture of experts sends each token to the
        experts in `rollout.routing`. Without `head` there are no logits: whoever reads states alone needs none."""
        r = rollout
        if replay and self.recomputes:
            raise ValueError(
                "routing cannot be replayed together with gradient checkpointing: the backward pass would compute "
                "the layers again when the replay is over. Train with one of the two."
            )
        with self._as_set():
            if llama.fits(self.model):
                states, logits = llama.response_states(
                    self.model,
                    r.prompt_tokens,
                    r.prompt_mask,
                    r.owner,
                    r.tokens,
                    r.mask,
                    self.recomputes,
                    head,
                )
            else:
                with routing.replayed(self.model, r.experts()) if replay else nullcontext():
                    states, logits = self._whole(r, head)
        if logits is None:
            return states, None
        logits = logits.float()  # whatever the weights are
        return states, logits if r.temperature == 1 else logits / r.temperature

    def _whole(
        self, r: Rollout, head: bool = True
    ) -> tuple[Float[Tensor, "N D"], Float[Tensor, "N V"] | None]:
        """States and logits by one plain forward pass of transformers over prompts and responses together."""
        mask = torch.cat([r.prompt_mask[r.owner], r.mask], 1)
        states = []
        # FSDP brings weights back for the gradient of what a model *returns*, so there the states have to be that.
        returned = divided(self.model)

        def scored_only(_, inputs):
            states.append(inputs[0][:, :-1][r.mask])
            # A vocabulary is large: a logit that nobody scores is not computed. Except of a pocket, where it costs
            # little, and where the order of this sum's gradient is in every number of the book.
            return None if self.pocket or returned else (states[0][: None if head else 0],)

        hook = self.model.get_output_embeddings().register_forward_pre_hook(scored_only)
        try:
            out = self.model(
                torch.cat([r.prompt_tokens[r.owner], r.tokens], 1),
                attention_mask=mask.long(),
                # learned positions come to an end; beyond it is only padding, and a token that is not read
                position_ids=(mask.cumsum(1) - 1).clamp(0, self.model.config.max_position_embeddings - 1),
                logits_to_keep=r.tokens.shape[1] + 1,
                output_hidden_states=returned,
                use_cache=False,
            )
        finally:
            hook.remove()
        if returned:
            states = [out.hidden_states[-1][:, r.prompt_tokens.shape[1] - 1 : -1][r.mask]]
        if not head:
            return states[0], None
        return states[0], out.logits[:, :-1][r.mask] if self.pocket or returned else out.logits

    def logits(self, rollout: Rollout) -> Float[Tensor, "N V"]:
        """Logits / temperature of every real response token, in the order of `tokens[mask]`."""
        return self.states_and_logits(rollout)[1]

    def score(self, rollout: Rollout, replay: bool = False) -> Float[Tensor, "B T"]:
        """log pi of every response token at the rollout's temperature; 0 off the mask. Carries gradient."""
        _, logits = self.states_and_logits(rollout, replay)
        return rollout.spread(token_logprobs(logits, rollout.tokens[rollout.mask]))

    @torch.no_grad()
    def route(self, rollout: Rollout) -> None:
        """Note in the rollout which experts this policy, as it is now, sends each token to."""
        with self._as_set(), routing.recorded(self.model) as chosen:
            self._whole(rollout)
        experts = chosen().unflatten(0, (len(rollout), -1))
        prompts = torch.arange(len(rollout.prompts), device=self.device)
        first = (rollout.owner[None] == prompts[:, None]).int().argmax(1)
        width = rollout.prompt_tokens.shape[1]
        rollout.prompt_routing, rollout.routing = experts[first, :width], experts[:, width:]

    # ---- sampling

    @torch.no_grad()
    def sample(
        self,
        prompts: Sequence[str],
        group_size: int = 1,
        max_tokens: int = 64,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        greedy: bool = False,
        seed: int = 0,
    ) -> Rollout:
        """`group_size` responses to each prompt. The same seed gives the same responses."""
        if not 0 < temperature < math.inf:
            raise ValueError(
                f"temperature must be positive and finite, got {temperature}; for argmax decoding: greedy=True"
            )
        for name, number in (("group_size", group_size), ("max_tokens", max_tokens)):
            if number < 1:
                raise ValueError(f"{name} must be 1 or more, got {number}")
        if top_k is not None and top_k < 1:
            raise ValueError(f"top_k keeps the k likeliest tokens, so at least 1; got {top_k}")
        if top_p is not None and not 0 < top_p <= 1:
            raise ValueError(f"top_p keeps a share of the probability, above 0 and at most 1; got {top_p}")
        prompt_tokens, prompt_mask = self.left_padded(prompts)
        self._check_room(prompts, prompt_mask, max_tokens)
        owner = torch.arange(len(prompts), device=self.device).repeat_interleave(group_size)
        generator = torch.Generator(self.device).manual_seed(seed)

        B = len(owner)
        tokens = torch.full((B, max_tokens), self.pad_id, device=self.device)
        mask = torch.zeros(B, max_tokens, dtype=torch.bool, device=self.device)
        logp = torch.zeros(B, max_tokens, device=self.device)
        entropy = torch.zeros(B, max_tokens, device=self.device)
        finished = torch.zeros(B, dtype=torch.bool, device=self.device)

        make_cache = self._cache()
        # Moving the cache costs too: not for every single row. And a GPU waits when one looks who has finished.
        look_every, few = (16, 0.5) if make_cache is StaticCache else (1, 0.8)
        rows = torch.arange(B, device=self.device)  # who is still being computed
        with self._as_set():
            cache = make_cache(self.model, prompt_tokens, prompt_mask, owner, max_tokens)
            logits = cache.logits
            for t in range(max_tokens):
                logits = truncated(logits.float() / temperature, top_k, top_p)
                token = logits.argmax(-1) if greedy else draw(logits.softmax(-1), generator)
                going = ~finished[rows]
                tokens[rows, t] = torch.where(going, token, self.pad_id)
                mask[rows, t] = going
                logp[rows, t] = token_logprobs(logits, token)
                entropy[rows, t] = entropy_of(logits)
                finished[rows] |= (token[:, None] == self.eos).any(1)
                if t + 1 == max_tokens:
                    break
                if (t + 1) % look_every == 0:
                    alive = (~finished[rows]).nonzero().squeeze(1)
                    if len(alive) == 0:
                        break
                    if len(alive) <= few * len(rows):
                        rows, token = rows[alive], token[alive]
                        cache.keep(alive)
                logits = cache.step(token)

        if (logp.isnan() & mask).any():
            raise ValueError(self._why_nan())
        lengths = mask.sum(1).tolist()
        T = max(lengths)
        tokens, mask = tokens[:, :T], mask[:, :T]
        return Rollout(
            prompts=list(prompts),
            prompt_tokens=prompt_tokens,
            prompt_mask=prompt_mask,
            owner=owner,
            tokens=tokens,
            mask=mask,
            logp=logp[:, :T].masked_fill(~mask, 0.0),
            entropy=entropy[:, :T].masked_fill(~mask, 0.0),
            finished=finished,
            texts=[self.decode(row[:n]) for row, n in zip(tokens.tolist(), lengths, strict=True)],
            temperature=temperature,
            max_tokens=max_tokens,
        )

    def _cache(self) -> type:
        if self.device.type == "cuda" and can_be_recorded(self.model):
            return StaticCache
        return llama.Cache if llama.fits(self.model) else TransformersCache

    def _why_nan(self) -> str:
        """What is wrong with a model whose probabilities are no numbers. It reads all weights: for when it is sure."""
        for name, weight in self.model.named_parameters():
            # of a divided model, this process's part
            weight = weight.to_local() if hasattr(weight, "to_local") else weight
            if not weight.isfinite().all():
                number = weight[~weight.isfinite()][0].item()
                return (
                    f"{self.name} gives no probabilities: its weight {name} holds {number}. Training has diverged, or "
                    "the file is damaged: go back to an earlier checkpoint, or load it again"
                )
        return (
            f"{self.name} gives no probabilities, though all its weights are finite: what it computes passes the range "
            f"of {str(self.autocast or self.model.dtype)[6:]}. Load it with dtype='float32', or 'bfloat16' on a GPU"
        )

    def _check_room(self, prompts: Sequence[str], prompt_mask: Tensor, max_tokens: int) -> None:
        lengths = prompt_mask.sum(1)
        worst = int(lengths.argmax())
        if lengths[worst] + max_tokens > self.context:
            raise ValueError(
                f"prompt {worst} has {int(lengths[worst])} tokens; with max_tokens={max_tokens} that passes the "
                f"context of {self.name}, {self.context}. Shorten the prompt or max_tokens. "
                f"The prompt begins: {prompts[worst][:60]!r}"
            )


@contextmanager
def no_bars():
    """Inside, transformers draws no progress bars, which a run's own line would be lost among."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def draw(p: Float[Tensor, "B V"], generator: torch.Generator) -> Int[Tensor, " B"]:
    """One token a row: where a uniform number falls in the cumulated probabilities.

    What `torch.multinomial` does, with one random number a row instead of one a token: ten times
    faster at the size of the pocket. In double, so that a large vocabulary rounds nothing away.
    """
    cumulated = p.double().cumsum(-1)
    u = torch.rand(len(p), 1, dtype=torch.double, device=p.device, generator=generator) * cumulated[:, -1:]
    return torch.searchsorted(cumulated, u, right=True).squeeze(1).clamp(max=p.shape[1] - 1)


def truncated(logits: Float[Tensor, "B V"], top_k: int | None, top_p: float | None) -> Float[Tensor, "B V"]:
    """Logits with all but the likeliest tokens at -inf: the k likeliest, or the fewest that hold mass p."""
    if top_k is not None:
        kth = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]
        logits = logits.masked_fill(logits < kth, -torch.inf)
    if top_p is not None:
        ordered, order = logits.sort(descending=True)
        p = ordered.softmax(-1)
        beyond = p.cumsum(-1) - p >= top_p  # the mass before this token is enough already
        logits = logits.masked_fill(beyond.scatter(-1, order, beyond), -torch.inf)
    return logits
