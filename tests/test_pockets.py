"""The models that the package ships: what they are, and that they can do what their cards say."""

import json

import pytest
import torch

from rlcourse.bookmaking import pretrain
from rlcourse.bookmaking.card import probe
from rlcourse.lm import load_policy, pockets
from rlcourse.lm.loading import POCKETS
from rlcourse.tasks.sums import Sums

SHIPPED = ["pocket", "pocket-direct", "pocket-moe"]


def card(name):
    return json.loads((POCKETS / name / "scores.json").read_text())


def test_the_shipped_models_are_these():
    assert pockets() == SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
def test_a_pocket_is_small_and_safe(name):
    folder = POCKETS / name
    assert sum(file.stat().st_size for file in folder.iterdir()) < 6_000_000
    assert {file.suffix for file in folder.iterdir()} <= {".json", ".safetensors", ".md", ".jinja"}
    policy = load_policy(name)
    assert 0.5e6 < sum(p.numel() for p in policy.parameters()) < 1.5e6
    assert {p.dtype for p in policy.parameters()} == {torch.float32}
    assert not policy.model.training


@pytest.mark.parametrize("name", SHIPPED)
def test_the_tokenizer_serves_both_worlds(name):
    tokenizer = load_policy(name).tokenizer
    special = [tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id]
    assert len({*special, *tokenizer.convert_tokens_to_ids(["<|user|>", "<|assistant|>"])}) == 5
    assert len(tokenizer("17+25=42 42+48=90#90")["input_ids"]) == 20  # one token a character
    assert tokenizer.tokenize("I am sorry about this.") == ["I", "Ġam", "Ġsorry", "Ġabout", "Ġthis", "."]
    for text in ["Order 4821 is late!", "naïve café, 東京 🙂\n\t", " 12 # 3"]:
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_all_pockets_share_one_tokenizer():
    assert len({(POCKETS / name / "tokenizer.json").read_text() for name in SHIPPED}) == 1


@pytest.mark.parametrize("name", SHIPPED)
def test_a_pocket_does_what_its_card_says(name):
    said, measured = card(name)["scores"]["sums"]["3 x 2"], probe(load_policy(name), Sums())
    for fact in ("accuracy", "worked", "right_if_worked", "right_if_direct"):
        # the same problems and the same seed: only another machine's rounding may turn a few answers
        assert measured[fact] == pytest.approx(said[fact], abs=0.05, nan_ok=True), fact


def test_the_base_model_can_work_and_seldom_does():
    said = card("pocket")["scores"]["sums"]["3 x 2"]
    assert 0.1 < said["worked"] < 0.4
    assert said["right_if_worked"] > 0.8 > 0.3 > said["right_if_direct"]


def test_the_dial_reaches_what_64_tries_do_not_solve():
    dial = card("pocket")["scores"]["sums"]
    assert dial["3 x 2"]["pass@64"] > 0.95 and min(s["pass@64"] for s in dial.values()) < 0.25


def test_the_control_never_works():
    assert all(s["worked"] == 0 for s in card("pocket-direct")["scores"]["sums"].values())


def test_the_same_seed_builds_the_same_bytes(tmp_path, monkeypatch):
    threads = torch.get_num_threads()
    monkeypatch.setattr(pretrain, "describe", lambda policy, folder, *facts: policy.save(folder))
    for name in ("pocket", "pocket-moe"):
        once, again = (
            pretrain.pretrain(name, tmp_path / name / which, steps=3)
            and tmp_path / name / which / "model.safetensors"
            for which in ("once", "again")
        )
        assert once.read_bytes() == again.read_bytes()
    torch.set_num_threads(threads)
