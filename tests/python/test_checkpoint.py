# SPDX-License-Identifier: Apache-2.0
"""Saving and loading: the same bytes, the same results, compressed-tensors' names; what does not fit is refused by name."""

import hashlib
import json
import struct

import evergemm
import pytest
import torch
from evergemm import checkpoint
from evergemm.nn import QuantLinear
from safetensors.torch import load_file, save_file
from torch import nn

FP8 = torch.float8_e4m3fn
CONFIGS = {
    "int8_dynamic": evergemm.Int8Dynamic(),
    "int8_dynamic_asymmetric": evergemm.Int8Dynamic(asymmetric=True),
    "int8_static": evergemm.Int8Static(calibration=[torch.linspace(-2, 2, 600).view(2, 300)]),
    "fp8_dynamic": evergemm.Fp8Dynamic(),
    "fp8_block": evergemm.Fp8Block(),
}


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def model(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(300, 200), nn.GELU(), nn.Linear(200, 70, bias=False), nn.LayerNorm(70))


def quantized(scheme: str, seed: int = 0) -> nn.Sequential:
    result = model(seed)
    evergemm.quantize_(result, CONFIGS[scheme])
    return result


def x() -> torch.Tensor:
    return torch.randn(9, 300, generator=torch.Generator().manual_seed(1))


def sha256(path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("scheme", CONFIGS)
def test_a_float_model_becomes_the_saved_quantized_one(scheme, tmp_path):
    source = quantized(scheme)
    checkpoint.save(source, tmp_path / "a.safetensors")
    target = model(seed=1)
    report = checkpoint.load_(target, tmp_path / "a.safetensors")
    assert report == checkpoint.LoadReport(("0", "2"), (), ())
    assert [module.scheme for module in target if isinstance(module, QuantLinear)] == [scheme, scheme]
    assert torch.equal(target(x()), source(x()))
    checkpoint.save(target, tmp_path / "b.safetensors")
    assert sha256(tmp_path / "b.safetensors") == sha256(tmp_path / "a.safetensors")


@pytest.mark.parametrize("scheme", CONFIGS)
def test_a_quantized_model_loads_its_own_scheme(scheme, tmp_path):
    source, target = quantized(scheme), quantized(scheme, seed=1)
    assert not torch.equal(target(x()), source(x()))
    checkpoint.save(source, tmp_path / "a.safetensors")
    assert checkpoint.load_(target, tmp_path / "a.safetensors").replaced == ()
    assert torch.equal(target(x()), source(x()))


@pytest.mark.parametrize("scheme", CONFIGS)
def test_a_state_dict_goes_through_torch_save(scheme, tmp_path):
    source, target = quantized(scheme), model(seed=1)
    torch.save(source.state_dict(), tmp_path / "a.pt")
    checkpoint.load_(target, torch.load(tmp_path / "a.pt", weights_only=True))
    assert torch.equal(target(x()), source(x()))
    third = quantized(scheme, seed=2)
    third.load_state_dict(torch.load(tmp_path / "a.pt", weights_only=True))
    assert torch.equal(third(x()), source(x()))


def test_loading_copies_what_the_caller_holds():
    source, target = quantized("int8_static"), model(seed=1)
    state = source.state_dict()
    checkpoint.load_(target, state)
    wanted = target(x())
    for tensor in state.values():
        tensor.zero_()
    assert torch.equal(target(x()), wanted)


@pytest.mark.parametrize("scheme", CONFIGS)
def test_names_shapes_and_dtypes_are_those_of_compressed_tensors(scheme, tmp_path):
    checkpoint.save(quantized(scheme), tmp_path / "a.safetensors")
    stored = {name: (list(one.shape), one.dtype) for name, one in load_file(tmp_path / "a.safetensors").items()}
    dtype = torch.int8 if scheme.startswith("int8") else FP8
    block = scheme == "fp8_block"
    wanted = {
        "0.weight": ([200, 300], dtype),
        "0.weight_scale": ([2, 3] if block else [200, 1], torch.float32),
        "0.bias": ([200], torch.float32),
        "2.weight": ([70, 200], dtype),
        "2.weight_scale": ([1, 2] if block else [70, 1], torch.float32),
        "3.weight": ([70], torch.float32),
        "3.bias": ([70], torch.float32),
    }
    if scheme == "int8_static":
        wanted |= {"0.input_scale": ([1], torch.float32), "2.input_scale": ([1], torch.float32)}
    if scheme == "int8_dynamic_asymmetric":
        wanted |= {"0.azp_adj": ([200], torch.int32), "2.azp_adj": ([70], torch.int32)}
    assert stored == wanted


def test_the_header_is_what_transformers_expects(tmp_path):
    path = tmp_path / "a.safetensors"
    checkpoint.save(quantized("fp8_dynamic"), path)
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])
    assert header["__metadata__"] == {"format": "pt"}
    assert header["0.weight"]["dtype"] == "F8_E4M3"


def test_saving_twice_gives_the_same_bytes_and_leaves_no_other_file(tmp_path):
    for name in ("a.safetensors", "b.safetensors", "a.safetensors"):
        checkpoint.save(quantized("fp8_block"), tmp_path / name)
    assert sha256(tmp_path / "a.safetensors") == sha256(tmp_path / "b.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "b.safetensors"]


# ---- checkpoints that others wrote -------------------------------------------------------------------------------------


def foreign(scale_dtype=torch.bfloat16, **changes) -> dict[str, torch.Tensor]:
    """One layer [24, 40] as tools store it: bf16 scales, a static scale of no dimension."""
    generator = torch.Generator().manual_seed(3)
    tensors = {
        "0.weight": torch.randint(-127, 128, (24, 40), dtype=torch.int8, generator=generator),
        "0.weight_scale": torch.full((24, 1), 0.0078125, dtype=scale_dtype),
        "0.bias": torch.zeros(24),
    }
    return {name: tensor for name, tensor in (tensors | changes).items() if tensor is not None}


def small() -> nn.Sequential:
    return nn.Sequential(nn.Linear(40, 24))


@pytest.mark.parametrize("scale_dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_foreign_scales_become_float32(scale_dtype):
    target = small()
    checkpoint.load_(target, foreign(scale_dtype, **{"0.input_scale": torch.tensor(0.5, dtype=scale_dtype)}))
    assert target[0].scheme == "int8_static"
    assert target[0].weight_scale.dtype == target[0].input_scale.dtype == torch.float32
    assert torch.equal(target[0].dequantized_weight(), foreign()["0.weight"].float() * 0.0078125)


def test_one_scale_for_the_whole_weight():
    target = small()
    checkpoint.load_(target, foreign(**{"0.weight_scale": torch.tensor([0.5])}))
    assert target[0].granularity == "tensor"
    assert torch.equal(target[0].dequantized_weight(), foreign()["0.weight"].float() * 0.5)


def test_block_scales_under_their_older_name():
    weight = torch.ones(200, 300).to(FP8)
    scale = torch.arange(1.0, 7.0).view(2, 3)
    target = nn.Sequential(nn.Linear(300, 200, bias=False))
    checkpoint.load_(target, {"0.weight": weight, "0.weight_scale_inv": scale})
    assert target[0].scheme == "fp8_block"
    assert target[0].dequantized_weight()[199, 299] == 6.0


def test_a_model_on_the_meta_device_is_filled():
    source = quantized("int8_dynamic")
    with torch.device("meta"):
        target = nn.Sequential(nn.Linear(300, 200), nn.GELU(), nn.Linear(200, 70, bias=False))
    state = {name: tensor for name, tensor in source.state_dict().items() if not name.startswith("3.")}
    checkpoint.load_(target, state)
    assert torch.equal(target(x()), source[:3](x()))


def write_folder(folder, tensors, shards: int, config: dict | None = None) -> None:
    names = sorted(tensors)
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
    else:
        weight_map = {name: f"model-{i % shards + 1:05}-of-{shards:05}.safetensors" for i, name in enumerate(names)}
        for file in set(weight_map.values()):
            save_file({name: tensors[name] for name in names if weight_map[name] == file}, folder / file)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))


def described(activations) -> dict:
    groups = {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 8}, "input_activations": activations}}
    return {"quantization_config": {"quant_method": "compressed-tensors", "config_groups": groups}}


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("config", [None, {}, described({"num_bits": 8, "dynamic": True, "symmetric": True})])
def test_a_folder_loads_whole_or_in_shards(tmp_path, shards, config):
    write_folder(tmp_path, foreign(), shards, config)
    target = small()
    assert checkpoint.load_(target, tmp_path).replaced == ("0",)
    assert torch.equal(target[0].weight, foreign()["0.weight"])


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (described(None), "got weights only in group group_0"),
        (described({"num_bits": 8, "symmetric": False}), "got fixed ones in group group_0"),
    ],
)
def test_a_folder_that_means_something_else_is_refused(tmp_path, config, words):
    write_folder(tmp_path, foreign(), 1, config)
    with pytest.raises(ValueError, match="^checkpoint.load_: expected .*; got .*; fix: ") as raised:
        checkpoint.load_(small(), tmp_path)
    assert words in str(raised.value)


def test_a_folder_says_that_activations_have_zero_points(tmp_path):
    write_folder(tmp_path, foreign(), 1, described({"num_bits": 8, "symmetric": False, "dynamic": True}))
    target = small()
    checkpoint.load_(target, tmp_path)
    assert target[0].scheme == "int8_dynamic_asymmetric"
    assert torch.equal(target[0].azp_adj, foreign()["0.weight"].sum(1).to(torch.int32))


def test_a_folder_of_two_schemes_is_refused(tmp_path):
    config = described({"symmetric": True})
    groups = config["quantization_config"]["config_groups"]
    groups["group_1"] = {"input_activations": {"symmetric": False, "dynamic": True}}
    write_folder(tmp_path, foreign(), 1, config)
    with pytest.raises(ValueError, match="all symmetric or all asymmetric; got both"):
        checkpoint.load_(small(), tmp_path)


def test_an_index_may_not_lead_out_of_its_folder(tmp_path):
    inside = tmp_path / "inside"
    inside.mkdir()
    save_file(foreign(), tmp_path / "model.safetensors")
    index = {"weight_map": dict.fromkeys(foreign(), "../model.safetensors")}
    (inside / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="names of files beside"):
        checkpoint.load_(small(), inside)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"0.weight_scale": None}, "expected 0.weight_scale beside a weight of torch.int8; got none"),
        (
            {"0.weight": torch.ones(24, 41, dtype=torch.int8)},
            "expected 0.weight [24, 40], as in the model; got [24, 41]",
        ),
        ({"0.weight_scale": torch.ones(12, 1)}, "0: QuantLinear: expected weight_scale float32 of shape"),
        ({"0.weight_zero_point": torch.zeros(24, 1)}, "got 0.weight_zero_point (asymmetric weights)"),
        ({"0.input_zero_point": torch.zeros(1)}, "got 0.input_zero_point (static asymmetric activations)"),
        (
            {"0.weight": None, "0.weight_packed": torch.zeros(24, 5)},
            "got 0.weight_packed (weights of fewer than 8 bits)",
        ),
        ({"0.weight_g_idx": torch.zeros(40)}, "got 0.weight_g_idx (reordered weight groups)"),
    ],
)
def test_tensors_that_a_layer_cannot_honour_are_refused_before_anything_changes(changes, words):
    target = nn.Sequential(nn.Linear(40, 24), nn.Linear(24, 24))
    state = foreign(**changes) | {f"1.{name}": tensor for name, tensor in quantized_layer(24, 24).items()}
    before = target[0].weight.clone()
    with pytest.raises(ValueError, match="^checkpoint.load_: ") as raised:
        checkpoint.load_(target, state)
    assert words in str(raised.value) and "; fix: " in str(raised.value)
    assert [type(module) for module in target] == [nn.Linear, nn.Linear]
    assert torch.equal(target[0].weight, before)


def quantized_layer(n: int, k: int) -> dict[str, torch.Tensor]:
    return {"weight": torch.ones(n, k, dtype=torch.int8), "weight_scale": torch.ones(n, 1), "bias": torch.zeros(n)}


# ---- names --------------------------------------------------------------------------------------------------------------


def test_strict_names_what_is_missing_and_what_is_not_expected():
    state = foreign() | {"other": torch.ones(1)}
    del state["0.bias"]
    with pytest.raises(RuntimeError, match=r"missing \['0.bias'\], unexpected \['other'\]; fix: "):
        checkpoint.load_(small(), state)
    report = checkpoint.load_(small(), state, strict=False)
    assert report == checkpoint.LoadReport(("0",), ("0.bias",), ("other",))


def test_no_such_file_is_named(tmp_path):
    for path in (tmp_path, tmp_path / "none.safetensors"):
        with pytest.raises(FileNotFoundError, match="which does not exist; fix: "):
            checkpoint.load_(small(), path)


class Tied(nn.Module):
    """Two linear layers of one weight, and a head that shares its weight with an embedding."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(50, 32)
        self.first, self.second = nn.Linear(32, 32), nn.Linear(32, 32)
        self.second.weight = self.first.weight
        self.head = nn.Linear(32, 50, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids):
        return self.head(self.second(self.first(self.embed(ids))))


@pytest.mark.parametrize(
    "config",
    [
        evergemm.Int8Dynamic(),
        evergemm.Int8Dynamic(asymmetric=True),
        evergemm.Int8Static(calibration=[torch.arange(50)]),
        evergemm.Fp8Block(),
    ],
)
def test_tied_weights_are_stored_once_and_tied_again(config, tmp_path):
    torch.manual_seed(0)
    source, ids = Tied(), torch.arange(50)
    evergemm.quantize_(source, config)
    checkpoint.save(source, tmp_path / "a.safetensors")
    names = set(load_file(tmp_path / "a.safetensors"))
    assert {"first.weight", "embed.weight", "second.bias"} <= names
    assert not {"second.weight", "second.weight_scale", "head.weight"} & names
    torch.manual_seed(1)
    target = Tied()
    report = checkpoint.load_(target, tmp_path / "a.safetensors")
    assert report == checkpoint.LoadReport(("first", "second"), (), ())
    assert torch.equal(target(ids), source(ids))
    assert target.second.weight.data_ptr() == target.first.weight.data_ptr()
    assert target.head.weight is target.embed.weight
    checkpoint.save(target, tmp_path / "b.safetensors")
    assert sha256(tmp_path / "b.safetensors") == sha256(tmp_path / "a.safetensors")


def test_an_unquantized_model_goes_through_too(tmp_path):
    source, target = model(), model(seed=1)
    checkpoint.save(source, tmp_path / "a.safetensors")
    assert checkpoint.load_(target, tmp_path / "a.safetensors").replaced == ()
    assert torch.equal(target(x()), source(x()))


def test_views_and_transposes_are_stored_as_what_they_show(tmp_path):
    source = nn.Module()
    storage = torch.arange(24.0)
    source.register_buffer("view", storage[6:18])
    source.register_buffer("transposed", storage.view(4, 6).t())
    checkpoint.save(source, tmp_path / "a.safetensors")
    stored = load_file(tmp_path / "a.safetensors")
    assert torch.equal(stored["view"], storage[6:18])
    assert torch.equal(stored["transposed"], storage.view(4, 6).t())
