"""What every potential must do, as one list of checks for adapters and engines; see docs/testing.md."""

from mlff_distiller.testing.contract import CHECKS, Subject, check_contract, subject_of

__all__ = ["CHECKS", "Subject", "check_contract", "subject_of"]
