"""Models that are damaged, half there, or asked nonsense: one sentence that says what is wrong and what to do."""

import importlib.util
import json
import math
import shutil
from random import Random

import hub
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from tiny import build, characters
from tokenizers.processors import TemplateProcessing
from torch import tensor

from rlcourse import cli
from rlcourse.lm import Policy, Scorer, llama, load_policy, loading
from rlcourse.lm.caches import TransformersCache, can_be_recorded
from rlcourse.tasks import Sums, ask

SMOL = "HuggingFaceTB/SmolLM2-135M-Instruct"
BAD = (math.nan, math.inf, -math.inf)


@pytest.fixture(autouse=True)
def no_model_named(monkeypatch):
    monkeypatch.delenv("RLCOURSE_MODEL", raising=False)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return hub.download(tmp_path_factory.mktemp("hub"), SMOL)


@pytest.fixture
def folder(good, tmp_path):
    """A model's folder of one's own, to be damaged."""
    return shutil.copytree(good, tmp_path / "model")


def refused(action, *words):
    """The one sentence with which it ends, of our own making."""
    with pytest.raises(ValueError) as error:
        action()
    text = str(error.value)
    assert "\n" not in text and (error.value.__suppress_context__ or error.value.__context__ is None)
    assert not [word for word in words if word not in text], text
    return text


# ---- what ships


@pytest.fixture
def pocket_elsewhere(tmp_path, monkeypatch):
    """A pocket's files in a folder of the reader's, in the current directory, under a pocket's name and another."""
    monkeypatch.chdir(tmp_path)
    for name in ("pocket", "mine"):
        shutil.copytree(loading.POCKETS / "pocket", tmp_path / name)
    return tmp_path


@pytest.mark.parametrize(
    "name", ["{here}/mine", "mine", "./pocket", "pocket/", "../{dir}/mine", "{shipped}/pocket"]
)
def test_only_a_pockets_very_name_is_a_pocket_that_ships(name, pocket_elsewhere, monkeypatch):
    name = name.format(here=pocket_elsewhere, dir=pocket_elsewhere.name, shipped=loading.POCKETS)
    monkeypatch.setattr(loading, "LOADED", set())
    checked = []
    monkeypatch.setattr(loading, "_check_memory", lambda *of: checked.append(of[0]))
    assert load_policy(name).name == name
    assert checked == [name] and loading.LOADED == set()


def test_a_name_is_a_pocket_even_beside_a_folder_of_that_name(pocket_elsewhere, monkeypatch):
    monkeypatch.setattr(loading, "LOADED", set())
    (pocket_elsewhere / "pocket" / "config.json").write_text("{")
    assert load_policy("pocket").name == "pocket" and loading.LOADED == {"pocket"}


def test_what_the_reader_pretrained_goes_by_its_very_name_too(tmp_path, monkeypatch):
    made, away = tmp_path / "models", tmp_path / "away"
    for place in (made / "lab", away / "lab"):
        shutil.copytree(loading.POCKETS / "pocket", place)
    (away / "lab" / "config.json").write_text("{")
    monkeypatch.setattr(loading, "MADE", made)
    monkeypatch.chdir(away)
    assert load_policy("lab").name == "lab"
    for other in ("./lab", "lab/"):
        refused(lambda other=other: load_policy(other), "The folder", "config.json")


def test_an_empty_name_in_the_environment_is_none(monkeypatch, capsys):
    monkeypatch.setenv("RLCOURSE_MODEL", "")
    assert load_policy().name == "pocket"
    cli.main(["doctor"])
    assert "RLCOURSE_MODEL" not in capsys.readouterr().out


def test_doctor_knows_the_pockets_and_the_lab_by_name(monkeypatch, tmp_path, capsys):
    from rlcourse.cli import doctor

    (tmp_path / "lm").mkdir()
    (tmp_path / "lm" / "pockets").symlink_to(loading.POCKETS, target_is_directory=True)
    monkeypatch.setattr(doctor, "PACKAGE", tmp_path / "package")
    shutil.copytree(tmp_path / "lm", tmp_path / "package" / "lm", symlinks=True)
    (tmp_path / "models" / "lab").mkdir(parents=True)
    (tmp_path / "models" / "lab" / "config.json").write_text("{}")
    machine = {"gpus": [], "disk_free": 10**12, "cuda_build": None}
    for name, wrong in {"pocket": 0, "lab": 0, "": 0, "../pockets": 1, "no/model": 1}.items():
        monkeypatch.setenv("RLCOURSE_MODEL", name)
        monkeypatch.setattr(doctor.shutil, "which", lambda _: None)
        assert len(doctor.what_is_wrong(machine, [], {"found": []})) == wrong, name


# ---- damaged folders


def config(**values):
    def damage(folder):
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    return damage


def content(name, text):
    return lambda folder: (folder / name).write_text(text)


def gone(*names):
    return lambda folder: [(folder / name).unlink() for name in names]


def cut(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


DAMAGE = {
    "a wider model": (config(hidden_size=48), ["is of shape", "by config.json", "belongs to another model"]),
    "a larger vocabulary": (config(vocab_size=1100), ["embed_tokens.weight is of shape (1024, 36)", "(1100, 36)"]),
    "more layers": (config(num_hidden_layers=3), ["its files lack weights"]),
    "no heads": (config(num_attention_heads=0), ["config.json cannot be read (ZeroDivisionError", "again."]),
    "heads that do not fit": (config(num_attention_heads=5), ["config.json cannot be read", "multiple of the number"]),
    "a size in words": (config(hidden_size="big"), ["config.json cannot be read", "'hidden_size' expected int"]),
    "an activation nobody knows": (config(hidden_act="zzz"), ["config.json cannot be read (KeyError: 'zzz')"]),
    "a rope nobody knows": (config(rope_parameters={"rope_type": "zzz", "rope_theta": 1e4}), ["KeyError: 'zzz'"]),
    "config.json broken": (content("config.json", "{"), ["config.json' is not a valid JSON file"]),
    "config.json null": (content("config.json", "null"), ["config.json cannot be read (TypeError"]),
    "config.json a list": (content("config.json", "[]"), ["config.json"]),
    "an EOS in words": (content("generation_config.json", '{"eos_token_id": "x"}'), ["EOS", "'x'"]),
    "generation_config.json a list": (content("generation_config.json", "[]"), ["cannot be read (TypeError"]),
    "tokenizer.json broken": (content("tokenizer.json", "{"), ["Expecting property name"]),
    "tokenizer.json empty": (content("tokenizer.json", "{}"), ["its tokenizer cannot be read (KeyError"]),
    "tokenizer.json a list": (content("tokenizer.json", "[]"), ["its tokenizer cannot be read (TypeError"]),
    "tokenizer_config.json a list": (content("tokenizer_config.json", "[]"), ["its tokenizer cannot be read"]),
    "no tokenizer": (gone("tokenizer.json", "tokenizer_config.json"), ["tokenizer"]),
    "truncated weights": (cut, ["incomplete metadata"]),
    "a shard that is not there": (
        lambda folder: (
            gone("model.safetensors")(folder),
            content("model.safetensors.index.json", '{"metadata": {}, "weight_map": {"a": "gone.st"}}')(folder),
        ),
        ["gone.st"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_folder_is_one_sentence_with_its_name(what, folder, capsys):
    damage, words = DAMAGE[what]
    damage(folder)
    refused(lambda: load_policy(folder), str(folder), *words)


def test_weights_that_the_model_has_no_place_for_are_said(folder):
    config(num_hidden_layers=1)(folder)
    with pytest.warns(
        UserWarning, match="no place for 9 of the weights in its files, model.layers.1.input_layernorm"
    ):
        load_policy(folder)


@pytest.mark.parametrize("what", ["a wider model", "tokenizer.json empty", "config.json null"])
def test_the_command_line_says_it_too(what, folder, capsys):
    DAMAGE[what][0](folder)
    for command in ("sample", "eval"):
        assert cli.main([command, str(folder)]) == 1
        said = capsys.readouterr()
        assert said.out == "" and said.err.startswith(f"rlcourse: The folder {folder} does not hold")


def test_a_damaged_download_is_called_one(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    (hub.download(tmp_path, SMOL) / "config.json").write_text("null")
    refused(
        lambda: load_policy(SMOL), f"What was downloaded as {SMOL} does not hold", "cannot be read (TypeError"
    )


QUANTISED = {
    "bitsandbytes": ("bitsandbytes", {"load_in_4bit": True}),
    "gptq": ("optimum", {"bits": 4, "group_size": 128}),
    "awq": ("gptqmodel", {"bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}),
    "quanto": ("optimum-quanto", {"weights": "int8"}),
    "compressed-tensors": ("compressed-tensors", {}),
}


@pytest.mark.parametrize("method", QUANTISED)
def test_a_quantised_model_without_its_package_names_the_package(method, folder):
    package, values = QUANTISED[method]
    if importlib.util.find_spec(package.split("-quanto")[0].replace("-", "_")):
        pytest.skip(f"{package} is installed")
    config(quantization_config={"quant_method": method, **values})(folder)
    refused(lambda: load_policy(folder), str(folder), "without a package that is not installed", package)


def test_memory_that_runs_out_on_a_cpu_is_no_damage(folder, monkeypatch):
    def full(self, *_):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(torch.nn.Module, "to", full)
    refused(lambda: load_policy(folder), "Out of memory while")


def test_a_head_of_another_model_or_half_a_head_is_said(tmp_path):
    scorer = Scorer(Policy(build("llama"), characters()))
    scorer.save(tmp_path)
    head = tmp_path / "score_head.safetensors"
    whole = head.read_bytes()
    for broken in (whole[:-8], b"x" * 50, b""):
        head.write_bytes(broken)
        refused(
            lambda: Scorer.load(tmp_path), f"{head} is no head for the model in {tmp_path}", "Scorer.save"
        )
    save_file({"weight": torch.zeros(1, 8)}, head)
    refused(lambda: Scorer.load(tmp_path), "is no head for the model", "size mismatch")
    save_file({"w": torch.zeros(1, 32)}, head)
    refused(lambda: Scorer.load(tmp_path), "is no head for the model")
    head.write_bytes(whole)
    (tmp_path / "config.json").write_text("null")
    refused(lambda: Scorer.load(tmp_path), f"The folder {tmp_path} does not hold")


def test_a_run_whose_configuration_is_broken_can_be_asked_with_a_task(folder, tmp_path, capsys):
    shutil.copytree(loading.POCKETS / "pocket", tmp_path / "run" / "step-000001")
    for broken in ("{", "[]", '{"task": 5}'):
        (tmp_path / "run" / "config.json").write_text(broken)
        assert cli.main(["sample", str(tmp_path / "run")]) == 1
        said = capsys.readouterr().err
        assert (
            f"{tmp_path / 'run' / 'config.json'}" in said and "with --task" in said and said.count("\n") == 1
        )
        assert cli.main(["sample", str(tmp_path / "run"), "--task", "Sums", "-n", "1"]) == 0
        capsys.readouterr()


# ---- templates and tokenizers


@pytest.mark.parametrize(
    "template, why",
    [
        ("{{ raise_exception('roles must alternate') }}", "TemplateError: roles must alternate"),
        ("{% for m in %}", "TemplateSyntaxError"),
        ("{{ messages[5].content }}", "UndefinedError"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
    ],
)
def test_a_chat_template_that_fails_is_named(template, why, folder, capsys):
    (folder / "chat_template.jinja").write_text(template)
    policy = load_policy(folder)
    says = [f"the chat template of {folder} fails on a single question ({why}", "chat_template = None"]
    refused(lambda: policy.sample(["Sorry"]), *says)
    assert cli.main(["sample", str(folder)]) == 1 and "the chat template of" in capsys.readouterr().err
    policy.tokenizer.chat_template = None  # what the sentence says helps
    assert policy.sample(["Sorry"], max_tokens=2).texts


@pytest.mark.parametrize("template", ["{# nothing #}", ""])
def test_a_chat_template_that_writes_nothing_is_named(template, folder):
    policy = load_policy(folder)
    policy.tokenizer.chat_template = template
    says = ["prompt 0, 'Sorry', has no tokens", f"the chat template of {folder} writes nothing"]
    refused(lambda: policy.sample(["Sorry"]), *says)
    refused(lambda: policy.answered(["Sorry"], ["x"]), *says)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_an_empty_prompt_is_named(kind):
    policy = Policy(build(kind), characters())
    refused(lambda: policy.sample(["1+2=", ""]), "prompt 1, '', has no tokens: an empty text")


def opening(**special):
    """A tokenizer that puts a BOS in front of whatever it reads, as Llama's do."""
    tokenizer = characters(**special)
    tokenizer._tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    assert tokenizer("1")["input_ids"][0] == 1
    return tokenizer


def test_a_text_begins_with_one_bos_whoever_writes_it():
    policy = Policy(build("llama"), opening())
    assert policy.encode("1+2=").count(1) == 1 and policy.encode("1+2=")[0] == 1
    policy.tokenizer.chat_template = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    assert policy.encode("1+2=").count(1) == 1 and policy.encode("1+2=")[0] == 1
    assert policy.encode_response("3") == [
        *characters()("3")["input_ids"],
        2,
    ]  # and an answer goes on, with none
    rollout = policy.answered(["1+2="], ["3"])
    assert (rollout.prompt_tokens == 1).sum() == 1 and (rollout.tokens == 1).sum() == 0


# ---- rotary embeddings that are scaled

SCALED = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 24},
    "longrope": {
        "rope_type": "longrope",
        "factor": 4.0,
        "short_factor": [1.0] * 4,
        "long_factor": [4.0, 3.0, 2.0, 1.5],
        "original_max_position_embeddings": 24,
    },
    "llama3": hub.LLAMA3_ROPE | {"original_max_position_embeddings": 24},
}


@pytest.fixture
def scaled(tmp_path):
    """A Llama whose config.json asks for scaled positions, in the words of today or of older files."""

    def make(kind, old=False):
        folder = tmp_path / f"{kind}-{old}"
        build("llama").save_pretrained(folder)
        characters().save_pretrained(folder)
        rope, values = dict(SCALED[kind]), json.loads((folder / "config.json").read_text())
        values.pop("rope_parameters")
        if old:
            rope = {"type" if name == "rope_type" else name: value for name, value in rope.items()}
            values |= {"rope_theta": 10000.0, "rope_scaling": rope}
        else:
            values["rope_parameters"] = rope | {"rope_theta": 10000.0}
        (folder / "config.json").write_text(json.dumps(values))
        return load_policy(folder)

    return make


@pytest.mark.parametrize("kind", SCALED)
@pytest.mark.parametrize("old", [False, True])
def test_scaled_positions_do_not_take_the_lean_path(kind, old, scaled):
    policy = scaled(kind, old)
    assert policy.model.config.rope_parameters["rope_type"] == kind
    assert not llama.fits(policy.model) and policy._cache() is TransformersCache
    assert can_be_recorded(policy.model) == (kind not in ("dynamic", "longrope"))


@pytest.mark.parametrize("kind", SCALED)
def test_scaled_positions_give_sampling_and_scoring_the_same_log_probs(kind, scaled):
    policy = scaled(kind)
    policy.eos, policy.ends = tensor([-1]), {-1}  # so that all answers are as long as may be
    prompts = ["1+2=", "10+20+30="]
    rollout = policy.sample(prompts, 2, max_tokens=policy.context - 9, seed=1)
    with torch.no_grad():
        torch.testing.assert_close(policy.score(rollout), rollout.logp, atol=1e-5, rtol=1e-5)


def test_a_longrope_is_sampled_only_as_far_as_its_positions_keep_their_angles(scaled):
    policy = scaled("longrope")
    assert policy.context == 24 and scaled("yarn").context == 96
    refused(lambda: policy.sample(["1+2="], max_tokens=21), "passes the context", "24")
    long = policy.answered(["1+2="], ["1" * 40])  # a text that somebody wrote is scored as the model reads it
    with torch.no_grad():
        tokens = torch.cat([long.prompt_tokens, long.tokens], 1)
        theirs = (
            policy.model(tokens).logits[0, 3:-1].log_softmax(-1).gather(-1, long.tokens[0, :, None])[:, 0]
        )
        torch.testing.assert_close(policy.score(long)[0], theirs, atol=1e-5, rtol=1e-5)


def test_quantised_weights_do_not_take_the_lean_path():
    model = build("llama")
    assert llama.fits(model)
    model.config.quantization_config = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    assert not llama.fits(model)


# ---- nonsense


@pytest.fixture(scope="module")
def policy():
    return Policy(build("llama"), characters(), "tiny")


def test_a_text_is_no_list_of_its_letters(policy):
    refused(
        lambda: policy.sample("1 + 1 ="), "prompts is a list of texts, and got one text: pass ['1 + 1 =']"
    )
    refused(lambda: policy.answered("1+1=", ["2"]), "pass ['1+1=']")
    refused(lambda: policy.answered(["1+1="], "2"), "responses is a list of texts", "pass ['2']")
    refused(lambda: Scorer(policy.copy()).scores("1+1=", "2"), "pass [")
    assert policy.sample(("1+1=",), max_tokens=1).prompts == ["1+1="]  # several in a tuple are several


def test_nothing_to_answer_and_answers_without_a_prompt_are_said(policy):
    refused(lambda: policy.sample([]), "prompts is an empty list")
    refused(lambda: policy.answered([], []), "prompts is an empty list")
    refused(lambda: policy.answered(["1", "2"], ["3"]), "there are 1 of 2")
    refused(lambda: ask(policy, Sums(), []), "prompts is an empty list")


@pytest.mark.parametrize("temperature", [0.0, -1.0, *BAD])
def test_a_temperature_that_is_none_is_said(policy, temperature):
    refused(
        lambda: policy.sample(["1+1="], temperature=temperature), "temperature must be positive and finite"
    )


@pytest.mark.parametrize("number", [0, -3])
def test_no_answers_and_no_tokens_are_said(policy, number):
    refused(lambda: policy.sample(["1+1="], group_size=number), f"group_size must be 1 or more, got {number}")
    refused(lambda: policy.sample(["1+1="], max_tokens=number), f"max_tokens must be 1 or more, got {number}")
    problem = Sums().draw(Random(0))
    refused(lambda: ask(policy, Sums(), [problem], max_tokens=number), "max_tokens must be 1 or more")


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen2"])
@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("greedy", [False, True])
def test_weights_that_are_no_numbers_are_named(kind, value, greedy):
    policy = Policy(build(kind), characters(), "ill")
    name, weight = [each for each in policy.model.named_parameters() if "mlp" in each[0]][1]
    with torch.no_grad():
        weight.flatten()[3] = value
    text = refused(
        lambda: policy.sample(["1+1="], 2, max_tokens=4, greedy=greedy), "ill gives no probabilities"
    )
    assert f"its weight {name} holds {value}" in text and "earlier checkpoint" in text


def test_finite_weights_that_overflow_are_told_a_wider_precision(monkeypatch):
    policy = Policy(build("llama"), characters(), "wide")
    monkeypatch.setattr(llama.Weights, "mlp", lambda self, x, *rest: x * math.inf)
    refused(lambda: policy.sample(["1+1="], max_tokens=2), "though all its weights are finite", "of float32")


def test_nonsense_is_said_on_the_command_line(folder, capsys):
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][0] = math.nan
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    for command in ("sample", "eval"):
        assert cli.main([command, str(folder), "--max-tokens", "4"]) == 1
        said = capsys.readouterr()
        assert said.out == "" and "its weight model.norm.weight holds nan" in said.err
