"""A search's record as a page, and as a model card.

It knows the record and nothing of how it was made.

Files in floor order: `summary`, `card`, `page`, `folder`.
"""
