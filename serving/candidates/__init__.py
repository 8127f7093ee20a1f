"""Versions on trial: what they are asked, and when one takes over.

Files in floor order: `candidate`, `rule`, `command`; `candidate` stands below `serving.answerer`, the others beside the rollout.
"""
