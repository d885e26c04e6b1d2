"""Whatever one key or tensor of a sound file is turned into, the file is understood or refused with a sentence."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.architectures import read_architecture
from engine.errors import RealmError
from engine.gguf import GGUFFile

NAMES = ["llama-yarn", "gemma3", "gpt-oss", "deepseek2", "lfm2", "phi3", "qwen2moe"]

VALUES = st.one_of(
    st.integers(-3, 600),
    st.sampled_from([2**31, 2**32 - 1, 2**63, -(2**63)]),
    st.floats(width=32),
    st.booleans(),
    st.sampled_from(["", "yarn", "longrope", "none", "spiral", "\udcff"]),
    st.sampled_from([[], [1, 2, 3], [0, 0, 0], [2**32] * 2, [-1, 2]]).map(np.array),
    st.sampled_from([[True, False], [False] * 3]).map(np.array),
    st.just(["a", "b"]),
)


@pytest.fixture(scope="module", params=NAMES)
def sound(request: pytest.FixtureRequest, fixtures_dir: Path) -> GGUFFile:
    return GGUFFile.open(fixtures_dir / "tiny_models" / f"{request.param}.gguf")


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_changed_file_is_understood_or_refused(sound: GGUFFile, data: st.DataObject) -> None:
    file = copy.copy(sound)
    metadata, tensors = dict(sound.metadata), dict(sound.tensors)
    file.metadata, file.tensors = metadata, tensors
    keys = sorted(key for key in metadata if key.startswith(f"{sound.architecture}."))
    match data.draw(st.sampled_from(["key", "key", "no key", "no tensor", "tensor"])):
        case "key":
            key = data.draw(st.sampled_from(keys))
            metadata[key] = data.draw(VALUES)
            file.value_types = {**sound.value_types, key: type(metadata[key]).__name__}
        case "no key":
            del metadata[data.draw(st.sampled_from(keys))]
        case "no tensor":
            del tensors[data.draw(st.sampled_from(sorted(tensors)))]
        case "tensor":
            name = data.draw(st.sampled_from(sorted(tensors)))
            shape = tuple(data.draw(st.lists(st.integers(1, 600), min_size=1, max_size=4)))
            tensors[name] = replace(tensors[name], shape=shape)
    message = "."
    try:
        read_architecture(file)
    except RealmError as error:
        message = error.message
    assert message.endswith(".")
