"""Published configurations and their oddities load; wrong values are refused by name."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

import baichuan_hf
from baichuan_hf import BaichuanConfig
from tests.helpers import tiny_config


COMMON = {
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "model_type": "baichuan",
    "rms_norm_eps": 1e-06,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
}
AUTO_MAP = {
    "AutoConfig": "configuration_baichuan.BaichuanConfig",
    "AutoModelForCausalLM": "modeling_baichuan.BaichuanForCausalLM",
}
SMALL = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32}
LARGE = {"hidden_size": 5120, "intermediate_size": 13696, "num_hidden_layers": 40, "num_attention_heads": 40}

# The config.json of each family in its published form, and what follows from it: positions, normalised head.
PUBLISHED = {
    "baichuan-7b": (
        {
            **COMMON,
            **SMALL,
            "architectures": ["BaiChuanForCausalLM"],
            "auto_map": {
                "AutoConfig": "configuration_baichuan.BaiChuanConfig",
                "AutoModelForCausalLM": "modeling_baichuan.BaiChuanForCausalLM",
            },
            "max_position_embeddings": 4096,
            "torch_dtype": "float16",
            "vocab_size": 64000,
        },
        ("rope", False),
    ),
    "baichuan-13b": (
        {
            **COMMON,
            **LARGE,
            "_from_model_config": True,
            "auto_map": AUTO_MAP,
            "gradient_checkpointing": [False],
            "model_max_length": 4096,
            "vocab_size": 64000,
        },
        ("alibi", False),
    ),
    "baichuan2-7b": (
        {
            **COMMON,
            **SMALL,
            "_from_model_config": True,
            "auto_map": AUTO_MAP,
            "tokenizer_class": "BaichuanTokenizer",
            "max_position_embeddings": 4096,
            "model_max_length": 4096,
            "vocab_size": 125696,
        },
        ("rope", True),
    ),
    "baichuan2-13b": (
        {
            **COMMON,
            **LARGE,
            "_from_model_config": True,
            "auto_map": AUTO_MAP,
            "tokenizer_class": "BaichuanTokenizer",
            "gradient_checkpointing": False,
            "model_max_length": 4096,
            "vocab_size": 125696,
            "z_loss_weight": 0,
        },
        ("alibi", True),
    ),
}


@pytest.fixture
def write(tmp_path):
    """A folder with a config.json of these keys."""

    def write_config(values):
        (tmp_path / "config.json").write_text(json.dumps(values))
        return tmp_path

    return write_config


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_config(write, tmp_path, name):
    published, (positions, normalised) = PUBLISHED[name]
    config = AutoConfig.from_pretrained(write(published))
    assert type(config) is BaichuanConfig
    assert (config.position_embedding_type, config.normalize_lm_head) == (positions, normalised)
    assert config.max_position_embeddings == config.model_max_length == 4096
    assert config.z_loss_weight == 0
    assert config.head_dim == 128
    assert config.num_key_value_heads == config.num_attention_heads
    for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size", "rms_norm_eps", "hidden_act"):
        assert getattr(config, key) == published[key]

    config.save_pretrained(tmp_path / "again")
    saved = json.loads((tmp_path / "again" / "config.json").read_text())
    assert (saved["position_embedding_type"], saved["normalize_lm_head"]) == (positions, normalised)
    assert "auto_map" not in saved
    assert not isinstance(saved.get("gradient_checkpointing"), list)
    again = AutoConfig.from_pretrained(tmp_path / "again")
    assert again.to_diff_dict() | {"_name_or_path": ""} == config.to_diff_dict() | {"_name_or_path": ""}


@pytest.mark.parametrize("name", PUBLISHED)
def test_preset_is_the_published_config(write, name):
    published = AutoConfig.from_pretrained(write(PUBLISHED[name][0]))
    preset = BaichuanConfig.from_preset(name)
    assert name in baichuan_hf.list_presets()
    fields = (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "hidden_act",
    )
    fields += ("num_key_value_heads", "position_embedding_type", "normalize_lm_head", "max_position_embeddings")
    fields += (
        "rms_norm_eps",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "tie_word_embeddings",
        "rope_parameters",
    )
    assert {f: getattr(preset, f) for f in fields} == {f: getattr(published, f) for f in fields}


TINY = {
    "model_type": "baichuan",
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


@pytest.mark.parametrize(
    "keys, positions",
    [
        ({"model_max_length": 32}, "alibi"),
        ({"model_max_length": 32, "max_position_embeddings": 32}, "rope"),
        ({"max_position_embeddings": 32}, "rope"),
        ({}, "rope"),
        ({"model_max_length": 32, "max_position_embeddings": None}, "alibi"),
        ({"model_max_length": 32, "position_embedding_type": "rope"}, "rope"),
        ({"max_position_embeddings": 32, "position_embedding_type": "alibi"}, "alibi"),
    ],
    ids=["alibi", "both-lengths", "rope", "neither", "null", "given-rope", "given-alibi"],
)
def test_positions_are_inferred_from_the_length_keys(write, keys, positions):
    config = AutoConfig.from_pretrained(write(TINY | keys))
    assert config.position_embedding_type == positions
    assert (
        BaichuanConfig(**{k: v for k, v in (TINY | keys).items() if k != "model_type"}).position_embedding_type
        == positions
    )
    if keys:
        assert config.max_position_embeddings == config.model_max_length == 32


@pytest.mark.parametrize("vocab_size, normalised", [(64000, False), (125695, False), (125696, True), (125700, True)])
def test_normalised_head_is_inferred_from_the_vocabulary(write, vocab_size, normalised):
    folder = write(TINY | {"vocab_size": vocab_size})
    assert AutoConfig.from_pretrained(folder).normalize_lm_head is normalised
    assert AutoConfig.from_pretrained(folder, normalize_lm_head=not normalised).normalize_lm_head is not normalised


def test_the_caller_wins(write):
    folder = write(TINY | {"model_max_length": 32})
    config = AutoConfig.from_pretrained(folder, position_embedding_type="rope", normalize_lm_head=True)
    assert (config.position_embedding_type, config.normalize_lm_head) == ("rope", True)
    assert config.rope_parameters["rope_theta"] == 10000
    model = AutoModelForCausalLM.from_config(config)
    assert type(model.model.positions).__name__ == "RotaryEmbedding"


@pytest.mark.parametrize(
    "oddity",
    [
        {"gradient_checkpointing": [False]},
        {"gradient_checkpointing": [True]},
        {"gradient_checkpointing": True},
        {"auto_map": AUTO_MAP},
        {"_from_model_config": True, "transformers_version": "4.29.2"},
        {"some_unknown_key": {"nested": [1, 2]}},
        {"rope_scaling": None, "rope_theta": 10000.0},
        {"torch_dtype": "float16"},
        {"use_cache": False, "z_loss_weight": 0},
        {"pad_token_id": None, "bos_token_id": None},
        {"architectures": ["BaiChuanForCausalLM"]},
        {"tokenizer_class": None},
    ],
    ids=lambda oddity: "-".join(oddity),
)
@pytest.mark.parametrize("length", ["model_max_length", "max_position_embeddings"])
def test_historical_oddities_load(write, tmp_path, oddity, length):
    config = AutoConfig.from_pretrained(write(TINY | {length: 32} | oddity))
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert again.config.position_embedding_type == config.position_embedding_type
    if "some_unknown_key" in oddity:
        assert again.config.some_unknown_key == oddity["some_unknown_key"]


def test_dtype_of_the_file_is_the_dtype_of_the_model(write, tmp_path):
    config = AutoConfig.from_pretrained(write(TINY | {"torch_dtype": "bfloat16"}))
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "saved")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert str(model.dtype) == "torch.bfloat16"


# Field, wrong value, and parts that the message must hold: what is allowed, or the constraint.
WRONG = [
    ("vocab_size", "64", ["vocab_size", "64", "int"]),
    ("vocab_size", 64.0, ["vocab_size", "64.0", "int"]),
    ("vocab_size", 0, ["vocab_size", "0", "at least 1"]),
    ("hidden_size", -8, ["hidden_size", "-8"]),
    ("num_hidden_layers", 0, ["num_hidden_layers", "0"]),
    ("num_attention_heads", 3, ["num_attention_heads", "3", "hidden_size", "64"]),
    ("num_key_value_heads", 3, ["num_attention_heads", "4", "num_key_value_heads", "3"]),
    ("hidden_act", "sillu", ["hidden_act", "sillu", "silu"]),
    ("position_embedding_type", "rotary", ["position_embedding_type", "rotary", "rope", "alibi"]),
    ("norm_type", "batch_norm", ["norm_type", "batch_norm", "rms_norm"]),
    ("norm_position", "middle", ["norm_position", "middle", "pre"]),
    ("attention_type", "quadratic", ["attention_type", "quadratic", "softmax"]),
    ("attention_dropout", 1.5, ["attention_dropout", "1.5", "0", "1"]),
    ("normalize_lm_head", "yes", ["normalize_lm_head", "yes", "bool"]),
    ("rope_parameters", {"rope_type": "linera", "factor": 2.0}, ["rope_type", "linera", "linear", "yarn"]),
    ("alibi_scaling", {"alibi_type": "ntk", "factor": 2.0}, ["alibi_scaling", "position_embedding_type", "rope"]),
    ("layer_types", ["full_attention", "half_attention"], ["layer_types", "half_attention", "sliding_attention"]),
    ("layer_types", ["full_attention"], ["layer_types", "num_hidden_layers", "2"]),
    ("layer_types", ["sliding_attention"] * 2, ["sliding_window"]),
    ("sliding_window", 0, ["sliding_window", "0"]),
    ("head_dim", 7, ["head_dim", "7", "even"]),
    ("rms_norm_eps", "small", ["rms_norm_eps", "small", "float"]),
    ("initializer_type", "he", ["initializer_type", "he", "kaiming_normal"]),
    ("num_local_experts", -1, ["num_local_experts", "-1", "at least 0"]),
    ("num_experts_per_tok", 0, ["num_experts_per_tok", "0", "at least 1"]),
    ("moe_layer_interval", 0, ["moe_layer_interval", "0", "at least 1"]),
    ("num_global_tokens", -1, ["num_global_tokens", "-1", "at least 0"]),
    ("type_vocab_size", -2, ["type_vocab_size", "-2", "at least 0"]),
    ("projected_length", 0, ["projected_length", "0", "at least 1"]),
    ("num_random_features", 0, ["num_random_features", "0", "at least 1"]),
    ("layer_drop", 1.0, ["layer_drop", "1.0", "below 1"]),
    ("hidden_dropout", -0.1, ["hidden_dropout", "-0.1", "at least 0"]),
    ("gated_mlp", "no", ["gated_mlp", "no", "bool"]),
]


@pytest.mark.parametrize("field, value, parts", WRONG, ids=[f"{field}={value}" for field, value, _ in WRONG])
def test_wrong_values_are_refused(write, field, value, parts):
    with pytest.raises(Exception) as error:
        tiny_config(**{field: value})
    for part in parts:
        assert part in str(error.value)
    # As an override of a file, the same.
    with pytest.raises(Exception) as error:
        AutoConfig.from_pretrained(write(tiny_config().to_dict()), **{field: value})
    assert parts[0] in str(error.value)


ALIBI_WRONG = [
    ({"rope_parameters": {"rope_type": "linear", "factor": 2.0}}, ["rope_parameters", "alibi"]),
    ({"alibi_scaling": {"alibi_type": "cubic", "factor": 2.0}}, ["alibi_type", "cubic", "ntk"]),
    ({"alibi_scaling": {"alibi_type": "ntk"}}, ["factor", "None"]),
    ({"alibi_scaling": {"alibi_type": "linear", "factor": 0.5}}, ["factor", "0.5"]),
    ({"alibi_scaling": {"alibi_type": "dynamic", "factor": 2.0}}, ["factor", "dynamic"]),
    ({"alibi_scaling": {"alibi_type": "ntk", "factor": 2.0, "speed": 3}}, ["speed", "factor"]),
]


@pytest.mark.parametrize("overrides, parts", ALIBI_WRONG, ids=[str(list(o.values())[0]) for o, _ in ALIBI_WRONG])
def test_wrong_alibi_values_are_refused(overrides, parts):
    with pytest.raises(Exception) as error:
        tiny_config(position_embedding_type="alibi", **overrides)
    for part in parts:
        assert part in str(error.value)


ENCODER = {"is_causal": False}
# Values that contradict each other, and parts that the message must hold: both fields, their values, the way out.
CONTRADICTIONS = [
    (
        {"norm_type": "deep_norm", "norm_position": "pre"},
        ["norm_type='deep_norm'", "norm_position='pre'", "use norm_position='post'"],
    ),
    (
        {"norm_type": "deep_norm", "norm_position": "sandwich"},
        ["norm_type='deep_norm'", "norm_position='sandwich'", "use norm_position='post'"],
    ),
    (
        {"initializer_type": "deep_net", "norm_type": "layer_norm"},
        ["initializer_type='deep_net'", "norm_type='layer_norm'", "use norm_type='deep_norm'"],
    ),
    (
        {"attention_type": "linformer", "position_embedding_type": "none"},
        ["attention_type='linformer'", "is_causal=True", "use is_causal=False"],
    ),
    ({"attention_type": "performer"}, ["attention_type='performer'", "is_causal=True", "use is_causal=False"]),
    (
        {"attention_type": "linformer", **ENCODER},
        ["attention_type='linformer'", "position_embedding_type='rope'", "'sinusoidal' or 'learned' or 'none'"],
    ),
    (
        {"attention_type": "performer", "position_embedding_type": "relative", **ENCODER},
        ["attention_type='performer'", "position_embedding_type='relative'", "'rope'"],
    ),
    (
        {"attention_type": "performer", "attention_dropout": 0.1, **ENCODER},
        ["attention_type='performer'", "attention_dropout=0.1", "use attention_dropout=0.0"],
    ),
    (
        {"attention_type": "performer", "sliding_window": 4, **ENCODER},
        ["attention_type='performer'", "sliding_window=4", "use sliding_window=None"],
    ),
    (
        {"num_local_experts": 4, "num_experts_per_tok": 5},
        ["num_experts_per_tok (5)", "at most", "num_local_experts (4)"],
    ),
    ({"num_local_experts": 4, "mlp_bias": True}, ["num_local_experts=4", "mlp_bias=True", "use mlp_bias=False"]),
    ({"add_cross_attention": True, **ENCODER}, ["add_cross_attention=True", "is_causal=False", "use is_causal=True"]),
    (
        {"add_cross_attention": True, "sliding_window": 4},
        ["add_cross_attention=True", "sliding_window=4", "use sliding_window=None"],
    ),
    (
        {"num_global_tokens": 2, "sliding_window": 4},
        ["num_global_tokens=2", "is_causal=True", "use is_causal=False"],
    ),
    ({"num_global_tokens": 2, **ENCODER}, ["num_global_tokens=2", "set sliding_window"]),
    (
        {"num_global_tokens": 2, "sliding_window": 4, "position_embedding_type": "alibi", **ENCODER},
        ["num_global_tokens=2", "position_embedding_type='alibi'", "'rope'"],
    ),
    ({"sliding_window": 0}, ["sliding_window (0)", "at least 1"]),
    ({"sliding_window": 1}, ["sliding_window (1)", "at least 2", "is_causal=True"]),
    ({"sliding_window": -3, **ENCODER}, ["sliding_window (-3)", "at least 1"]),
    ({"layer_types": ["full_attention"] * 3}, ["layer_types", "3", "num_hidden_layers", "2"]),
    ({"num_key_value_heads": 8}, ["num_attention_heads (4)", "multiple", "num_key_value_heads (8)"]),
    ({"image_size": 30}, ["image_size (30)", "multiple", "patch_size (16)"]),
    (
        {"position_embedding_type": "relative", "relative_attention_max_distance": 16},
        ["relative_attention_max_distance (16)", "relative_attention_num_buckets (32)"],
    ),
    (
        {"position_embedding_type": "learned", "rope_parameters": {"rope_type": "linear", "factor": 2.0}},
        ["rope_parameters", "position_embedding_type is 'learned'", "use position_embedding_type='rope'"],
    ),
    (
        {"position_embedding_type": "none", "alibi_scaling": {"alibi_type": "dynamic"}},
        ["alibi_scaling", "position_embedding_type is 'none'", "use position_embedding_type='alibi'"],
    ),
]


@pytest.mark.parametrize("fields, parts", CONTRADICTIONS, ids=["-".join(fields) for fields, _ in CONTRADICTIONS])
def test_contradictions_are_refused(write, fields, parts):
    with pytest.raises(Exception) as error:
        tiny_config(**fields)
    for part in parts:
        assert part in str(error.value)
    # From a file, the same.
    file = tiny_config().to_dict() | {"rope_parameters": None, "layer_types": None} | fields
    with pytest.raises(Exception) as error:
        AutoConfig.from_pretrained(write(file))
    assert parts[0] in str(error.value)


SETTINGS = [
    {"position_embedding_type": "sinusoidal"},
    {"norm_type": "layer_norm"},
    {"norm_position": "post"},
    {"gated_mlp": False},
    {"norm_bias": True},
    {"embedding_norm": True},
    {"embedding_multiplier": 2.0},
    {"final_norm": False},
    {"type_vocab_size": 2},
    {"is_causal": False},
    {"attention_type": "linformer", "position_embedding_type": "none", **ENCODER},
    {"num_global_tokens": 1, "sliding_window": 4, **ENCODER},
    {"num_local_experts": 8},
    {"layer_drop": 0.9},
    {"hidden_dropout": 0.5},
]


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: next(iter(setting)))
def test_no_setting_is_ignored(setting):
    """Against the same model without the first of its fields: other parameters, or another result."""
    import torch

    ids = torch.arange(3, 12)[None]
    without = {field: value for field, value in setting.items() if field != next(iter(setting))}
    outputs, names = [], []
    for values in (setting, without):
        torch.manual_seed(0)
        model = baichuan_hf.BaichuanModel(tiny_config(**values)).train()
        names.append({name for name, _ in model.named_parameters()})
        outputs.append(model(ids).last_hidden_state)
    assert names[0] != names[1] or not torch.allclose(*outputs)


def test_unknown_names():
    with pytest.raises(ValueError, match="baichuan-7c") as error:
        BaichuanConfig.from_preset("baichuan-7c")
    assert "baichuan-7b" in str(error.value)
    with pytest.raises(ValueError, match="hiden_size") as error:
        BaichuanConfig.from_preset("baichuan-7b", hiden_size=8)
    assert "hidden_size" in str(error.value)


def test_overrides_of_a_preset():
    config = BaichuanConfig.from_preset("baichuan2-13b", num_hidden_layers=2, z_loss_weight=2e-4)
    assert (config.num_hidden_layers, config.z_loss_weight, config.hidden_size) == (2, 2e-4, 5120)
    assert len(config.layer_types) == 2


def test_the_callers_rope_parameters_stay_as_they_are():
    given_parameters = {"rope_type": "linear", "factor": 2.0}
    config = tiny_config(rope_parameters=given_parameters)
    assert given_parameters == {"rope_type": "linear", "factor": 2.0}
    assert config.rope_parameters["rope_theta"] == 10000


def test_assignment_is_checked():
    config = tiny_config()
    with pytest.raises(Exception, match="vocab_size"):
        config.vocab_size = "many"


@settings(deadline=None, max_examples=25)
@given(
    heads=st.sampled_from([1, 2, 3, 4, 6]),
    groups=st.sampled_from([1, 2, 3]),
    head_dim=st.sampled_from([2, 4, 8]),
    positions=st.sampled_from(["rope", "alibi"]),
    normalised=st.booleans(),
    layers=st.integers(1, 3),
    window=st.sampled_from([None, 2, 4]),
    bias=st.booleans(),
    act=st.sampled_from(["silu", "gelu", "relu"]),
)
def test_every_valid_draw_builds_runs_and_comes_back(
    tmp_path_factory, heads, groups, head_dim, positions, normalised, layers, window, bias, act
):
    import torch

    config = BaichuanConfig(
        vocab_size=16,
        hidden_size=24,
        intermediate_size=16,
        num_hidden_layers=layers,
        num_attention_heads=heads * groups,
        num_key_value_heads=heads,
        head_dim=head_dim,
        position_embedding_type=positions,
        normalize_lm_head=normalised,
        sliding_window=window,
        attention_bias=bias,
        mlp_bias=bias,
        hidden_act=act,
    )
    model = baichuan_hf.BaichuanForCausalLM(config).eval()
    ids = torch.arange(3, 11)[None]
    folder = tmp_path_factory.mktemp("draw")
    model.save_pretrained(folder)
    again = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        assert torch.equal(again(ids).logits, model(ids).logits)
    # The dtype and architecture are added when a model is saved.
    written = {"dtype", "architectures", "_name_or_path", "transformers_version"}
    assert {k: v for k, v in again.config.to_dict().items() if k not in written} == {
        k: v for k, v in config.to_dict().items() if k not in written
    }
