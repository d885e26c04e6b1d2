"""A model whose next token is a function of the tokens that its KV cache holds, and a tokenizer of bytes.

The model reads a sequence's history back through the block table, as attention does: a wrong block, a wrong
position or a block shared with somebody who writes into it changes the answer.
"""

from __future__ import annotations

import codecs
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.api import DeviceInfo, LoadOptions, ModelInfo, SamplingParams
from engine.batch import KV_BLOCK, Batch, MemoryUse, nothing
from engine.engine import Loader
from engine.sampling import Sampler

BOS, END = 256, 257
N_VOCAB = 260
GREEDY = SamplingParams(temperature=0)
DEVICE = DeviceInfo("fake", "Fake", "Nobody", "cpu", "", 0)

History = tuple[int, ...]


def hashed_logits(history: History) -> np.ndarray[Any, np.dtype[np.float32]]:
    seed = zlib.crc32(np.array(history, np.int32).tobytes())
    logits = np.random.default_rng(seed).standard_normal(N_VOCAB).astype(np.float32) * 2
    logits[END] -= 2.0
    return logits


def scripted(answer: bytes | list[int]) -> Callable[[History], np.ndarray[Any, np.dtype[np.float32]]]:
    """After a prompt that ends with BOS, `answer` token by token, then END for ever."""

    def logits(history: History) -> np.ndarray[Any, np.dtype[np.float32]]:
        said = len(history) - 1 - history.index(BOS)
        out = np.zeros(N_VOCAB, np.float32)
        out[answer[said] if said < len(answer) else END] = 20.0
        return out

    return logits


def lone_run(prompt: list[int], n: int, params: SamplingParams = GREEDY, ignore_eos: bool = False) -> list[int]:
    """What the hashed model answers to a prompt, without engine, batch or cache."""
    sampler, tokens = Sampler(params, N_VOCAB), list(prompt)
    while len(tokens) < len(prompt) + n:
        tokens.append(sampler.sample(hashed_logits(tuple(tokens)), tokens))
        if tokens[-1] == END and not ignore_eos:
            break
    return tokens[len(prompt) :]


class FakeModel:
    device = DEVICE
    n_vocab = N_VOCAB
    weight_bytes_per_token = 1_000_000
    hidden_width = 3

    def __init__(
        self,
        n_blocks: int = 64,
        max_rows: int = 64,
        logits: Callable[[History], np.ndarray[Any, np.dtype[np.float32]]] = hashed_logits,
        before: Callable[[Batch], None] = lambda batch: None,
    ) -> None:
        self.n_blocks = n_blocks
        self.max_rows = max_rows
        self.before = before
        self.logits = logits
        self.batches: list[Batch] = []
        self.closed = False
        self._cache = np.full((n_blocks, KV_BLOCK), -1, np.int64)

    def forward(self, batch: Batch) -> np.ndarray[Any, np.dtype[np.float32]]:
        assert not self.closed
        self.before(batch)
        self._check(batch)
        self.batches.append(batch)
        for token, position, sequence in zip(batch.tokens, batch.positions, batch.sequences, strict=True):
            self._cache[batch.block_tables[sequence, position // KV_BLOCK], position % KV_BLOCK] = token
        rows = [self.logits(self._history(batch, row)) for row in batch.logit_rows]
        return np.array(rows, np.float32).reshape(len(rows), self.n_vocab)

    def hidden(self, batch: Batch) -> np.ndarray[Any, np.dtype[np.float32]]:
        """The token, its position and a number that depends on everything up to it."""
        self.forward(batch)
        histories = [self._history(batch, row) for row in batch.logit_rows]
        rows = [(h[-1], len(h) - 1, sum(i * token for i, token in enumerate(h, 1))) for h in histories]
        return np.array(rows, np.float32).reshape(-1, self.hidden_width)

    def _history(self, batch: Batch, row: int) -> History:
        length = int(batch.positions[row]) + 1
        history = self._cache[batch.block_tables[batch.sequences[row]]].reshape(-1)[:length]
        return tuple(history.tolist())

    def _check(self, batch: Batch) -> None:
        n = len(batch.tokens)
        assert 0 < n <= self.max_rows
        for array in (batch.tokens, batch.positions, batch.sequences, batch.block_tables, batch.logit_rows):
            assert array.dtype == np.int32
        assert batch.positions.shape == batch.sequences.shape == (n,)
        assert ((batch.tokens >= 0) & (batch.tokens < self.n_vocab)).all()
        assert (np.diff(batch.logit_rows) > 0).all()
        assert batch.block_tables.shape[0] == batch.sequences[-1] + 1
        steps, same = np.diff(batch.sequences), np.diff(batch.sequences) == 0
        assert ((steps == 0) | (steps == 1)).all()
        assert (np.diff(batch.positions)[same] == 1).all()
        for sequence, table in enumerate(batch.block_tables):
            used = int(batch.positions[batch.sequences == sequence].max()) // KV_BLOCK + 1
            assert len(set(table[:used].tolist())) == used

    @property
    def block_bytes(self) -> int:
        return int(self._cache[0].nbytes)

    @property
    def kv_layout(self) -> str:
        return "fake"

    def read_blocks(self, blocks: Sequence[int]) -> NDArray[np.uint8]:
        return self._cache[list(blocks)].view(np.uint8)

    def write_blocks(self, blocks: Sequence[int], data: NDArray[np.uint8]) -> None:
        self._cache[list(blocks)] = data.view(np.int64)

    def memory(self) -> MemoryUse:
        return MemoryUse(1, 1, 1)

    def read_bandwidth(self) -> float | None:
        return 1e9

    def close(self) -> None:
        self.closed = True


class FakeDecoder:
    def __init__(self, keep_special: bool = False) -> None:
        self._end = b"<end>" if keep_special else b""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        return self._decoder.decode(bytes([token]) if token < 256 else self._end if token == END else b"")

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)


class FakeTokenizer:
    """Token n is the byte n."""

    n_vocab = N_VOCAB
    bos: int | None = BOS
    eos: int | None = END
    end_tokens = frozenset({END})

    def text_pieces(self) -> list[bytes]:
        return [bytes([token]) if token < 256 else b"" for token in range(N_VOCAB)]

    def encode(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> list[int]:
        return list(text.encode())

    def decode(self, ids: Iterable[int], *, keep_special: bool = True) -> str:
        return bytes(i for i in ids if i < 256).decode("utf-8", "replace")

    def stream_decoder(self, *, keep_special: bool = True) -> FakeDecoder:
        return FakeDecoder(keep_special)


class OverlappingModel(FakeModel):
    """Lets something else be done in each step."""

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self.meanwhile: Callable[[], None] = nothing

    def forward(self, batch: Batch) -> np.ndarray[Any, np.dtype[np.float32]]:
        self.meanwhile()
        return super().forward(batch)


@dataclass
class FakeBundle:
    model: Any = field(default_factory=FakeModel)
    tokenizer: Any = field(default_factory=FakeTokenizer)
    template: Any = "a template"
    context_length: int = 1 << 20
    base: Any = None

    @property
    def info(self) -> ModelInfo:
        return ModelInfo(
            path=Path("fake.gguf"),
            name="Fake",
            architecture="fake",
            parameters=0,
            quantisation="F32",
            file_bytes=0,
            context_length=self.context_length,
            trained_context_length=self.context_length,
            vocab_size=N_VOCAB,
            device=DEVICE,
            weight_bytes=1,
            kv_bytes=1,
            scratch_bytes=1,
            has_chat_template=True,
            load_s=0.0,
        )


def loader_of(*bundles: FakeBundle) -> Loader:
    """Gives the bundles one after the other."""
    left = list(bundles)

    def load(path: Path, options: LoadOptions, progress: Any, cancelled: Any) -> Any:
        progress("weights", 0.5, "")
        return left.pop(0)

    return load
