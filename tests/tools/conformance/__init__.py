"""Compares Realm with the reference data, type by type and model by model, and writes docs/conformance.md."""
