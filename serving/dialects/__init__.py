"""Requests and answers in the words of other servers, so that their clients can ask this one; each adds its routes.

All texts go the same way as those of `/v1/predict`. It does not know how answers are made.

Files in floor order: `heads`, `open_inference`, `text_embeddings`, `vllm`, `mistral`.
"""
