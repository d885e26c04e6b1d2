"""Runs in the peer's own Python (one with llama_cpp): prints tokens per second for what it is asked on stdin.

Lines: "prefill N" and "decode N AT" (N tokens from a context of AT tokens on). Answers one number a line.
"""

from __future__ import annotations

import random
import sys
import time


def main() -> None:
    from llama_cpp import Llama  # type: ignore[import-not-found]

    model = Llama(
        sys.argv[1],
        n_ctx=int(sys.argv[2]),
        n_threads=int(sys.argv[3]),
        n_threads_batch=int(sys.argv[3]),
        n_batch=512,
        n_ubatch=512,
        verbose=False,
    )
    generator = random.Random(1)
    tokens = [generator.randrange(10, model.n_vocab() - 10) for _ in range(int(sys.argv[2]))]
    print("ready", flush=True)
    for line in sys.stdin:
        kind, *numbers = line.split()
        count = int(numbers[0])
        if kind == "prefill":
            model.reset()
            began = time.perf_counter()
            model.eval(tokens[:count])
        else:
            at = int(numbers[1])
            if not at <= model.n_tokens <= at + 64:  # decode on from where the last run ended, within reason
                model.reset()
                model.eval(tokens[:at])
            model.n_tokens = at
            began = time.perf_counter()
            for token in tokens[:count]:
                model.eval([token])
        print(count / (time.perf_counter() - began), flush=True)


if __name__ == "__main__":
    main()
