"""Programs that run in DeepSparse's own environment: Python 3.8-3.11, its numpy, nothing of ours.

They are started by their paths and never imported by the rest of the project.
"""
