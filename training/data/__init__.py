"""From tables to examples: texts, class indices, three splits, tokens.

It does not know models, losses or Ray.

Files in floor order: `sample`, `findings`, `characters`, `formats`, `table`, `rows`, `split`, `labels`, `dataset`, `doctor`, `tokens`.
"""
