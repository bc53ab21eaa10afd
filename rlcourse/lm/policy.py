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
import os
from contextlib import nullcontext
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from torch import Tensor

from rlcourse.lm import llama, routing
from rlcourse.lm.rollout import Rollout
from rlcourse.tensors import entropy as entropy_of
from rlcourse.tensors import token_logprobs

POCKETS = Path(__file__).parent / "pockets"
LOADED: set[str] = set()  # the pockets that this process has loaded: a built notebook is stamped with them


def pockets() -> list[str]:
    return sorted(file.parent.name for file in POCKETS.glob("*/model.safetensors"))


class Policy:
    """A causal language model of transformers with its tokenizer."""

    def __init__(self, model, tokenizer, name: str = "policy"):
        self.model, self.tokenizer, self.name = model.eval(), tokenizer, name
        self.trained: list[str] = []  # what `train` and `fit` have done to it so far
        eos = model.generation_config.eos_token_id if model.can_generate() else model.config.eos_token_id
        ids = {tokenizer.eos_token_id, *(eos if isinstance(eos, list) else [eos])} - {None}
        if not ids:
            raise ValueError(
                f"{name}: neither the model nor its tokenizer names an EOS token: no answer could end"
            )
        self.eos = torch.tensor(sorted(ids), device=model.device)
        self.eos_id = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else min(ids)
        self.pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.eos_id

    def __repr__(self) -> str:
        size = sum(p.numel() for p in self.model.parameters()) / 1e6
        done = f", trained by {', '.join(self.trained)}" if self.trained else ""
        return f"Policy({self.name!r}, {size:.2f} M parameters, {self.device}{done})"

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def context(self) -> int:
        return self.model.config.max_position_embeddings

    def parameters(self):
        return self.model.parameters()

    def copy(self) -> Policy:
        """An independent copy: what trains one leaves the other as it is."""
        twin = copy.copy(self)
        twin.model, twin.trained = copy.deepcopy(self.model), list(self.trained)
        return twin

    def save(self, folder: str | Path) -> None:
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    # ---- text to tokens and back

    def encode(self, prompt: str) -> list[int]:
        """The prompt as the model wants to be asked: through its chat template, if it has one."""
        if self.tokenizer.chat_template is None:
            return self.tokenizer(prompt)["input_ids"]
        message = [{"role": "user", "content": prompt}]
        return self.tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=False)

    def encode_response(self, text: str) -> list[int]:
        return [*self.tokenizer(text, add_special_tokens=False)["input_ids"], self.eos_id]

    def decode(self, tokens: list[int]) -> str:
        """What was said, without the EOS at its end. Any other special token is shown: it was said too."""
        tokens = tokens[:-1] if tokens and tokens[-1] in self.eos.tolist() else tokens
        return self.tokenizer.decode(tokens, clean_up_tokenization_spaces=False)

    def left_padded(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """Prompt tokens [P S] and their mask."""
        encoded = [self.encode(prompt) for prompt in prompts]
        longest = max(map(len, encoded))
        tokens = torch.full((len(prompts), longest), self.pad_id)
        mask = torch.zeros(len(prompts), longest, dtype=torch.bool)
        for row, ids in enumerate(encoded):
            tokens[row, longest - len(ids) :] = torch.tensor(ids)
            mask[row, longest - len(ids) :] = True
        return tokens.to(self.device), mask.to(self.device)

    def answered(self, prompts: list[str], responses: list[str]) -> Rollout:
        """Responses that somebody else wrote, as a rollout: what offline methods and exercises score."""
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
        self, rollout: Rollout, replay: bool = False
    ) -> tuple[Float[Tensor, "N D"], Float[Tensor, "N V"]]:
        """Of every real response token, in the order of `tokens[mask]`: the last hidden state that it is
        drawn from, and logits / temperature. With `replay` a mixture of experts sends each token to the
        experts in `rollout.routing`."""
        r = rollout
        if llama.fits(self.model):
            states, logits = llama.response_states(
                self.model, r.prompt_tokens, r.prompt_mask, r.owner, r.tokens, r.mask
            )
        else:
            experts = torch.cat([r.prompt_routing[r.owner], r.routing], 1).flatten(0, 1) if replay else None
            with routing.replayed(self.model, experts) if replay else nullcontext():
                out = self._whole(r, output_hidden_states=True, logits_to_keep=r.tokens.shape[1] + 1)
            states = out.hidden_states[-1][:, r.prompt_tokens.shape[1] - 1 : -1][r.mask]
            logits = out.logits[:, :-1][r.mask]
        return states, logits.float() / r.temperature

    def _whole(self, r: Rollout, **options):
        """One plain forward pass of transformers over prompts and responses together."""
        mask = torch.cat([r.prompt_mask[r.owner], r.mask], 1)
        return self.model(
            torch.cat([r.prompt_tokens[r.owner], r.tokens], 1),
            attention_mask=mask.long(),
            position_ids=(mask.cumsum(1) - 1).clamp(min=0),
            use_cache=False,
            **options,
        )

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
        with routing.recorded(self.model) as chosen:
            self._whole(rollout, logits_to_keep=1)
        experts = chosen().unflatten(0, (len(rollout), -1))
        first = (rollout.owner[None] == torch.arange(len(rollout.prompts))[:, None]).int().argmax(1)
        width = rollout.prompt_tokens.shape[1]
        rollout.prompt_routing, rollout.routing = experts[first, :width], experts[:, width:]

    # ---- sampling

    @torch.no_grad()
    def sample(
        self,
        prompts: list[str],
        group_size: int = 1,
        max_tokens: int = 64,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        greedy: bool = False,
        seed: int = 0,
    ) -> Rollout:
        """`group_size` responses to each prompt. The same seed gives the same responses."""
        if temperature <= 0:
            raise ValueError(
                f"temperature must be positive, got {temperature}; for argmax decoding: greedy=True"
            )
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

        make_cache = llama.Cache if llama.fits(self.model) else TransformersCache
        cache = make_cache(self.model, prompt_tokens, prompt_mask, owner, max_tokens)
        logits, rows = cache.logits, torch.arange(B, device=self.device)  # rows: who is still being computed
        for t in range(max_tokens):
            logits = truncated(logits.float() / temperature, top_k, top_p)
            token = logits.argmax(-1) if greedy else draw(logits.softmax(-1), generator)
            going = ~finished[rows]
            tokens[rows, t] = torch.where(going, token, self.pad_id)
            mask[rows, t] = going
            logp[rows, t] = token_logprobs(logits, token)
            entropy[rows, t] = entropy_of(logits)
            finished[rows] |= torch.isin(token, self.eos)
            alive = (~finished[rows]).nonzero().squeeze(1)
            if len(alive) == 0 or t + 1 == max_tokens:
                break
            if len(alive) <= 0.8 * len(rows):  # moving the cache costs too: not for every single row
                rows, token = rows[alive], token[alive]
                cache.keep(alive)
            logits = cache.step(token)

        T = t + 1
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
            texts=[self.decode(row[: int(n)]) for row, n in zip(tokens.tolist(), mask.sum(1), strict=True)],
            temperature=temperature,
            max_tokens=max_tokens,
        )

    def _check_room(self, prompts: list[str], prompt_mask: Tensor, max_tokens: int) -> None:
        lengths = prompt_mask.sum(1)
        worst = int(lengths.argmax())
        if lengths[worst] + max_tokens > self.context:
            raise ValueError(
                f"prompt {worst} has {int(lengths[worst])} tokens; with max_tokens={max_tokens} that passes the "
                f"context of {self.name}, {self.context}. Shorten the prompt or max_tokens. "
                f"The prompt begins: {prompts[worst][:60]!r}"
            )


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


class TransformersCache:
    """What `llama.Cache` is, for any causal language model, through transformers' own cache."""

    def __init__(self, model, prompt_tokens, prompt_mask, owner, max_tokens: int):
        self.model = model
        positions = (prompt_mask.cumsum(1) - 1).clamp(min=0)
        out = model(
            prompt_tokens,
            attention_mask=prompt_mask.long(),
            position_ids=positions,
            logits_to_keep=1,
            use_cache=True,
        )
        self.cache, self.logits = out.past_key_values, out.logits[owner, -1]
        self.cache.batch_select_indices(owner)
        self.mask, self.position = prompt_mask[owner], positions[owner, -1]

    def step(self, tokens: Tensor) -> Tensor:
        self.position = self.position + 1
        self.mask = torch.cat([self.mask, torch.ones_like(self.mask[:, :1])], 1)
        out = self.model(
            tokens[:, None],
            attention_mask=self.mask.long(),
            position_ids=self.position[:, None],
            past_key_values=self.cache,
            use_cache=True,
        )
        return out.logits[:, -1]

    def keep(self, rows: Tensor) -> None:
        self.cache.batch_select_indices(rows)
        self.mask, self.position = self.mask[rows], self.position[rows]


def load_policy(
    name_or_path: str | Path | None = None, device: str | None = None, dtype: torch.dtype | str | None = None
) -> Policy:
    """A policy by name: a pocket model that ships with the package, a local folder, or a hub name.

    Without a name: $RLCOURSE_MODEL, or "pocket". On a GPU, models other than the pockets come in bfloat16.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    name = str(name_or_path or os.environ.get("RLCOURSE_MODEL") or "pocket")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    shipped = (POCKETS / name / "model.safetensors").exists()
    folder = str(POCKETS / name) if shipped else name
    if dtype is None:
        dtype = torch.float32 if shipped or device == "cpu" else torch.bfloat16
    elif isinstance(dtype, str):
        dtype = getattr(torch, dtype)

    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, trust_remote_code=False, use_safetensors=True
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(_why_not(name, error)) from None
    finally:
        if bars:
            logging.enable_progress_bar()
    if shipped:
        LOADED.add(name)
    return Policy(model.to(device), tokenizer, name)


def _why_not(name: str, error: Exception) -> str:
    """One clear sentence for what stands in the way of a model, and what to do."""
    known = f"The models that need no download are {', '.join(pockets())}."
    if Path(name).is_dir():
        return (
            f"The folder {name} does not hold a causal language model with its tokenizer "
            f"(config.json, tokenizer.json, model.safetensors): {str(error).splitlines()[0]} {known}"
        )
    return (
        f"No model {name!r}: it is not a local folder, and the hub cannot give it (no network, not downloaded before, "
        f"gated, or misspelt). With a network: `hf download {name}` once, then it works offline. {known}"
    )
