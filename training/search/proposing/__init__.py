"""What is searched, who proposes, and what happened so far.

It does not know Ray.

Files in floor order: `search_space`, `samplers`, `ledger`, `searcher`.
"""
