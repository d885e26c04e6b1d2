"""Text to token ids and back, from the vocabulary in a GGUF file."""

from engine.tokenizer.tokenizer import StreamDecoder, Tokenizer

__all__ = ["StreamDecoder", "Tokenizer"]
