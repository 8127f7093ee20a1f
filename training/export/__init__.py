"""A version in other formats.

It does not know the search or Ray.

Files in floor order: `parity`, `facts`, `onnx`, `hub`, `folder`.
"""
