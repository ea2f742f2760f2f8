"""The registry of operations: complete, and every operation has a sample or a reason to have none."""

import re
from collections import defaultdict

from test_shardtensor_table import SAMPLES

import shardtensor as st
from shardtensor._operations import _NOTES

# Functions that torch calls differently inside, or that are an operator's old name.
INNER = {"log_sigmoid", "_threshold", "__idiv__", "__rdiv__"}

WITHOUT_SAMPLE = {
    "cuda": "needs a CUDA device",
    "autograd.grad": "its results are gradients: in test_shardtensor_ops.py",
    **dict.fromkeys(
        ("argwhere", "kron", "masked_scatter", "masked_scatter_", "masked_select", "nonzero"),
        "refuses every layout that splits something",
    ),
    **dict.fromkeys(
        ("gumbel_softmax", "multinomial", "normal", "random_"), "refuses: in test_shardtensor_random.py"
    ),
    **dict.fromkeys(
        [
            *(
                "alpha_dropout",
                "bernoulli",
                "bernoulli_",
                "dropout1d",
                "exponential_",
                "feature_alpha_dropout",
            ),
            *("normal_", "rand_like", "randint_like", "randn_like", "rrelu", "uniform_"),
        ],
        "one process draws other numbers: in test_shardtensor_random.py, on all layouts",
    ),
    **dict.fromkeys(
        ("alpha_dropout_", "dropout_", "feature_alpha_dropout_", "feature_dropout", "feature_dropout_"),
        "the function without _, or of channels, with the same handler: in test_shardtensor_random.py",
    ),
}


def short(name: str) -> str:
    return name.rpartition(".")[2]


def test_every_operation_has_a_sample():
    sampled = {sample.op for sample in SAMPLES}
    names = {operation.name for operation in st.operations()}
    missing = {name for name in names if short(name) not in sampled}
    assert missing - set(WITHOUT_SAMPLE) == set()
    assert set(WITHOUT_SAMPLE) <= missing, "these have samples now, or are no operations"
    assert sampled <= {short(name) for name in names}


def test_every_function_of_torch_with_a_handler_is_listed():
    names = {short(operation.name) for operation in st.operations()}
    handled = {
        re.sub("^(linalg|fft|special)_", "", function.__name__)
        for function in st.ShardTensor.handlers
        if (getattr(function, "__module__", None) or "torch").split(".")[0] == "torch"
    }
    assert handled - INNER <= names


def test_names_kinds_and_notes():
    table = st.operations()
    names = [operation.name for operation in table]
    assert len(names) == len(set(names))
    assert set(_NOTES) <= set(names)
    kinds = defaultdict(list)
    for operation in table:
        assert operation.kind
        kinds[operation.kind].append(operation)
    assert all(
        operation.note.startswith("refuses") for operation in table if operation.name in ("kron", "normal")
    )
    assert next(operation for operation in table if operation.name == "sort").note.startswith("gathers")
    assert [o.name for o in kinds["attention"]] == [
        "multi_head_attention_forward",
        "scaled_dot_product_attention",
    ]
