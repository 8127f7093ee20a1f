"""The model: one encoder, pooled once, and heads side by side.

It does not know losses, optimisation or Ray.

Files in floor order: `packed`, `products`, `encoder`, `ordinal`, `letters`, `word_pieces`, `model`, `inputs`, `prefix`.
"""
