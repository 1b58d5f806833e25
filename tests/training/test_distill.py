"""Teacher learning's options: its losses, m18's second head, and where a student comes from."""

import json

import pytest
import torch
from torch.testing import assert_close
from transformers import AltCLIPModel, AutoTokenizer, BertConfig, CLIPModel, XLMRobertaConfig, XLMRobertaModel

from altdiffusion import AltCLIP, AltDiffusionPipeline
from tests.fakes import SENTENCES, tiny_tokenizer
from tests.training.conftest import flags, tiny_clip
from training.config import parse
from training.distill import Distillation, DistillConfig, Teacher, build, train
from training.emoji import load_emoji
from training.parallel_captions import Named, ParallelCaptions, owners_of
from training.student import student_from_backbone
from training.targets import Targets, targets_of
from training.tower import TextTower

WORDS = "text_model.roberta.embeddings.word_embeddings.weight"


def config(folder, steps, teacher, more="") -> DistillConfig:
    return parse(DistillConfig, flags(folder, steps, f"--teacher {teacher} {more}"))


def losses(folder) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("kind", ["mse", "cosine", "contrastive"])
def test_each_loss_is_learnt(kind, teacher, altclip, tmp_path):
    more = f"--model {altclip} --loss {kind} --optim.learning-rate 5e-3 --run.batch-size 16"
    train(config(tmp_path, 30, teacher, more))
    found = losses(tmp_path)
    assert sum(found[-5:]) < 0.9 * sum(found[:5])


def test_an_altclip_teaches_its_own_english(altclip, tmp_path):
    more = f"--model {altclip} --languages en --sequence-weight 0 --run.mixed-precision no --counts 1"
    train(config(tmp_path, 1, altclip, more))
    assert all(loss < 0.3 for loss in losses(tmp_path)), losses(tmp_path)


def test_a_kept_share_lies_between_what_was_and_what_was_learnt(altclip, tmp_path):
    for share in (0, 0.25):
        train(config(tmp_path / str(share), 2, altclip, f"--model {altclip} --kept-share {share}"))
    paths = (altclip, tmp_path / "0", tmp_path / "0.25")
    before, learnt, mixed = (
        AltCLIPModel.from_pretrained(path if path == altclip else path / "model").text_model for path in paths
    )
    expected = before.get_parameter(WORDS[11:]) * 0.25 + learnt.get_parameter(WORDS[11:]) * 0.75
    assert not learnt.get_parameter(WORDS[11:]).equal(before.get_parameter(WORDS[11:]))
    assert_close(mixed.get_parameter(WORDS[11:]), expected)


def test_the_tokens_of_a_list_are_drawn_to_their_own_names_and_places(altclip, tmp_path):
    settings = config(tmp_path, 1, altclip, f"--model {altclip} --ordered True --own-words True")
    guide = Teacher.read(altclip)
    student, tokenizer, _ = build(settings, guide.width)
    of_places = torch.arange(2 * guide.width).reshape(2, -1).float()
    stage = Distillation(student, tokenizer, guide, Targets(torch.eye(guide.width), of_places), settings)
    text, said = "a cat and a dog", ["cat", "dog"]
    named = [Named(text.index(name), text.index(name) + 3, name) for name in said]
    whole, apart = guide.pooled([text]), guide.pooled(said)
    goals = stage.of_tokens([text, text], [named, []], whole.repeat(2, 1), 20)
    owners = owners_of(tokenizer, [text], [named])
    for place in (0, 1):
        tokens = [token for (_, token), own in owners.items() if own == place]
        assert tokens
        assert_close(goals[0, tokens], (apart[place] + of_places[place]).expand(len(tokens), -1))
    others = [n for n in range(20) if (0, n) not in owners]
    assert_close(goals[0, others], whole.expand(len(others), -1))
    assert_close(goals[1], whole.expand(20, -1))
    train(settings)  # and the whole stage runs
    assert len(losses(tmp_path)) == 1


def test_names_that_lie_together_are_learnt_apart_and_come_up_more_often(altclip, tmp_path):
    settings = config(
        tmp_path,
        1,
        altclip,
        f"--model {altclip} --apart 0.6 --apart-share 0.5 --languages en --keyword-share 0 --counts 1",
    )
    guide, names = Teacher.read(altclip), list(load_emoji().names["en"].values())
    known = targets_of(settings, guide)
    said = guide.pooled(names)
    assert 0 < len(known.near) < len(names)
    for name, was in zip(names, said, strict=True):
        assert known.apart[name].equal(was) == (name not in known.near)
    learnt = torch.stack(list(known.apart.values()))
    least = 0.6 * torch.pdist(said.double()).mean()
    assert torch.pdist(learnt.double()).min() > 0.99 * least > torch.pdist(said.double()).min()
    student, tokenizer, _ = build(settings, guide.width)
    stage = Distillation(student, tokenizer, guide, known, settings)
    some = [next(iter(known.near)), "no emoji's name"]
    assert_close(stage.target(some)[:, 0], torch.stack([known.apart[some[0]], guide.pooled(some)[1]]))
    captions = ParallelCaptions(settings, known.near)
    found = sum(captions[n][1] in known.near for n in range(400)) / 400
    plain = len(known.near) / len(names)
    assert abs(found - (0.5 + 0.5 * plain)) < 0.08
    train(settings)
    assert len(losses(tmp_path)) == 1


def test_the_teachers_state_before_the_last_layer_is_that_of_its_end_of_text(teacher):
    clip, tokenizer = CLIPModel.from_pretrained(teacher), AutoTokenizer.from_pretrained(teacher)
    guide = Teacher(clip, tokenizer)
    texts = ["a cat", "a red cat and a green apple"]
    found = guide.penultimate(texts)
    for row, text in zip(found, texts, strict=True):
        ids = tokenizer(text, return_tensors="pt").input_ids
        states = clip.text_model(ids, output_hidden_states=True).hidden_states[-2]
        assert_close(row, clip.text_model.final_layer_norm(states)[0, -1])
    assert not torch.allclose(found, guide.pooled(texts))


def test_form_m18_trains_a_head_of_its_own_that_conditions_the_unet(teacher, altclip, drawing, tmp_path):
    train(config(tmp_path, 2, teacher, f"--model {altclip} --form m18 --optim.learning-rate 1e-3"))
    clip = AltCLIP.from_pretrained(tmp_path / "model")
    assert clip.form == "m18"
    head = clip.generation_head
    assert head is not None
    assert not head["weight"].equal(clip.model.text_model.transformation.weight)
    prompt = SENTENCES["en"]
    inputs = clip.tokenizer(prompt, return_tensors="pt")
    hidden = clip.model.text_model(**inputs, output_hidden_states=True).hidden_states[-2]
    expected = torch.nn.functional.linear(clip.model.text_model.pre_LN(hidden), head["weight"], head["bias"])
    length = expected.shape[1]
    assert_close(TextTower(tmp_path / "model").encode([prompt])[:, :length], expected)
    pipeline = AltDiffusionPipeline.from_altclip(clip, drawing)
    states = pipeline.text_encoder(inputs.input_ids, attention_mask=inputs.attention_mask).last_hidden_state
    assert_close(states, expected)


def test_both_heads_learn_what_the_teacher_says(teacher, altclip, tmp_path):
    more = f"--model {altclip} --form m18 --optim.learning-rate 5e-3 --run.batch-size 16 --sequence-weight 0"
    train(config(tmp_path, 40, teacher, more))
    assert losses(tmp_path)[-1] < 0.7 * losses(tmp_path)[0]
    with pytest.raises(ValueError, match=r"^form: own, and '.*' has m18's two heads; allowed: m18"):
        train(config(tmp_path / "own", 1, teacher, f"--model {tmp_path / 'model'}"))
    train(config(tmp_path / "more", 1, teacher, f"--model {tmp_path / 'model'} --form m18"))
    before, after = (
        AltCLIP.from_pretrained(tmp_path / name).generation_head for name in ("model", "more/model")
    )
    assert 0 < (after["weight"] - before["weight"]).abs().max() < 1e-3


@pytest.fixture
def backbone(tmp_path):
    tokenizer = tiny_tokenizer()
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    settings = XLMRobertaConfig(
        vocab_size=len(tokenizer), max_position_embeddings=82, type_vocab_size=1, **shape
    )
    XLMRobertaModel(settings).save_pretrained(tmp_path / "xlmr")
    tokenizer.save_pretrained(tmp_path / "xlmr")
    return tmp_path / "xlmr"


def test_a_student_starts_with_the_body_of_an_xlm_r(backbone, teacher, tmp_path):
    body = XLMRobertaModel.from_pretrained(backbone).eval()
    student, tokenizer = student_from_backbone(backbone, 24)
    inputs = tokenizer(list(SENTENCES.values()), padding=True, return_tensors="pt")
    hidden = student.eval().roberta(inputs.input_ids, attention_mask=inputs.attention_mask).last_hidden_state
    assert_close(hidden, body(inputs.input_ids, attention_mask=inputs.attention_mask).last_hidden_state)
    assert student.config.project_dim == 24
    more = f"--student.backbone {backbone} --freeze-embeddings True --optim.learning-rate 1e-3"
    train(config(tmp_path / "run", 2, teacher, more))
    after = AltCLIPModel.from_pretrained(tmp_path / "run/model").text_model.roberta
    assert after.embeddings.word_embeddings.weight.equal(body.embeddings.word_embeddings.weight)
    moved = after.encoder.layers[0].output.dense.weight
    assert not moved.equal(body.encoder.layer[0].output.dense.weight)


def test_word_embeddings_move_unless_they_are_frozen(teacher, altclip, tmp_path):
    train(config(tmp_path, 1, teacher, f"--model {altclip}"))
    before, after = (
        AltCLIPModel.from_pretrained(path).state_dict() for path in (altclip, tmp_path / "model")
    )
    assert not before[WORDS].equal(after[WORDS])


def test_what_does_not_fit_is_refused_before_training(teacher, altclip, tmp_path, capsys):
    BertConfig().save_pretrained(tmp_path / "bert")
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    wide = tiny_clip(len(tokenizer), width=48)
    wide.save_pretrained(tmp_path / "wide")
    cases = {
        r"^teacher: '.*' is bert; allowed: a CLIP or an AltCLIP": (tmp_path / "bert", f"--model {altclip}"),
        r"^form: m18 with an AltCLIP as teacher; allowed: own": (altclip, f"--model {altclip} --form m18"),
        r"^student\.backbone: '.*' is bert; allowed: xlm-roberta": (
            teacher,
            f"--student.backbone {tmp_path / 'bert'}",
        ),
        r"^model: '.*' repeats a teacher of width 32, '.*' has 48": (tmp_path / "wide", f"--model {altclip}"),
    }
    for message, (guide, more) in cases.items():
        with pytest.raises(ValueError, match=message):
            train(config(tmp_path / "out", 1, guide, more))
    cases = {
        "run.gradient_accumulation_steps: 2 with loss contrastive": (
            "--loss contrastive --run.gradient-accumulation-steps 2"
        ),
        "student.backbone: 'a' with model 'b'": "--student.backbone a --model b",
        "freeze_embeddings: True with a new student": "--freeze-embeddings True",
        "kept_share: 0.5; allowed": "--kept-share 0.5",
        "keyword_share: 2.0; allowed: 0 to 1": "--keyword-share 2",
        "even_keywords: -0.5; allowed: 0 to 1": "--even-keywords -0.5",
        "apart_share: 0.2 without apart; allowed: 0, or with apart": "--apart-share 0.2",
        "own_words: True without ordered": "--own-words True",
    }
    for message, more in cases.items():
        with pytest.raises(SystemExit):
            config(tmp_path / "out", 1, teacher, more)
        assert message in " ".join(capsys.readouterr().err.replace("│", "").split())


def test_accumulated_passes_train_as_the_one_big_batch(teacher, altclip, tmp_path):
    more = f"--model {altclip} --run.batch-size 8"
    train(config(tmp_path / "one", 3, teacher, more))
    train(config(tmp_path / "four", 3, teacher, f"{more} --run.gradient-accumulation-steps 4"))
    assert_close(losses(tmp_path / "one"), losses(tmp_path / "four"), rtol=0, atol=1e-6)
