"""What is watched while a model trains."""

from mixsd_lightning.callbacks.checkpoints import Checkpoints
from mixsd_lightning.callbacks.collapse import CollapseAlert
from mixsd_lightning.callbacks.completions import Completions
from mixsd_lightning.callbacks.dashboard import Dashboard
from mixsd_lightning.callbacks.error_modes import ErrorModes
from mixsd_lightning.callbacks.fisher_drift import FisherDrift
from mixsd_lightning.callbacks.metrics_file import MetricsFile
from mixsd_lightning.callbacks.resources import Resources
from mixsd_lightning.callbacks.retention import Retention

__all__ = [
    "Checkpoints",
    "CollapseAlert",
    "Completions",
    "Dashboard",
    "ErrorModes",
    "FisherDrift",
    "MetricsFile",
    "Resources",
    "Retention",
]
