"""Sweeps: many runs of one entry point, each in a process and a run folder of its own.

A sweep is an Optuna study and its jobs are the study's trials. `sweep` is read from top to bottom: `space` says which
jobs there are, `study` which comes next and what became of it, `launcher` runs them (`process` here, `slurm` on a
cluster), `folder` is what they leave behind. Nothing here loads torch, and nothing heavy before a sweep runs.
"""

from src.sweeps.folder import Job, read_jobs, resume_command

__all__ = ["Job", "read_jobs", "resume_command"]
