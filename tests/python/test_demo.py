# SPDX-License-Identifier: Apache-2.0
"""The demo on a small corpus: a real model keeps its neighbours in every scheme, and one broken scale shows."""

import json

import pytest
import torch
from evergemm.cli import corpus, demo, main
from evergemm.nn import QuantLinear

SENTENCES = 400


@pytest.fixture(scope="module")
def sentences() -> list[str]:
    return corpus.standard_library_sentences(SENTENCES)


@pytest.fixture(scope="module")
def result(sentences) -> demo.DemoResult:
    return demo.measure(sentences, rounds=1, quiet=True)


def test_corpus_is_prose_without_repetitions_and_always_the_same(sentences):
    assert len(sentences) == SENTENCES
    assert len({sentence.lower() for sentence in sentences}) == SENTENCES
    assert all(40 <= len(sentence) <= 240 and sentence.endswith(".") for sentence in sentences)
    assert corpus.standard_library_sentences(50) == sentences[:50]


def test_every_scheme_keeps_its_recall(result):
    assert [one.scheme for one in result.schemes] == ["fp32", "int8", "fp8", "fp8-block"]
    fp32 = result.of("fp32")
    assert fp32.recall == 1.0 and fp32.cosine == pytest.approx(1.0, abs=1e-5)
    for scheme, least in demo.THRESHOLDS.items():
        one = result.of(scheme)
        assert least <= one.recall < 1.0
        assert 0.99 < one.worst_cosine <= one.cosine < 1.0
        assert one.passed
    assert result.passed


def test_bytes_are_those_of_the_layers(result):
    """Six layers of MiniLM: four 384 x 384, one 1536 x 384, one 384 x 1536, each with a bias."""
    layers, weights = 36, 6 * (4 * 384 * 384 + 2 * 1536 * 384)
    channels, biases = 6 * (4 * 384 + 1536 + 384), 4 * 6 * (4 * 384 + 1536 + 384)
    assert result.layers == layers
    fp32 = result.of("fp32")
    assert fp32.linear_bytes == 4 * weights + biases
    assert result.of("fp8").linear_bytes == weights + 4 * channels + biases
    assert result.of("fp8-block").linear_bytes == weights + 4 * 6 * (4 * 9 + 2 * 36) + biases
    # int8 has 4 bytes more a channel in layers whose activations have a zero point.
    assert weights + 4 * channels + biases <= result.of("int8").linear_bytes <= weights + 8 * channels + biases
    for one in result.schemes:
        assert one.model_bytes - one.linear_bytes == fp32.model_bytes - fp32.linear_bytes > 40e6  # the embeddings stay
        assert one.sentences_per_second == pytest.approx(SENTENCES / one.seconds)


BROKEN = "encoder.layer.1.attention.self.value"


@pytest.mark.parametrize("scheme", demo.THRESHOLDS)
def test_one_broken_scale_loses_the_recall(sentences, scheme):
    def break_one(name: str, model: torch.nn.Module) -> None:
        layer = model.get_submodule(BROKEN)
        assert name == scheme and isinstance(layer, QuantLinear)
        layer.weight_scale[(0,) * layer.weight_scale.dim()] *= 100

    broken = demo.measure(sentences, schemes=[scheme], rounds=1, quiet=True, adjust=break_one)
    assert broken.of(scheme).recall < demo.THRESHOLDS[scheme]
    assert not broken.passed


def test_rounds_end_when_the_time_is_up(sentences):
    hurried = demo.measure(sentences[:200], schemes=["int8"], rounds=50, seconds=0.0, quiet=True)
    assert hurried.rounds == 1
    patient = demo.measure(sentences[:200], schemes=["int8"], rounds=2, quiet=True)
    assert patient.rounds == 2
    assert (hurried.of("int8").recall, hurried.pairs) == (patient.of("int8").recall, patient.pairs)


def test_recall_counts_neighbours_whatever_their_order():
    wanted = torch.tensor([[1, 2, 3], [4, 5, 6]])
    assert demo.recall(torch.tensor([[3, 1, 2], [6, 5, 4]]), wanted) == 1.0
    assert demo.recall(torch.tensor([[3, 1, 9], [7, 8, 9]]), wanted) == pytest.approx(2 / 6)


def test_nearest_leaves_the_sentence_itself_out():
    angles = torch.arange(12) * 0.25  # some are farther apart than a right angle
    vectors = torch.stack([angles.cos(), angles.sin()], 1)
    found = demo.nearest(vectors)
    assert found.shape == (12, 10)
    assert all(place not in row for place, row in enumerate(found.tolist()))
    assert found[0].tolist() == list(range(1, 11))


def test_encoding_does_not_depend_on_the_batches(sentences):
    encoder = demo.SentenceEncoder()
    some = sentences[:40]
    together = demo.encode(encoder.model, encoder.batches(some))
    assert torch.allclose(together.norm(dim=1), torch.ones(40), atol=1e-5)
    for place in (0, 17, 39):
        alone = demo.encode(encoder.model, encoder.batches([some[place]]))
        assert torch.allclose(alone[0], together[place], atol=1e-5)


def test_the_command_prints_draws_and_judges(tmp_path, capsys, monkeypatch, result, sentences):
    picture, figures = tmp_path / "demo.png", tmp_path / "demo.json"
    words = ["demo", "--sentences", "400", "--rounds", "1", "--output", str(picture), "--json", str(figures)]
    monkeypatch.setattr(corpus, "standard_library_sentences", lambda count: sentences[:count])
    monkeypatch.setattr(demo, "measure", lambda *arguments, **options: result)
    assert main(words) == 0
    text = capsys.readouterr().out
    assert f"picture: {picture}" in text and picture.read_bytes().startswith(b"\x89PNG\r\n")
    assert "MiniLM (36 linear layers) on 400 sentences" in text
    for scheme in demo.THRESHOLDS:
        assert f"kept: {scheme} recall@10 {result.of(scheme).recall:.4f}" in text
    assert "int8 is " in text
    assert {one["scheme"] for one in json.loads(figures.read_text())["schemes"]} == {"fp32", *demo.THRESHOLDS}
    monkeypatch.setitem(demo.THRESHOLDS, "fp8", 0.9999)
    assert main(words) == 1
    assert "LOST: fp8 recall@10" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["--sentences", "100"], ["--rounds", "0"]])
def test_the_command_refuses_a_corpus_that_says_nothing(words, capsys):
    assert main(["demo", *words]) == 1
    assert "demo: expected at least 200 sentences and 1 round; got " in capsys.readouterr().err


def test_what_is_missing_is_named(monkeypatch, capsys):
    monkeypatch.setattr(demo, "_PACKAGES", ("transformers", "no_such_package"))
    assert main(["demo"]) == 1
    assert "got no no_such_package; fix: pip install 'evergemm[demo]'" in capsys.readouterr().err
