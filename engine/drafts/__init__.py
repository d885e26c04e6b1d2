"""Speculative decoding: guessing the next tokens of a sequence, so that one step checks several of them."""
