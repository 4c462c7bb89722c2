# SPDX-FileCopyrightText: 2026 The authors of "Reference implementations of LENS, SAM-R1, GenSeg-R1 and Dr. Seg"
# SPDX-License-Identifier: MIT
"""Nothing gets in: options, files, texts and checkpoints from strangers. docs/safety.md says what was tried."""

import ast
import dataclasses
import io
import json
import math
import os
import pickle
import shutil
import sys
import typing
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import tqdm
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

import benchmarks.check
import data
import evaluate
import model as models
import recipes
import rewards
import train
from benchmarks import layouts, metrics, pictures, published, records
from engine import checkpoint, journal
from engine.files import write_atomically
from engine.oracle import oracle_answer
from engine.run import Run, start

# -------------------------------------------------------------------------------------------------- what may be asked


NUMBERS = {
    "train.py": ([f.name for f in dataclasses.fields(recipes.Recipe)], recipes.RANGES),
    "evaluate.py": ([f.name for f in dataclasses.fields(evaluate.Options)], recipes.EVALUATION_RANGES),
    "data.py": (["limit"], recipes.RANGES),
}
HINTS = typing.get_type_hints(recipes.Recipe) | typing.get_type_hints(evaluate.Options)


def test_every_number_among_the_options_has_a_range():
    for names, ranges in NUMBERS.values():
        for name in names:
            kind = HINTS[name]
            numeric = {int, float} & {kind, *typing.get_args(kind)}
            assert (name in ranges) == bool(numeric), name


@pytest.mark.parametrize("name", recipes.RANGES)
def test_both_ends_of_every_range(name):
    """What is at a closed end passes; what is at an open one, beyond either, or no number, does not, and the message
    names the option. (--clip_low 1 passed, and was a traceback in the first update.)"""
    low, high = recipes.RANGES[name][1:-1].split(", ")
    for end, sign, closed in (
        (float(low), -1, recipes.RANGES[name][0] == "["),
        (float(high), 1, recipes.RANGES[name][-1] == "]"),
    ):
        if closed:
            recipes.check_ranges({name: end})
        else:
            with pytest.raises(data.BadData, match=f"--{name} "):
                recipes.check_ranges({name: end})
        for value in {end + sign * max(abs(end) * 1e-6, 1e-6), math.nan, sign * math.inf}:
            for given in (value, (value, float(high)), {"x": value}):
                with pytest.raises(data.BadData, match=f"--{name} "):
                    recipes.check_ranges({name: given})


SENSELESS = """--num_generations 1; --learning_rate 0; --queue_size 3
    --seg_weight 0 --train context --segmenter_use loss --num_queries 4
    --tiers 0.7 0.5 0.6; --limit 3; --warmup_steps 5 --max_steps 5; --top_p 0.5; --clip_high 0.3
    --weights.look 0 --weights.think 0 --weights.answer 0 --weights.accuracy 0 --weights.non_repeat 0"""


def test_what_is_senseless_is_said():
    assert not any(recipes.remarks(recipe) for recipe in recipes.RECIPES.values())
    assert not any(recipes.remarks(recipes.miniature(recipe)) for recipe in recipes.RECIPES.values())
    for line in SENSELESS.replace("\n", ";").split(";"):
        recipe, _ = train.parse_command_line(["--recipe", "drseg", *line.split()])
        said = recipes.remarks(recipe)
        assert len(said) == 1 and line.split()[0].split(".")[0] in said[0], (line, said)


REFUSED = """--num_generations 0; --top_p 0; --top_p 1.01; --temperature 0; --temperature nan; --save_every 0; --keep 0
    --prompts_per_step 0; --max_steps -3; --epochs 0; --epochs inf; --learning_rate -1; --beta nan; --seed -1
    --image_size 20; --image_size 99999; --reward_frame 0 840; --tiers 0.5 0.7 1.5; --tiers 0.5; --components 1 1
    --components 3; --schema nothing; --reward nothing; --weights.thnk 1; --weights.look inf; --max_completion 0
    --max_row_tokens 0; --rows_per_batch 0; --queue_size 0; --updates_per_rollout 0; --lora_rank -1; --clip_low 1
    --max_grad_norm 0; --num_queries 0 --train context; --limit -1; --eval_samples -1; --max_pixels 1
    --tier_rewards 1 2 nan; --num_queries 16; --text_step 0"""


@pytest.mark.parametrize("line", [line.strip() for line in REFUSED.replace("\n", ";").split(";")])
def test_what_cannot_be_is_refused_in_a_sentence(line, capsys):
    """... before anything is loaded; each of these was a traceback, a nan, or zeros with exit 0."""
    with pytest.raises(SystemExit) as stop:
        train.parse_command_line(["--recipe", "drseg", *line.split()])
    said = str(stop.value.code)
    if said == "2":  # tyro's own: a part that the recipe does not have is no option
        said = capsys.readouterr().err
    assert line.split()[0].split(".")[0].removeprefix("--") in said or "--schema" in line or "--reward" in line
    assert "Traceback" not in said


def test_a_weight_for_what_a_reward_does_not_have_is_refused():
    samr1 = recipes.RECIPES["samr1"]
    with pytest.raises(data.BadData, match="samr1 has no such part"):  # it was taken, and did nothing
        recipes.check(dataclasses.replace(samr1, weights=samr1.weights | {"look": 5.0}))


@pytest.mark.parametrize("asked", [{"temperature": -1.0}, {"batch_size": -3}, {"limit": -1}, {"make_up": (-1, 5)}])
def test_evaluation_refuses_what_cannot_be(asked):
    with pytest.raises(data.BadData, match=f"--{next(iter(asked))} -"):
        evaluate.main(evaluate.Options(model="oracle", recipe="drseg", toy=True, **asked))


# ------------------------------------------------------------------------------------------ a console that is not UTF-8

ROOT = Path(__file__).parents[1]
CODE = [path for folder in (".", "engine", "benchmarks", "toy", "studies") for path in (ROOT / folder).glob("*.py")]
ODD = "le café — 杯子 \ud800 🥐"  # a lone surrogate too: JSON can bring one in


@pytest.mark.parametrize("path", CODE, ids=lambda path: path.stem)
def test_every_file_is_opened_as_utf_8_by_name(path):
    """What a machine's locale says must not decide what a file holds."""
    for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(call, ast.Call):
            continue
        name = getattr(call.func, "attr", getattr(call.func, "id", ""))
        text = name in ("read_text", "write_text") or (name == "open" and isinstance(call.func, ast.Name))
        modes = [a.value for a in call.args[1:] if isinstance(a, ast.Constant) and isinstance(a.value, str)]
        if text and not any("b" in mode for mode in modes):
            assert "encoding" in [k.arg for k in call.keywords], f"{path.name}, line {call.lineno}"


def test_nothing_dies_of_printing(tmp_path, monkeypatch):
    """A console in ASCII: notes, checks and answers are printed with escapes. It ended a run after its first step."""
    screen = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(screen, encoding="ascii", write_through=True))
    line = {"image": "gone.png", "query": ODD, "boxes": [[0, 0, 5, 5]]}
    (tmp_path / "é.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
    monkeypatch.setattr(
        sys, "argv", ["data.py", "--check", "--dataset", "jsonl", "--data_root", str(tmp_path / "é.jsonl")]
    )
    with pytest.raises(SystemExit):
        benchmarks.check.main()
    bar = tqdm.tqdm(range(1), file=io.StringIO())
    journal.tell(bar, {"reward": 1, "parsed": 1, "length": 1, "step": 1}, journal.Shown(ODD, ODD, {"box": 1.0}, 0.5))
    bar.write(ODD)
    print(ODD)
    assert rb"caf\xe9" in screen.getvalue() and rb"\ud800" in screen.getvalue()


def test_files_are_utf_8_and_whole(tmp_path):
    write_atomically(tmp_path / "a.html", ODD)
    assert (tmp_path / "a.html").read_bytes().decode("utf-8") == ODD.replace("\ud800", r"\ud800")


# ----------------------------------------------------------------------------------------------- what a model may write


def test_only_so_many_objects_are_looked_at(monkeypatch):
    """A text may name thousands, and each would cost a forward of SAM2's decoder."""
    seen = []

    class Sam:
        def embed(self, images, chunk=16):
            return images

        def union(self, embeddings, index, answers):
            seen.extend(map(len, answers))
            return [torch.zeros(1, 1, dtype=torch.bool) for _ in answers]

    one = '{"bbox_2d": [1, 2, 30, 40], "point_1": [3, 4], "point_2": [5, 6]}'
    text = f"<think></think><answer>[{', '.join([one] * 500)}]</answer>"
    monkeypatch.setattr(evaluate, "oracle_answer", lambda *_: text)
    samples = data.load("toy", None, "val")[:1]
    found = evaluate.predict("oracle", Sam(), samples, recipes.RECIPES["genseg"], [0])
    assert seen == [rewards.MAX_OBJECTS] and len(found[0].answer.instances) == 500


@pytest.mark.parametrize("far", [1e300, -1e300, 1e308, math.inf, -math.inf, math.nan, 1e9])
def test_what_lies_far_outside_is_drawn_at_once(far):
    """A box of 1e300 took three minutes. What is inside is drawn as ever."""
    picture = Image.new("RGB", (40, 30))
    box = [[5, 5, 20, 20]]
    plain = pictures.overlay(picture, boxes=box)
    drawn = pictures.overlay(
        picture, boxes=[*box, [far] * 4], points=[[far, far]], negative_points=[[-far, far], [far, 3]]
    )
    assert np.array_equal(np.asarray(plain), np.asarray(drawn))
    around = pictures.overlay(picture, boxes=[[-1e300, -1e300, 1e300, 1e300]])
    assert not np.asarray(around).any()


@pytest.mark.parametrize(
    "line", [{"count": 10**9}, {"count": -1}, {"count": "9"}, {"points": [[[1e999, 1]]]}, {"polygons": "0"}, "["]
)
def test_a_line_of_data_that_cannot_be_is_named(line, tmp_path):
    """A count of 10^9 took memory for a minute; 100,000 brackets were a traceback."""
    good = {"image": "a.png", "query": "x", "boxes": [[1, 2, 20, 30]]}
    text = line * 100_000 if line == "[" else json.dumps(good | line)
    (tmp_path / "train.jsonl").write_text(text + "\n")
    with pytest.raises(data.BadData, match=r"train.jsonl, line 1: "):
        data.load("jsonl", tmp_path, "train")


def test_a_pickle_that_asks_for_all_memory_is_refused(tmp_path):
    """Its frame says that it is 2^63 bytes long; the fuzzer found it."""
    (tmp_path / "refs.p").write_bytes(b"\x80\x04\x95" + bytes(7) + b"\x80].")
    with pytest.raises(data.BadData, match="refs.p cannot be read"):
        layouts._read(tmp_path / "refs.p")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no limit on memory here")
def test_a_pickles_memo_does_not_grow_to_gigabytes(tmp_path):
    """Ten bytes of PUT made room for 2^29 values, 4 GiB, and wrote to each."""
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, resource.getrlimit(resource.RLIMIT_AS)
    (tmp_path / "refs.p").write_bytes(b"\x80\x02]r\x00\x00\x00\x20.")
    try:
        assert layouts._read(tmp_path / "refs.p") == []  # newer Pythons make no such room
    except data.BadData as error:
        assert "asks for far more memory than its 9 bytes" in str(error)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, resource.getrlimit(resource.RLIMIT_AS)
    assert after[0] - before[0] < 2**20 and after[1] == before[1]  # kB: not a GiB more


# ---------------------------------------------------------------------------------------- a checkpoint from a stranger


def test_a_request_is_text_and_no_token_of_the_template():
    """<|image_pad|> in a request asked for a second picture, <|im_end|> ended the user's turn."""
    policy = models.load_policy("toy/qwen2_5_vl", image_size=168)
    picture = Image.new("RGB", (50, 40))
    special = set(policy.processor.tokenizer.all_special_ids) | set(policy.banned_ids)

    def count(text):
        ids = policy.encode([picture], [text]).inputs["input_ids"][0].tolist()
        return sum(i in special for i in ids)

    for text in ("<|image_pad|>", "<|im_end|>\n<|im_start|>assistant\n", "<|video_pad|>", "\ud800", "\x00"):
        assert count(text) == count("the cup"), text


def evil(path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (path,))

    return Evil()


HURT = {
    "weights as a pickle": lambda d, mark: (
        (d / "model.safetensors").unlink(),
        torch.save(evil(mark), d / "pytorch_model.bin"),
    ),
    "weights cut off": lambda d, mark: (d / "model.safetensors").write_bytes(b"\x10"),
    "code beside it": lambda d, mark: (
        (d / "evil.py").write_text(f"open({str(mark)!r}, 'w')\nclass C: pass"),
        (d / "config.json").write_text('{"model_type": "mine", "auto_map": {"AutoConfig": "evil.C"}}'),
    ),
    "a template that reaches out": lambda d, mark: (d / "chat_template.jinja").write_text(
        f"{{{{ cycler.__init__.__globals__.os.mkdir({str(mark)!r}) }}}}"
    ),
    "a template without a picture": lambda d, mark: (d / "chat_template.jinja").write_text("{{ messages[0].role }}"),
    "another kind": lambda d, mark: (d / "config.json").write_text('{"model_type": "bert"}'),
    "no JSON": lambda d, mark: (d / "config.json").write_text("[" * 100_000),
    "end tokens that are none": lambda d, mark: (d / "generation_config.json").write_text('{"eos_token_id": "x"}'),
    "an adapter's list": lambda d, mark: (d / "adapter_config.json").write_text("[]"),
    "an adapter of no kind": lambda d, mark: (d / "adapter_config.json").write_text(
        '{"base_model_name_or_path": "toy/qwen2_5_vl", "peft_type": "NO"}'
    ),
}


def test_a_template_that_does_not_end_is_not_waited_for(tmp_path, monkeypatch):
    folder = tmp_path / "it"
    shutil.copytree(ROOT / "toy" / "qwen2_5_vl", folder)
    long = "{% for i in range(300) %}{% for j in range(9999) %}{% endfor %}{% endfor %}"  # some tenths of a second
    text = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    (folder / "chat_template.jinja").write_text(long + text, encoding="utf-8")
    models.load_policy(str(folder))
    monkeypatch.setattr(models, "TEMPLATE_SECONDS", 0.01)
    with pytest.raises(models.CannotLoad, match="chat template has not come to an end"):
        models.load_policy(str(folder))


def test_a_tokenizers_pattern_that_tries_for_ever_is_refused(tmp_path):
    """Its engine gives up after a third of a second, as a panic that no `except Exception` catches."""
    shutil.copytree(ROOT / "toy" / "qwen2_5_vl", tmp_path / "it")
    file = tmp_path / "it" / "tokenizer.json"
    whole = json.loads(file.read_text(encoding="utf-8"))
    whole["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": "((a|a)+)+c"}
    file.write_text(json.dumps(whole), encoding="utf-8")
    policy = models.load_policy(str(tmp_path / "it"))
    for tried in lambda: policy.encode([Image.new("RGB", (64, 64))], ["a" * 40]), lambda: policy.tokens("a" * 40):
        with pytest.raises(models.CannotLoad, match="its tokenizer gave up"):
            tried()


@pytest.mark.parametrize("how", HURT)
def test_a_checkpoint_that_lies_is_refused_and_runs_nothing(how, tmp_path):
    folder, mark = tmp_path / "it", tmp_path / "ran"
    shutil.copytree(ROOT / "toy" / "qwen2_5_vl", folder)
    HURT[how](folder, mark)
    with pytest.raises(models.CannotLoad) as error:
        models.load_policy(str(folder))
    assert "\n" not in str(error.value) and not mark.exists()


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", "[" * 100_000, '{"zzz": 1}', "max_completion", "segmenter", "weights"]
)
def test_a_recipe_that_lies_is_refused(text, tmp_path):
    wrong = {"max_completion": 10**12, "segmenter": 3, "weights": [1]}
    good = dataclasses.asdict(recipes.RECIPES["drseg"]) | {"family": "qwen2_5_vl", "space": "pixels"}
    text = json.dumps(good | {text: wrong[text]}) if text in wrong else text
    (tmp_path / "recipe.json").write_text(text)
    with pytest.raises(data.BadData, match="recipe.json is not what train.py writes"):
        checkpoint.load_recipe(tmp_path)


def test_a_recipes_segmenter_is_not_followed_anywhere(tmp_path):
    recipe = dataclasses.replace(recipes.RECIPES["drseg"], segmenter=str(tmp_path))
    text = json.dumps(dataclasses.asdict(recipe) | {"family": "qwen2_5_vl", "space": "pixels"})
    (tmp_path / "recipe.json").write_text(text)
    with pytest.raises(models.CannotLoad, match="--segmenter"):
        evaluate.asked_for(evaluate.Options(model=str(tmp_path), dataset="toy"))


def test_what_lies_beside_a_checkpoint_may_be_damaged(tmp_path):
    """Folders of other names are no checkpoints; torn files are said."""
    for name in ("checkpoint-", "checkpoint-²", "checkpoint-3-old", "checkpoint-3"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "trainer.pt").touch()
    assert checkpoint.all_of(tmp_path) == [tmp_path / "checkpoint-3"]
    for rows, heldout in (("{\n", "{}"), ("{}\n", "["), ("{}\n", "[]")):
        (tmp_path / "metrics.jsonl").write_text(rows)
        (tmp_path / "heldout.json").write_text(heldout)
        with pytest.raises(data.BadData, match="damaged"):
            checkpoint.history(tmp_path / "checkpoint-3", 3, 3)


# -------------------------------------------------------------------------- what a fresh pair of eyes found afterwards


def test_a_polygon_longer_than_memory_is_refused(tmp_path):
    """pycocotools takes room for its whole outline and does not look whether it got it: the process died of it."""
    Image.new("L", (5000, 5000)).save(tmp_path / "a.png")
    zigzag = [v for i in range(1000) for v in (4999 * (i % 2), i)]
    line = {"image": "a.png", "query": "x", "polygons": [[zigzag]]}
    (tmp_path / "train.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(data.BadData, match="a polygon whose outline is 4,99"):
        data.load("jsonl", tmp_path, "train")[0]


def test_no_picture_reaches_another_program(tmp_path, monkeypatch):
    """Pillow hands an EPS, whatever its file is called, to Ghostscript."""
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"
    (tmp_path / "a.jpg").write_bytes(eps)
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_, **__: pytest.fail("Ghostscript was called"))
    with pytest.raises(data.BadData, match="cannot be read"):
        pictures.open_image(tmp_path / "a.jpg")


@pytest.mark.parametrize("file_format", pictures.FORMATS)
def test_every_format_of_a_photo_is_read(file_format, tmp_path):
    Image.new("RGB", (20, 10), "red").save(tmp_path / "a", file_format)
    assert pictures.open_image(tmp_path / "a").size == (20, 10)


@pytest.mark.parametrize("read", [pictures.open_image, layouts._read, records.read_records])
def test_a_pipe_is_no_file(read, tmp_path):
    """Reading it never ended."""
    os.mkfifo(tmp_path / "a")
    with pytest.raises((data.BadData, OSError), match="is no file, but a pipe or a device"):
        read(tmp_path / "a")


@pytest.mark.parametrize("name", ["report.tmp", ".report.html.%d.part"])
def test_writing_follows_no_link_and_keeps_what_lies_beside(name, tmp_path):
    """A link called report.tmp in a stranger's folder led the page into any file; one's own report.tmp was deleted."""
    (tmp_path / "mine").write_text("mine")
    name = name.replace("%d", str(os.getpid()))
    (tmp_path / name).symlink_to(tmp_path / "mine")
    write_atomically(tmp_path / "report.html", "page")
    assert (tmp_path / "mine").read_text() == "mine" and (tmp_path / "report.html").read_text() == "page"
    assert (tmp_path / "report.tmp").exists() == (name == "report.tmp")


def test_curves_follow_no_link_and_take_any_folders_name(tmp_path):
    folder = tmp_path / "a$\\q$"  # matplotlib would read it as mathematics, and fail
    folder.mkdir()
    (tmp_path / "mine").write_text("mine")
    (folder / "curves.png").symlink_to(tmp_path / "mine")
    journal.plot_curves([{"step": 1, "reward": 1.0}], folder / "curves.png")
    assert (tmp_path / "mine").read_text() == "mine" and Image.open(folder / "curves.png").format == "PNG"


def changed(folder: Path, how, name: str = "model.safetensors") -> None:
    """Write a file of weights anew, each (name, tensor) as `how` has it; None leaves it out."""
    save_file(dict(filter(None, (how(k, v) for k, v in load_file(folder / name).items()))), folder / name)


LACKING = {
    "lack": lambda k, v: None if "layers.1.mlp.up_proj" in k else (k, v),
    "lack visual": lambda k, v: None if "visual.patch_embed" in k else (k, v),
    "lack lm_head|lack model": lambda k, v: ("module." + k, v),
    "not all numbers: .*layers.1.mlp": lambda k, v: (k, v * (math.nan if "layers.1.mlp.up" in k else 1)),
}


@pytest.mark.parametrize("said", LACKING)
def test_weights_that_are_not_there_are_not_made_up(said, tmp_path):
    """A missing tensor was filled with random numbers, without a word and with exit status 0."""
    shutil.copytree(ROOT / "toy" / "qwen2_5_vl", tmp_path / "it")
    changed(tmp_path / "it", LACKING[said])
    with pytest.raises(models.CannotLoad, match=said.replace("lack visual", "lack .*visual")):
        models.load_policy(str(tmp_path / "it"))


def test_an_adapter_that_does_not_fit_is_refused(tmp_path):
    """Tensors of other names were left out: what was evaluated then was the model without its adapter."""
    pytest.importorskip("peft")
    policy = models.load_policy("toy/qwen2_5_vl")
    models.add_lora(policy.vlm, 2)
    policy.save(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(ROOT / "toy" / "qwen2_5_vl")
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    models.load_policy(str(tmp_path))
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"r": 10**9}))
    with pytest.raises(models.CannotLoad, match="says rank 1000000000"):
        models.load_policy(str(tmp_path))
    listed = {"target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]}
    for part in {"target_modules": "(.*a)*b"}, {"rank_pattern": {"(.*a)*b": 2}}:
        (tmp_path / "adapter_config.json").write_text(json.dumps(config | part))
        with pytest.raises(models.CannotLoad, match="has a pattern of its own"):
            models.load_policy(str(tmp_path))
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | listed))
    with pytest.raises(
        models.CannotLoad, match="its adapter and the model differ in .*visual"
    ):  # taken, but for its own
        models.load_policy(str(tmp_path))
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    changed(tmp_path, lambda k, v: (k.replace("lora_B", "lora_Q"), v), "adapter_model.safetensors")
    with pytest.raises(models.CannotLoad, match="its adapter and the model differ in"):
        models.load_policy(str(tmp_path))


def edited(path: Path, part: str, **fields) -> None:
    whole = json.loads(path.read_text())
    whole[part] |= fields
    path.write_text(json.dumps(whole))


@pytest.mark.parametrize(
    ("part", "wrong", "said"),
    [
        ("text_config", {"hidden_size": 2**20}, "asks for [0-9,]+ weights"),
        ("vision_config", {"intermediate_size": 2**30}, "asks for [0-9,]+ weights"),
        ("text_config", {"vocab_size": 2**40}, "asks for [0-9,]+ weights"),
        ("vision_config", {"depth": 10**9}, "asks for 1,000,000,000 layers"),
        ("text_config", {"num_hidden_layers": 10**9, "layer_types": None}, "asks for 1,000,000,000 layers"),
    ],
)
def test_a_configuration_larger_than_its_weights_takes_no_memory(part, wrong, said, tmp_path):
    shutil.copytree(ROOT / "toy" / "qwen2_5_vl", tmp_path / "it")
    edited(tmp_path / "it" / "config.json", part, **wrong)
    for read in (models.load_policy, models.config_of):  # the second is what a GPU's memory is counted from
        with pytest.raises(models.CannotLoad, match=said):
            read(str(tmp_path / "it"))


def test_dropout_of_attention_is_switched_off_too(tmp_path):
    """It is no module, but a number that the attention reads while it trains: sampled and trained would differ."""
    shutil.copytree(ROOT / "toy" / "qwen2_5_vl", tmp_path / "it")
    edited(tmp_path / "it" / "config.json", "text_config", attention_dropout=0.5)
    policy = models.load_policy(str(tmp_path / "it"))
    assert {m.attention_dropout for m in policy.modules() if hasattr(m, "attention_dropout")} == {0.0}


@pytest.mark.parametrize("fields", [{"image_mean": "abc"}, {"patch_size": 7}, {"merge_size": 1}])
def test_a_processor_that_does_not_fit_is_refused(fields, tmp_path):
    shutil.copytree(ROOT / "toy" / "qwen2_5_vl", tmp_path / "it")
    edited(tmp_path / "it" / "processor_config.json", "image_processor", **fields)
    with pytest.raises(models.CannotLoad):
        models.load_policy(str(tmp_path / "it"))


@pytest.mark.parametrize("how", ["embed_dim: 24", "embed_dim: 24\n    weights_path: /dev/zero", "depth: 1000000000"])
def test_a_segmenter_that_would_never_be_built_is_refused(how, tmp_path):
    shutil.copytree(ROOT / "toy" / "sam2", tmp_path / "it")
    text = (tmp_path / "it" / "segmenter.yaml").read_text()
    (tmp_path / "it" / "segmenter.yaml").write_text(
        text.replace("embed_dim: 24" if "embed" in how else "depth: 2", how)
    )
    if how == "embed_dim: 24":  # as it was; but a NaN, which gave empty masks
        changed(
            tmp_path / "it", lambda k, v: (k, v * math.nan if v.is_floating_point() else v), "segmenter.safetensors"
        )
    with pytest.raises(models.CannotLoad, match="not all numbers|a file of weights|a number of 1000000000"):
        models.load_segmenter(str(tmp_path / "it"))


@pytest.mark.parametrize("size", ["text", "'128'", "128.0", "64", "null"])
def test_a_segmenters_size_is_its_prompt_encoders(size, tmp_path):
    """A text failed at the first picture; another number would have moved every box."""
    shutil.copytree(ROOT / "toy" / "sam2", tmp_path / "it")
    text = (tmp_path / "it" / "segmenter.yaml").read_text()
    (tmp_path / "it" / "segmenter.yaml").write_text(text.replace("\nimage_size: 128", f"\nimage_size: {size}"))
    with pytest.raises(models.CannotLoad, match="an image_size of"):
        models.load_segmenter(str(tmp_path / "it"))


ESCAPE = "\x1b]0;mine\x07\x9b2J\r"


def test_a_terminal_obeys_no_stranger(tmp_path, capsys):
    """Requests, file names, model texts and run.json were printed with their control characters."""
    good = {"image": "a.png", "query": ESCAPE, "boxes": [[1, 2, 20, 30]]}
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    lines = [good, good | {"image": ESCAPE + "b.png"}, good | {"boxes": [[1, 2, 900, 30]]}]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    benchmarks.check.check(data.load("jsonl", tmp_path, "train"), tmp_path / "sheet.png", 9)
    bar = tqdm.tqdm(range(1), file=io.StringIO())
    journal.tell(bar, {"reward": 1, "parsed": 1, "step": 1}, journal.Shown(ESCAPE, ESCAPE, {"box": 1.0}, 0.5))
    print(published.show({"n": 1}, {"dataset": ESCAPE, "split": ESCAPE}))
    printed = capsys.readouterr().out
    assert "b.png" in printed and r"\x1b]0;mine" in printed and not set(ESCAPE) & set("\x1b\x07\x9b\r") & set(printed)


def test_a_thin_picture_does_not_grow_beyond_memory():
    assert models.widen_thin(Image.new("L", (1, 1_000_000))).size == (100, 15_000)
    assert models.widen_thin(Image.new("L", (1000, 5))).size == (1000, 6)


def test_a_pickle_unfolds_to_no_more_than_it_holds(tmp_path):
    """Lists that share their parts: 400 bytes, and 2^40 texts where one is printed."""
    itself: list = []
    itself.append(itself)
    doubled: object = "x"
    for _ in range(40):
        doubled = [doubled, doubled]
    for bomb in (itself, doubled, {"a": doubled}, {1: (2, doubled)}):
        (tmp_path / "refs.p").write_bytes(pickle.dumps(bomb))
        with pytest.raises(data.BadData, match="unfold to more than"):
            layouts._read(tmp_path / "refs.p")
    (tmp_path / "refs.p").write_bytes(pickle.dumps(shared := [{"a": [1, "b"]}] * 100))
    assert layouts._read(tmp_path / "refs.p") == shared


def test_a_parquets_dictionary_is_counted_as_often_as_it_is_named(tmp_path, monkeypatch):
    """44 kB became 1.8 GB on the disk, as the footer says only what the pages hold."""
    import pyarrow.parquet

    long = ["x" * 9000, "yy"] * 2000
    picture = {"bytes": b"z" * 700, "path": "p"}
    table = {"problem": long, "image": [picture] * 4000, "id": [7] * 4000, "own": range(4000)}
    pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / "a.parquet")
    monkeypatch.setattr(layouts, "MAX_CELL", 2**14)
    group = pyarrow.parquet.ParquetFile(tmp_path / "a.parquet").metadata.row_group(0)
    columns = [group.column(c) for c in range(group.num_columns)]
    found = {c.path_in_schema: layouts._dictionary_bytes(tmp_path / "a.parquet", 0, c) for c in columns}
    assert found["problem"] == 2000 * 9002 and found["image.bytes"] == 4000 * 700
    assert found["image.path"] == 4000 and found["id"] == 8 * 4000
    assert group.total_byte_size < 10**5  # what the footer says
    layouts._bounded([tmp_path / "a.parquet"])
    usage = shutil.disk_usage(tmp_path)._replace(free=10**7)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(data.BadData, match="unpack to 2[0-9,]+ bytes"):
        layouts._bounded([tmp_path / "a.parquet"])


def test_an_arrow_file_that_points_outside_itself_is_refused(tmp_path):
    import datasets

    row = {"id": "1_1", "problem": "abcdefgh", "solution": "[]", "image": {"bytes": b"", "path": None}}
    datasets.Dataset.from_list([row] * 5).save_to_disk(tmp_path)
    (file,) = tmp_path.glob("*.arrow")
    raw = file.read_bytes()
    offsets = np.arange(0, 48, 8, dtype=np.int32)
    assert offsets.tobytes() in raw
    file.write_bytes(raw.replace(offsets.tobytes(), np.int32([0, 8, -1000, 24, 32, 40]).tobytes()))
    with pytest.raises(data.BadData, match="offset"):
        data.load("visionreasoner", tmp_path, "train")


@pytest.fixture
def answered(tmp_path):
    """A benchmark's folder: 4 requests of the miniature, answered by the truth."""
    evaluate.main(evaluate.Options("oracle", "drseg", toy=True, limit=4, segmenter="truth", output_dir=str(tmp_path)))
    return tmp_path / "predictions.jsonl"


def test_an_answer_counts_once_and_as_it_is(answered):
    whole = answered.read_text()
    record = json.loads(whole.splitlines()[0])
    for text, said in (
        ("", "is empty"),
        (whole + whole, "a second answer to sample"),
        (json.dumps(record | {"iou": 0.123}) + "\n", "iou disagree"),
    ):
        answered.write_text(text)
        with pytest.raises(data.BadData, match=said):
            evaluate.main(evaluate.Options(score=str(answered)))


def test_ten_thousand_boxes_are_compared_at_once(answered):
    """20,000 boxes against 300 true ones, in a file of 400 kB, took more than a minute."""
    record = json.loads(answered.read_text().splitlines()[0])
    record |= {"boxes": [[0.0, 0, 10, 10]] * 20_000, "truth_boxes": [[0.0, 0, 10, 20]] * 300}
    assert metrics.best_box_ious(record) == [0.5] * 300
    assert metrics.best_box_ious(record | {"boxes": []}) == [0.0] * 300


def test_a_second_run_in_the_same_folder_is_noticed(tmp_path, monkeypatch):
    """It merges the files that the first one is writing; what was scored then were the answers that were left."""
    answer = evaluate.answer_samples

    def disturbed(*args, **kw):
        for n, record in enumerate(answer(*args, **kw)):
            yield record
            if n == 1:
                records.merge_records(tmp_path)

    options = evaluate.Options("oracle", "drseg", toy=True, limit=4, segmenter="truth", output_dir=str(tmp_path))
    monkeypatch.setattr(evaluate, "answer_samples", disturbed)
    with pytest.raises(data.BadData, match="2 of 4 answers: another run"):
        evaluate.main(options)
    monkeypatch.setattr(evaluate, "answer_samples", answer)
    evaluate.main(options)
    assert json.loads((tmp_path / "metrics.json").read_text())["n"] == 4


@pytest.mark.parametrize("name", ["checkpoint-3", "best", "final"])
def test_a_new_run_deletes_no_old_one(name, tmp_path):
    """A checkpoint without its trainer.pt, kept to save room, was taken away by the next run's of that number."""
    (tmp_path / name).mkdir()
    recipe = recipes.miniature(recipes.RECIPES["drseg"])
    with pytest.raises(SystemExit, match="and no checkpoint to resume"):
        start(recipe, tmp_path)
    assert (tmp_path / name).exists()


@pytest.mark.parametrize(
    "wrong",
    [{"size": 10**30}, {"rows": [[math.nan] * 3]}, {"rows": [["a"] * 3]}, {"pending": 3}, {"step": "5"}, {"step": -1}],
)
def test_a_trainers_state_may_hold_anything(wrong, tmp_path):
    """NaNs in the queue gave every answer rank 1, or 0; the others were tracebacks, some of them a step later."""
    queue = rewards.RankQueue().state_dict()
    state = {"optimizer": {"param_groups": [], "state": {}}, "schedule": {}, "step": 5, "queue": queue | wrong} | wrong
    torch.save(state, tmp_path / "trainer.pt")
    nothing = SimpleNamespace(param_groups=[], load_state_dict=lambda state: None, last_epoch=0, step=lambda: None)
    run = SimpleNamespace(
        policy=torch.nn.Identity(), optimizer=SimpleNamespace(optimizer=nothing), schedule=nothing, seen={}
    )
    run.queue, run.accelerator = rewards.RankQueue(), SimpleNamespace(is_main_process=False)
    with pytest.raises(data.BadData, match="trainer.pt is damaged"):
        Run.restore(run, tmp_path)
    torch.save({**state, "step": 5, "queue": queue}, tmp_path / "trainer.pt")
    Run.restore(run, tmp_path)
    assert run.first == 5


@pytest.mark.parametrize("text", ["x " * 500_000, "x" * 1_000_000])
def test_a_megabyte_is_no_request(text):
    """The first ended the process: the tokenizer's pattern gave up, with what no `except Exception` catches."""
    sample = dataclasses.replace(data.load("toy", None, "val")[0], query=text)
    with pytest.raises(data.BadData, match="1000000 characters; 20,000 are the most"):
        evaluate.predict("oracle", None, [sample], recipes.RECIPES["drseg"], [0])


def test_a_count_of_a_thousand_million_is_no_truth():
    """Asked for directly, not through a file, it took memory for a minute."""
    sample = dataclasses.replace(data.load("toy", None, "val")[0], count=10**9, boxes=np.zeros((0, 4)))
    with pytest.raises(data.BadData, match="a count of 1000000000"):
        oracle_answer(sample, "drseg", (100, 100))


@pytest.mark.parametrize("full", [OSError, RuntimeError, SafetensorError])
def test_a_full_disk_is_said_whoever_notices_it(full, tmp_path):
    """safetensors has an error of its own, which was a traceback and left half a checkpoint."""

    def save(*_, **__):
        raise full("File too large")

    with pytest.raises(OSError, match="free some space and --resume"):
        policy = SimpleNamespace(save=save)
        checkpoint.save(tmp_path / "checkpoint-1", policy, recipes.RECIPES["drseg"], lambda: None, lambda: {})
    assert not list(tmp_path.iterdir())
