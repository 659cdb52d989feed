"""Every two values of different fields: they go together and keep the invariants, or are refused by name.

`pytest -m slow tests/model/test_pairs.py` lets every pair generate and traces it too, and draws more configs.
"""

import copy
import re
from typing import get_args

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedConfig

from baichuan_hf import BaichuanConfig
from baichuan_hf.model.experts import EXPERTS
from tests.helpers import REPOSITORY, pairs
from tests.helpers.invariants import (
    INVARIANTS,
    SLOW_INVARIANTS,
    check_bfloat16,
    check_cache,
    check_future,
    check_generation,
    check_invariants,
    check_padding,
    check_saved,
    check_shape_and_dtype,
)
from tests.helpers.pairs import Value, all_pairs, all_values, axes, build_config, identity, known_identities


VALUES = {str(value): value for value in all_values()}
WAY_OUT = re.compile(r"\b(use|drop|set|give|must be)\b")


def failures_of(groups, invariants=INVARIANTS) -> list[str]:
    """What is wrong with some groups of values, each by the group's name; a model is checked once."""
    found, checked = [], set()
    for group in groups:
        config = build_config(*group)
        name = " with ".join(map(str, group))
        if isinstance(config, str):
            if len(group) == 1:
                found.append(f"{name} is refused: {config}")
            elif not pairs.names_both(config, *group):
                found.append(f"{name} is refused, but not by the names of both: {config}")
            elif not WAY_OUT.search(config):
                found.append(f"{name} is refused, but nothing says what to do: {config}")
            continue
        if identity(config) in checked:
            continue
        checked.add(identity(config))
        try:
            check_invariants(config, invariants)
        except Exception as error:
            found.append(f"{name}: {type(error).__name__}: {error}")
    return found


def pairs_of(first: Value):
    """The pairs that begin with a value; those that make the model of a single value are left to the test of that."""
    known = known_identities()
    for pair in all_pairs():
        if pair[0] == first:
            config = build_config(*pair)
            if isinstance(config, str) or identity(config) not in known:
                yield pair


def test_every_field_is_varied_or_known_not_to_be():
    own = set(BaichuanConfig.__dataclass_fields__) - set(PreTrainedConfig.__dataclass_fields__)
    shared = {"is_causal", "add_cross_attention", "tie_word_embeddings", "cross_attention_hidden_size"}
    assert own - pairs.NOT_VARIED <= set(axes()) | {"keys_to_ignore_at_inference"}
    assert set(axes()) <= own | shared
    assert set(EXPERTS) == {value.value for value in axes()["gated_mlp"]}


def names_in(hint) -> set:
    """The strings that a type allows: those of `Literal["a", "b"]`, also of `Literal["a"] | None`."""
    return {name for part in get_args(hint) for name in (names_in(part) or {part}) if isinstance(name, str)}


@pytest.mark.parametrize("field", pairs.FAMILIES)
def test_allowed_names_are_those_of_the_mapping(field):
    hint = BaichuanConfig.__annotations__[field]
    assert names_in(hint) == {name for name in pairs.FAMILIES[field] if isinstance(name, str)}


def test_the_written_table_is_current():
    """After a change of values or refusals: `python -m tests.helpers.pairs tests/benchmarks/pair_matrix.md`."""
    table, failures = pairs.render(check=lambda config: None)
    assert not failures
    written = REPOSITORY / "tests" / "benchmarks" / "pair_matrix.md"
    assert written.read_text(encoding="utf-8").splitlines() == table.splitlines()


@pytest.mark.parametrize("name", VALUES)
def test_value(name):
    assert not failures_of([(VALUES[name],)])


@pytest.mark.parametrize("name", VALUES)
def test_pairs(name):
    failures = failures_of(pairs_of(VALUES[name]))
    assert not failures, "\n".join(failures)


@pytest.mark.parametrize("name", VALUES)
def test_value_generates_and_traces(name):
    """The defaults do once, with the first of them."""
    value = VALUES[name]
    default = identity(build_config(value)) == identity(build_config())
    if not default or name == next(iter(VALUES)):
        assert not failures_of([(value,)], SLOW_INVARIANTS)


@pytest.mark.exhaustive
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", VALUES)
def test_pairs_generate_and_trace(name):
    failures = failures_of(pairs_of(VALUES[name]), SLOW_INVARIANTS)
    assert not failures, "\n".join(failures)


SIZES = {
    "hidden_size": st.sampled_from([24, 40]),
    "intermediate_size": st.sampled_from([24, 56]),
    "num_hidden_layers": st.integers(1, 3),
    "num_attention_heads": st.sampled_from([1, 3, 4, 6]),
    "num_key_value_heads": st.sampled_from([1, 2, 3]),
    "head_dim": st.sampled_from([5, 6, 16]),
    "sliding_window": st.sampled_from([1, 2, 5, 30]),
    "num_global_tokens": st.sampled_from([1, 5, 30]),
    "projected_length": st.sampled_from([1, 30]),
    "num_random_features": st.sampled_from([1, 7, 100]),
    "num_local_experts": st.sampled_from([1, 2, 7]),
    "relative_attention_num_buckets": st.sampled_from([3, 4, 9]),
}


def configs(max_values: int, max_sizes: int) -> st.SearchStrategy[tuple[tuple[Value, ...], dict[str, int]]]:
    """Values of several different fields, and sizes that replace those of the pairs."""
    values = st.lists(st.sampled_from(all_values()), max_size=max_values, unique_by=lambda value: value.field)
    names = st.lists(st.sampled_from(list(SIZES)), max_size=max_sizes, unique=True)
    sizes = names.flatmap(lambda chosen: st.fixed_dictionaries({name: SIZES[name] for name in chosen}))
    return st.tuples(values.map(tuple), sizes)


def check_drawn(values: tuple[Value, ...], sizes: dict[str, int], invariants) -> None:
    """A whole config is refused by the names of two of its fields, or its model keeps the invariants."""
    config = build_config(*values, **sizes)
    event("refused" if isinstance(config, str) else "built")
    if isinstance(config, str):
        named = {name for name in BaichuanConfig.__dataclass_fields__ if name in config}
        assert len(named) > 1, config
        assert WAY_OUT.search(config), config
        return
    again = BaichuanConfig.from_dict(copy.deepcopy(config.to_dict()))
    assert again.to_dict() == config.to_dict()
    check_invariants(config, invariants)


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(configs(max_values=10, max_sizes=3))
def test_whole_configs(drawn):
    check_drawn(*drawn, (check_shape_and_dtype, check_padding, check_future, check_cache, check_saved))


@pytest.mark.slow
@settings(deadline=None, max_examples=1000, suppress_health_check=[HealthCheck.too_slow])
@given(configs(max_values=16, max_sizes=5))
def test_many_whole_configs(drawn):
    # Rounding may send the tokens of a model with many experts and layers elsewhere.
    invariants = [invariant for invariant in INVARIANTS if invariant is not check_bfloat16]
    check_drawn(*drawn, [*invariants, check_generation])
