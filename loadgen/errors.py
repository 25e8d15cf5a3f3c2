"""Errors for people: one line each, saying what was expected and what to do, with the exit status it means."""

from __future__ import annotations

EXIT_OK = 0
EXIT_THRESHOLD = 1
EXIT_INVALID = 2
EXIT_CANNOT_TELL = 3
EXIT_USAGE = 64
EXIT_UNAVAILABLE = 69
EXIT_HOST = 71
EXIT_INTERRUPTED = 130


class LoadgenError(Exception):
    """Something that a person can mend; its text is one line, its `exit_status` the process's."""

    exit_status = EXIT_USAGE


class ScenarioError(LoadgenError, ValueError):
    """A scenario, a knob or a command line that cannot be run as it stands."""


class BrokerError(LoadgenError):
    """A broker that cannot be installed, started, reached or trusted with the credentials given."""

    exit_status = EXIT_UNAVAILABLE


class HostError(LoadgenError):
    """The machine lacks something: a program, disk, memory, a folder that can be written."""

    exit_status = EXIT_HOST


class TrialError(LoadgenError):
    """A trial that could not be finished: an agent died or stuck, the broker went away in mid-run."""

    exit_status = EXIT_INVALID
